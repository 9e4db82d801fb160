"""A sweep as a user types it, in an empty folder."""

from pathlib import Path

from .conftest import TINY_EDM, TINY_TEMI, Cedm


def test_it_makes_what_its_runs_need_and_goes_on_after_one_that_fails(cedm: Cedm, workplace: Path) -> None:
    """`-m` behind a setting is where `make train ARGS="-m seed=1,2"` puts it."""
    Path("multirun.yaml").write_text("mine")  # the name of a file that Hydra writes
    result = cedm("train", "dataset=digits", "-m", "seed=1,2", "training.lr=-1,0.001", *TINY_TEMI, *TINY_EDM)
    assert result.code == 1, result.err
    assert len(list(workplace.glob("runs/digits/cluster-temi-5/*/pseudo_labels.safetensors"))) == 2
    assert len(list(workplace.glob("runs/digits/train-temi-5/*/denoiser.safetensors"))) == 2
    listed = result.err.partition("2 runs of the sweep failed")[2]
    assert listed.count("training.lr=-1") == 2
    assert "training.lr=0.001" not in listed
    assert Path("multirun.yaml").read_text() == "mine"
