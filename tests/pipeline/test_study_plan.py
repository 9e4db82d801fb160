"""What a study says of its plan and of what is not in it, without running anything."""

import os
from pathlib import Path
from typing import cast

import pytest
import torch

from datamodules.images.sources import ImageSource, open_source
from lightning_modules.diffusion.denoising_error import noise_levels
from lightning_modules.edm_module import EDMModule
from pipeline.commands import study
from pipeline.commands.study import announce
from pipeline.running.jobs import Job
from pipeline.running.resources import Resources
from pipeline.settings.compose import compose
from pipeline.settings.make import command_lines
from pipeline.settings.schemas import StudyCommandSettings
from pipeline.studies.jobs import Plan, Run
from pipeline.studies.plan import training_images
from pipeline.studies.results import gather
from storage.errors import UserError
from storage.files import write_json


def test_a_training_costs_its_distances_too() -> None:
    """After 4, 8 and, as it ends there, 10 kimg; an image costs 2·6 − 1 forward passes, of which a training takes 3."""
    asked = ["evaluation.num_images=30", "sampler.steps=6", "training.duration_kimg=10"]
    assert training_images(compose("train", [*asked, "evaluation.every_kimg=4"])) == 10_000 + 3 * 30 * 11 / 3
    three = compose("train", [*asked, f"evaluation.every_kimg={10 / 3}"])  # as study.curve_points=3 sets it
    assert training_images(three) == 10_000 + 3 * 30 * 11 / 3
    alone = compose("train", [*asked, "evaluation.backbone=null", "evaluation.every_kimg=4"])
    assert training_images(alone) == 10_000
    levels = len(noise_levels()[0])
    assert training_images(alone, num_held_out=100) == pytest.approx(10_000 + 3 * 2 * 100 * levels / 3)
    assert training_images(alone, num_held_out=5000) == pytest.approx(10_000 + 3 * 2 * 2048 * levels / 3)


def test_what_is_left_out_is_said_when_all_is_done_too(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    write_json(workplace / "done/summary.json", {"command": "train", "arguments": []})
    plan = Plan([], [Job("train-none", "train", (), workplace / "done")], ["labels: left out."])
    announce(cast(StudyCommandSettings, None), cast(ImageSource, None), plan, Resources("cpu"))
    assert capsys.readouterr().out == "to do       nothing; 1 job is done\n            labels: left out.\n"


@pytest.mark.parametrize(("kind", "compiled"), [("gpu", False), ("cpu", True)])
def test_for_gpus_elsewhere_nothing_is_compiled_here(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, kind: str, compiled: bool
) -> None:
    """A cluster's GPUs compile; to guess the cost on the machine without one, that would take minutes."""
    seen: list[bool] = []
    monkeypatch.setattr(EDMModule, "compile_pass", lambda *_: seen.append(True))
    monkeypatch.setattr(study, "measure_cost", lambda *_: seen.append(False))
    monkeypatch.setattr(study, "device_of", lambda _: torch.device("cpu"))
    typed = ["study=granularity", "dataset=digits", "trainer.compile=true", "training.max_batch_per_device=8"]
    settings = compose("study", typed)
    assert isinstance(settings, StudyCommandSettings)
    study.measured_cost(settings, open_source(settings.dataset), 1, Resources(kind))
    assert seen == [True] * compiled + [False]


def test_the_final_model_has_its_own_protocol(workplace: Path) -> None:
    """Trained for longer, it was judged on more images."""
    jobs, runs = [], []
    settings = compose("train", ["conditioning=none"])
    for name, num_images in (("temi-3", 10), ("temi-3-final", 500)):
        along = {"name": "fd_pixels", "num_generated": num_images, "kimg_and_distance": [[1.0, 2.0]]}
        protocol = {"num_images": num_images, "generated": [{"steps": 18}]}
        found = {
            "train": {"nimg": 1000, "distances": along},
            "evaluate": {"scores": {"fd_pixels": {"sets": [2.0], "protocol": protocol}}},
        }
        for command, values in found.items():
            jobs.append(Job(f"{command}-{name}", command, (), workplace / f"{command}-{name}"))
            write_json(jobs[-1].folder / "summary.json", {"command": command, "arguments": []} | values)
        runs.append(Run(name, "temi", (), settings))
    results = gather(Plan(runs[:1], jobs, [], final=runs[1]), "auto", "How many?", "digits")
    assert results.final is not None
    assert [run.name for run in results.trained] == ["temi-3", "temi-3-final"]
    assert {when: how.get("num_images", how.get("num_generated")) for when, how in results.protocol.items()} == {
        "final model": 10,
        "along the training": 10,
        "final model of temi-3-final": 500,
        "along the training of temi-3-final": 500,
    }


def test_make_report_finds_the_study_of_any_data_set(workplace: Path) -> None:
    """That of `make auto DATA=/my/images` bears the name of the folder of images."""
    for name in ("images", "cifar10"):
        write_json(workplace / f"runs/{name}/study-auto/now/summary.json", {})
    os.utime(workplace / "runs/cifar10/study-auto/now/summary.json", (0, 0))
    assert list(command_lines("report", {})) == [("report", ["run=runs/images/study-auto/now"])]
    assert list(command_lines("report", {"DATASET": "cifar10"})) == [("report", ["run=runs/cifar10/study-auto/now"])]
    with pytest.raises(UserError, match="no study in runs/afhqv2"):
        list(command_lines("report", {"DATASET": "afhqv2"}))
