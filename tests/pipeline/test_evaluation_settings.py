"""The table of metrics and the settings of evaluation: what follows from an entry, and what is refused."""

from typing import Any

import pytest

from pipeline.evaluation.evaluate_settings import EvaluateSettings
from pipeline.evaluation.evaluation_settings import KIDSettings, PRDCSettings
from pipeline.evaluation.generate_settings import GenerateSettings
from pipeline.evaluation.measures import backbones, check_sizes, plan_of
from pipeline.evaluation.metrics_table import ENTRIES, FRECHET, REAL, arrow_of, best_of, frechet_name, label_of
from storage.errors import UserError


def test_every_entry_is_whole() -> None:
    """Settings of its own that exist, sizes among them, a backbone from somewhere, and scores of its own."""
    settings = EvaluateSettings(metrics=[entry.name for entry in ENTRIES], neighbour_backbone="pixels")
    plan = plan_of(settings, "pixels")
    assert [metric.name for metric in plan] == [entry.name for entry in ENTRIES]
    scores = [score for metric in plan for score in metric.scores]
    assert len(set(scores)) == len(scores)
    assert all(hasattr(metric.settings, name) for metric in plan for name in metric.sizes)
    assert backbones(plan) == ["inception", "dinov2_vitl14", "pixels"]
    assert set(backbones(plan, side=REAL)) == {"inception", "dinov2_vitl14", "pixels"}
    assert backbones(plan_of(EvaluateSettings(metrics=["fid", "rank"]), "pixels")[:1], side=REAL) == []


def test_names_and_arrows() -> None:
    names = [frechet_name(name) for name in ("inception", "dinov2_vitl14", "pixels", "dino_vitb16")]
    assert names == ["fid", "fdd", "fd_pixels", "fd_dino_vitb16"]
    labels = [label_of(name) for name in ("fid", "sw_pixels", "kid", "inception_score", "recall", "copies")]
    assert labels == ["fid ↓", "sw_pixels ↓", "kid ↓", "inception_score ↑", "recall ↑", "copies"]
    assert (best_of("fid", [2, 1]), best_of("recall", [2, 1]), best_of("copies", [2, 1])) == (1, 2, None)
    assert arrow_of("fd_of_an_older_run") == "↓"


@pytest.mark.parametrize(
    ("metrics", "own", "expected"),
    [
        (["fd", "prdc"], "pixels", {"fd_pixels": "pixels", "recall": "pixels"}),
        (["fd", "fid"], "inception", {"fid": "inception"}),  # the same distance, once
        (["kid", "prdc"], None, {"kid": "inception", "recall": "inception"}),
        (["fid", "fdd", "prdc"], "pixels", {"fid": "inception", "fdd": "dinov2_vitl14", "recall": "dinov2_vitl14"}),
    ],
)
def test_the_extractor_of_each_score(metrics: list[str], own: str | None, expected: dict[str, str]) -> None:
    plan = plan_of(EvaluateSettings(metrics=metrics, memorisation=False), own)
    found = {score: metric.backbone for metric in plan for score in metric.scores}
    assert {score: found[score] for score in expected} == expected
    assert sum(metric.name in FRECHET for metric in plan) == sum(score.startswith("f") for score in expected)


def test_what_is_measured_by_default() -> None:
    """Nothing that takes another pass over the images, and every distance with its error."""
    plan = plan_of(EvaluateSettings(), "pixels")
    assert [metric.name for metric in plan] == ["fd", "sw", "prdc", "clipped", "memorisation"]
    assert backbones(plan) == ["pixels"]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (EvaluateSettings, {"metrics": ["fdi"]}, "Did you mean fd"),
        (EvaluateSettings, {"metrics": []}, "at least one"),
        (EvaluateSettings, {"num": 1}, "num=1"),
        (EvaluateSettings, {"reference": "a.pkl"}, "reference=a.pkl"),
        (EvaluateSettings, {"save_reference": "a=b.npz"}, "without '='"),
        (EvaluateSettings, {"reference": "a.npz", "save_reference": "b.npz"}, "leave reference= out"),
        (PRDCSettings, {"k_density_coverage": 0}, "prdc.k_density_coverage=0"),
        (KIDSettings, {"subset_size": 1}, "kid.subset_size=1"),
        (GenerateSettings, {"clusters": ["a"]}, "clusters="),
        (GenerateSettings, {"seeds": [3, 3]}, "different whole numbers"),
        (GenerateSettings, {"seeds": []}, "seeds="),
        (GenerateSettings, {"seeds": 2**63}, "seeds="),
        (GenerateSettings, {"keep": 0.5}, "head="),
        (GenerateSettings, {"keep": 1.5, "head": "head"}, "keep=1.5"),
        (GenerateSettings, {"format": "jpg"}, "png, zip, npy"),
    ],
)
def test_what_cannot_be_meant(kind: Any, values: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        kind(**values)


def test_images_that_are_too_few() -> None:
    settings = EvaluateSettings(metrics=["kid", "is", "prdc"], memorisation=False, prdc=PRDCSettings(num_images=5))
    for generated, real, expected in ((999, 5000, "kid.subset_size=999"), (9, 5000, "kid"), (1, 9, "at least 2")):
        with pytest.raises(UserError, match=expected):
            check_sizes(plan_of(settings, None), generated, real, "generated=images", "dataset=digits")
    with pytest.raises(UserError, match=r"prdc.k_density_coverage=5: .*prdc.num_images=5"):
        check_sizes(plan_of(settings, None)[2:], 5000, 5000, "generated=images", "dataset=digits")
    with pytest.raises(UserError, match="fd_inf needs at least 20"):
        check_sizes(plan_of(EvaluateSettings(metrics=["fd_inf"]), "pixels"), 19, 50, "generated=images", "digits")
    of_generated = plan_of(EvaluateSettings(metrics=["is"], memorisation=False), None)
    check_sizes(of_generated, 10, 2, "generated=images", "dataset=digits")  # whatever the number of real images
