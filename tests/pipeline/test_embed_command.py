"""`cedm embed` on several devices, and what it refuses."""

import os
from pathlib import Path

import pytest

from datamodules.embeddings.embedding_settings import EmbeddingSettings
from pipeline.running.condition import Condition
from pipeline.running.devices import devices_of
from pipeline.running.embedding import Embedder
from pipeline.running.trainer_settings import TrainerSettings
from pipeline.settings.compose import compose
from storage.errors import UserError

from .conftest import Cedm

PROJECT = Path(__file__).parents[2]


def test_two_processes_embed_the_bytes_of_one(cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    one = cedm("embed", "cache_dir=one", "run_dir=run_one")
    two = cedm("embed", "cache_dir=two", "run_dir=run_two", "trainer.accelerator=cpu", "trainer.devices=2")
    assert (one.code, two.code) == (0, 0), two.err
    (a,), (b,) = ((workplace / name / "embeddings").glob("*.safetensors") for name in ("one", "two"))
    assert a.read_bytes() == b.read_bytes()
    assert "1797/1797" in two.err  # the bar of both together
    assert not list(workplace.rglob("*.shards"))


def test_a_failing_process_ends_the_others(cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(workplace))
    (workplace / "pipeline").mkdir()
    (workplace / "pipeline/__init__.py").touch()
    (workplace / "pipeline/__main__.py").write_text(
        "import os, sys, time\n"
        "first = os.environ['CEDM_EMBED_SHARE'].startswith('0/')\n"
        "sys.exit(3) if first else time.sleep(60)\n"
    )
    done = cedm("embed", "trainer.accelerator=cpu", "trainer.devices=2")
    assert done.code == 2
    assert "embedding stopped: see above what the process of cpu (3) said. Whole shards are kept" in done.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.accelerator=gpu", "no GPU that PyTorch can use"),
        ("embedding.precision=bf16", "one of auto, 32-true"),
        ("embedding.num_workers=two", "embedding.num_workers=two"),
        ("backbone=timm", "backbone.model=NAME"),
        ("backbone=dino_vitb16 backbone.path=nowhere", "nowhere: no such folder"),
    ],
)
def test_settings_that_cannot_be_meant(cedm: Cedm, setting: str, message: str) -> None:
    done = cedm("embed", *setting.split())
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_without_weights_the_survey_comes_first_and_what_works_now(
    cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workplace / "hub"))
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )
    done = cedm("embed", "backbone=dino_vitb16")
    assert (done.code, "digits: 1,797 images" in done.out) == (2, True)
    assert "trained with ImageNet's labels) or backbone=pixels (make: BACKBONE=eff" in done.err
    done = cedm("embed", "backbone=efficientnet_lite0", "dataset.max_images=60")
    assert done.code == 0, done.err
    assert "supervised, trained with the labels of ImageNet-1k" in done.out


def test_devices_of_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(32)), raising=False)

    def devices(wanted: object, accelerator: str = "auto") -> list[str]:
        return [str(device) for device in devices_of(TrainerSettings(accelerator=accelerator, devices=wanted))]

    assert devices("auto") == devices(-1) == devices(4) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert devices([1, 3]) == ["cuda:1", "cuda:3"]
    assert devices(2, "cpu") == ["cpu", "cpu"]
    assert devices("auto", "cpu") == ["cpu"]
    for wrong in (5, 0, [4], "all"):
        with pytest.raises(UserError, match="this machine has 4 of the kind cuda"):
            devices(wrong)
    embedder = Embedder(Condition.of(compose("embed", [])), EmbeddingSettings(), TrainerSettings())
    assert embedder.precision(devices_of(embedder.trainer)[0]) == "bf16-mixed"
    assert embedder.workers(devices_of(embedder.trainer)) == 7
