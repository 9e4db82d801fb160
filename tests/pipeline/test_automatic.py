"""What `auto` stands for: the rules as tables, what they are given, and that a run keeps what was decided."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules.diffusion.augment import AUGMENT_DIM
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.network_settings import NetworkSettings
from lightning_modules.diffusion.prelude import Prelude
from pipeline.commands import study
from pipeline.running import automatic, training
from pipeline.running.automatic import (
    bytes_of_an_image,
    compiles,
    decided,
    images_per_pass,
    parameters_of,
    precision_of,
)
from pipeline.running.cost import Cost
from pipeline.running.run_folder import TRAINING_IDENTITY, choose_run_folder, opened_run_folder, run_settings
from pipeline.settings.compose import compose
from storage.files import write_json, write_sealed_json

from .conftest import TINY_EDM, Cedm

GIB = 2**30
CIFAR = NetworkSettings()
ADM_64 = NetworkSettings("adm", 192, [1, 2, 3, 4], 3, [32, 16, 8], 0.1)
SMALL = NetworkSettings(model_channels=32, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
TRAIN = ["train", "conditioning=none", *TINY_EDM, "dataset.max_images=100"]


@pytest.mark.parametrize(
    ("device", "parameters", "resolution", "expected"),
    [
        ("cuda", 55_700_000, 32, True),
        ("cuda", 296_000_000, 64, True),
        ("cuda", 750_000, 8, False),
        ("cuda", 55_700_000, 8, False),
        ("cpu", 55_700_000, 32, False),
        ("mps", 55_700_000, 32, False),
    ],
)
def test_what_is_compiled(device: str, parameters: int, resolution: int, expected: bool) -> None:
    assert compiles(device, parameters, resolution) == expected


@pytest.mark.parametrize(
    ("flags", "resolution", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, 32, "bf16-mixed"),
        ({"amx_bf16": True}, 16, "bf16-mixed"),
        ({"avx512_bf16": True}, 8, "32-true"),
        ({"avx512_f": True, "avx512_bf16": False}, 32, "32-true"),
        ({}, 64, "32-true"),
    ],
)
def test_in_what_a_processor_computes(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], resolution: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    settings = decided(compose("train", ["network=ddpmpp_32_small", f"dataset.resolution={resolution}"]))
    assert settings.trainer.precision == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_in_what_a_gpu_computes(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert precision_of(torch.device("cuda"), 32) == expected
    assert precision_of(torch.device("cuda"), 8) == precision_of(torch.device("mps"), 64) == "32-true"


@pytest.mark.parametrize(("gib", "single", "mixed"), [(8, 16, 32), (24, 64, 128), (40, 128, 256), (80, 256, 512)])
def test_a_larger_card_takes_a_larger_pass(gib: int, single: int, mixed: int) -> None:
    """Of the CIFAR-10 network, in float32 and in bfloat16."""
    parameters, image = 55_733_891, 130_985_984
    assert images_per_pass(gib * GIB, parameters, image) == single
    assert images_per_pass(gib * GIB, parameters, image // 2) == mixed


def test_a_pass_has_at_least_an_image_and_on_other_devices_as_many_as_ever() -> None:
    assert images_per_pass(4 * GIB, 10**9, 10**9) == 1
    assert images_per_pass(None, 10**6, 10**6) == images_per_pass(80 * GIB, 10**6, 0) == 128


def test_a_network_is_sized_without_building_it() -> None:
    denoiser = Denoiser(SMALL, 8, 1, 0, AUGMENT_DIM)
    assert parameters_of(SMALL, 8, 1) == sum(weight.numel() for weight in denoiser.parameters())
    assert parameters_of(ADM_64, 64, 3) == pytest.approx(296e6, rel=0.01)  # table 7 of EDM
    # Two images of a network of twice the width: each takes twice as much, but for the few channels of the image.
    assert bytes_of_an_image(replace(SMALL, model_channels=64), 8, 1) == pytest.approx(
        2 * bytes_of_an_image(SMALL, 8, 1), rel=0.05
    )
    assert parameters_of(SMALL, 7, 1) == bytes_of_an_image(SMALL, 7, 1) == 0  # it cannot be halved


def test_on_a_large_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "device_of", lambda accelerator: torch.device("cuda"))
    monkeypatch.setattr(automatic, "smallest_card", lambda trainer: 80 * GIB)
    monkeypatch.setattr(automatic, "bytes_of_an_image", lambda *size: 131_000_000)
    settings = decided(compose("train", ["dataset=cifar10", "network=ddpmpp", "trainer.precision=bf16-mixed"]))
    assert (settings.trainer.compile, settings.training.max_batch_per_device) == (True, 512)
    typed = ["dataset=cifar10", "trainer.compile=false", "training.max_batch_per_device=64"]
    settings = decided(compose("train", typed))
    assert (settings.trainer.compile, settings.training.max_batch_per_device) == (False, 64)


def test_cuda_graphs_are_for_steps_of_one_pass(cedm: Cedm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are refused; and of the network alone, whose every pass begins anew."""
    monkeypatch.setattr(automatic, "device_of", lambda accelerator: torch.device("cuda"))
    refused = cedm(*TRAIN, "trainer.compile=cuda_graphs", "training.max_batch_per_device=16")
    assert (refused.code, "here are 4" in refused.err) == (2, True), refused.err
    modes: list[str | None] = []
    begun: list[None] = []
    monkeypatch.setattr(Denoiser, "compile", lambda self, mode=None, **options: modes.append(mode))
    monkeypatch.setattr(Prelude, "compile", lambda self: None)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(None))
    monkeypatch.setattr(training, "measure_cost", lambda *_, **__: Cost(1024, 100.0, 64, 1, "cuda"))
    trained = cedm(*TRAIN, "trainer.compile=cuda_graphs", "training.max_batch_per_device=64", "run_dir=graphs")
    assert (trained.code, modes, len(begun)) == (0, ["reduce-overhead", None], 16), trained.err


def kept(folder: Path, group: str = "trainer", name: str = "compile") -> Any:
    return json.loads((folder / "settings.json").read_text())["settings"][group][name]


def test_a_run_keeps_what_was_decided_when_it_began(cedm: Cedm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rule would decide otherwise now, with its folder named or found."""
    short = ["trainer.max_time={seconds:0}"]
    monkeypatch.setattr(automatic, "USUAL_PASS", 16)
    assert "compiled" not in cedm(*TRAIN, *short).out
    (first,) = Path("runs/digits/train-none").glob("*")
    assert kept(first) is False
    assert kept(first, "training", "max_batch_per_device") == 16
    snapshot = torch.load(next(first.glob("snapshots/*.ckpt")))
    assert (snapshot["trainer"]["precision"], snapshot["trainer"]["compile"]) == ("32-true", False)
    assert snapshot["hyper_parameters"]["training"]["max_batch_per_device"] == 16
    torch.compiler.set_stance("force_eager")  # all the way but for the compiler
    try:
        monkeypatch.setattr(automatic, "COMPILED_FROM", {"cpu": (1, 1)})
        for usual, told in ((64, "16 images × 4"), (8, "8 images × 8")):  # a larger card, and a smaller one
            monkeypatch.setattr(automatic, "USUAL_PASS", usual)
            again = cedm(*TRAIN, *short)
            assert ("Resuming from" in again.out, "compiled" in again.out, told in again.out) == (True, False, True)
        assert kept(first, "training", "max_batch_per_device") == 16
        assert "32-true, compiled" in cedm(*TRAIN, *short, "run_dir=second").out
        assert kept(Path("second")) is True
        monkeypatch.setattr(automatic, "COMPILED_FROM", {})
        again = cedm(*TRAIN, *short, "run_dir=second")
        assert ("Resuming from" in again.out, "32-true, compiled" in again.out) == (True, True), again.err
    finally:
        torch.compiler.set_stance("default")
    other = cedm(*TRAIN, "trainer.compile=false", "run_dir=second")
    assert (other.code, "trainer.compile: True → False" in other.err) == (2, True)


def test_a_run_of_before_pass_sizes_were_kept_goes_on(tmp_path: Path) -> None:
    """Its settings stay as they are, and its summary where it is."""
    settings = decided(compose("train", TRAIN[1:]))
    write_sealed_json(tmp_path / "settings.json", run_settings(settings, {}, TRAINING_IDENTITY))
    write_json(tmp_path / "summary.json", {"command": "train"})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    now = run_settings(settings, {}, TRAINING_IDENTITY, decided=True)
    assert now["settings"]["training"]["max_batch_per_device"] == 128
    assert choose_run_folder(str(tmp_path), tmp_path, now) == tmp_path
    with opened_run_folder(tmp_path, now, overwrite=False):
        assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before


STUDY = ["study", "study=mine", "--config-dir=own", *TINY_EDM[:2], "training.batch_size=64", "trainer.accelerator=cpu"]


def test_a_study_decides_once_for_all_its_jobs(cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for those that run when it goes on, on a machine where the rules would decide otherwise."""
    (workplace / "own/study").mkdir(parents=True)
    runs = "  none: [conditioning=none]\n  narrow: [conditioning=none, network.dropout=0.31]\n"
    runs += "  exact: [conditioning=none, trainer.precision=16-mixed]\n"
    (workplace / "own/study/mine.yaml").write_text(f"question: Is it so?\nruns:\n{runs}")
    monkeypatch.setattr(study, "run_jobs", lambda jobs, _: {job.name: "the machine is gone" for job in jobs})
    monkeypatch.setattr(study, "measured_cost", lambda *_: Cost(1024, 100.0, 64, 1, "cpu"))

    def printed(*words: str) -> list[str]:
        result = cedm(*STUDY, "study.print=true", *words)
        assert result.code == 0, result.err
        return [line for line in result.out.splitlines() if " train " in line]

    planned = printed()
    none, narrow, exact = planned
    decisions = " trainer.precision=32-true trainer.compile=false"
    assert f"{decisions} training.max_batch_per_device=128 run_dir=" in none
    assert f"{decisions} run_dir=" in narrow  # as many at once as another network can
    assert "trainer.precision=16-mixed trainer.compile=false" in exact
    assert "machine is gone" in cedm(*STUDY).err
    (folder,) = Path("runs/digits/study-mine").glob("*")
    assert (kept(folder), kept(folder, "training", "max_batch_per_device")) == (False, 128)
    monkeypatch.setattr(automatic, "COMPILED_FROM", {"cpu": (1, 1)})
    monkeypatch.setattr(automatic, "precision_of", lambda *_: "bf16-mixed")
    assert printed() == planned
    assert "trainer.precision=bf16-mixed trainer.compile=true" in printed("overwrite=true")[0]
