"""Words for Hydra's command line, read back by Hydra's own parser."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pipeline.settings.words import key_of, word


@pytest.mark.parametrize(
    "text",
    [
        "runs/digits/train-temi-40",
        "/tmp/with space/a,b=c",
        "/tmp/Müller/图",
        'a "quoted" one',
        "it's",
        "null",
        "1e3",
        "true",
        "[1,2]",
        "a\\b",
        'a\\"b',
        "ends in\\",
        "",
    ],
)
def test_a_text_stays_the_text_that_it_was(text: str) -> None:
    override = OverridesParser.create().parse_override(word("run_dir", text))
    assert override.key_or_group == "run_dir"
    assert override.value() == text
    assert isinstance(override.value(), str)


def test_keys() -> None:
    assert [key_of(text) for text in ("a.b=1=2", "+a=1", "++a=1", "~a")] == ["a.b", "a", "a", "a"]
