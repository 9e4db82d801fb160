"""From images to generated images, as a user types it, on a part of the digits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.edm_module import EDMModule
from pipeline.running.models import other_clusters

from .conftest import TINY_EDM, TINY_TEMI, Cedm, summary


def only(folder: Path, pattern: str) -> Path:
    """The one path that fits."""
    (path,) = folder.glob(pattern)
    return path


def test_images_to_generated_images(cedm: Cedm, workplace: Path) -> None:
    for command in ("embed", "cluster", "train"):
        result = cedm(command, *TINY_TEMI, *TINY_EDM)
        assert result.code == 0, result.err
        assert "Nothing to do" not in result.out
    assert summary(only(workplace, "runs/digits/embed-pixels/*"))["num_features"] == 64
    clustered = only(workplace, "runs/digits/cluster-temi-5/*")
    trained = only(workplace, "runs/digits/train-temi-5/*")

    scores = summary(clustered)
    assert scores["num_clusters"] == 5
    assert scores["utilization_ratio"] == scores["num_used"] / 5
    assert 0 < scores["nmi"] <= 100
    labels = PseudoLabels.load(clustered / "pseudo_labels.safetensors")
    head = ClusteringHead.from_pretrained(clustered / "head.safetensors")
    assert len(labels) == 1797
    assert head.num_clusters == 5
    assert Image.open(clustered / "gallery.png").width > 100
    assert Image.open(clustered / "utilization.png").width > 100

    results = summary(trained)
    assert results["nimg"] == 1024  # 16 steps of 64 images: the nearest to 1 kimg
    assert results["fd_pixels"] > 0
    assert results["distances"]["num_generated"] == 80
    assert results["inputs"]["dataset"] == scores["inputs"]["dataset"]
    denoiser = Denoiser.from_pretrained(trained / "denoiser.safetensors")
    assert denoiser.cluster_frequencies is not None
    torch.testing.assert_close(denoiser.cluster_frequencies.sum().item(), 1.0)
    assert list(denoiser.cluster_ids) == list(labels.used_clusters)
    assert only(trained, "grids/kimg000001.png")
    assert Image.open(trained / "distance.png").width > 100
    assert len(list((trained / "snapshots").iterdir())) == 2

    for command in ("embed", "cluster", "train"):
        result = cedm(command, *TINY_TEMI, *TINY_EDM)
        assert result.code == 0
        assert "Nothing to do" in result.out
    assert only(workplace, "runs/digits/train-temi-5/*") == trained  # no second run was begun

    cluster = int(labels.used_clusters[1])
    result = cedm("generate", f"ckpt={trained}", "seeds=[5,9]", f"clusters=[{cluster}]", "steps=3", "run_dir=two")
    assert result.code == 0, result.err
    assert json.loads((workplace / "two/images/dataset.json").read_text())["labels"] == [
        ["00000/img00000005.png", cluster],
        ["00000/img00000009.png", cluster],
    ]


def test_a_run_continues_after_a_stop_and_refuses_other_settings(
    cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cedm("cluster", "clustering=random")
    settings = ["clustering=random", *TINY_EDM, "evaluation.backbone=null", "run_dir=run"]
    from callbacks.sample_grid import SampleGrid

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(SampleGrid, "draw", fail)
        with pytest.raises(OSError, match="disk"):
            cedm("train", *settings)
    assert not (workplace / "run/summary.json").exists()
    result = cedm("train", *settings)
    assert "Resuming from run/snapshots/step-00000008.ckpt" in result.out
    straight = cedm("train", *settings[:-1], "run_dir=straight")
    assert straight.code == 0
    assert weights(workplace / "run") == weights(workplace / "straight")

    other = cedm("train", *settings, "training.lr=0.5")
    assert other.code == 2
    assert "training.lr" in other.err
    assert "overwrite=true" in other.err
    assert cedm("train", *settings, "training.lr=0.01", "overwrite=true").code == 0
    assert len(list(workplace.glob("run-replaced-*"))) == 1


def test_a_model_that_was_damaged_since_is_written_again(cedm: Cedm, workplace: Path) -> None:
    settings = ["conditioning=none", *TINY_EDM, "evaluation.backbone=null", "run_dir=run"]
    assert cedm("train", *settings).code == 0
    model, before = workplace / "run/denoiser.safetensors", weights(workplace / "run")
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    result = cedm("train", *settings)
    assert result.code == 0, result.err
    assert weights(workplace / "run") == before
    assert "Nothing to do" in cedm("train", *settings).out


def test_no_snapshot_of_weights_that_are_not_finite(
    cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient can overflow where the loss does not: the snapshot before stays the last."""
    settings = ["conditioning=none", *TINY_EDM, "evaluation.backbone=null", "run_dir=run"]

    def overflow(module: EDMModule) -> None:
        if module.global_step == 15:  # the last one: no loss follows that would tell
            next(module.denoiser.parameters()).grad.fill_(torch.inf)

    with monkeypatch.context() as broken:
        broken.setattr(EDMModule, "on_after_backward", overflow)
        result = cedm("train", *settings)
    assert result.code == 2, result.err
    assert cedm("train", *settings).code == 0
    assert cedm("train", *settings[:-1], "run_dir=straight").code == 0
    assert weights(workplace / "run") == weights(workplace / "straight")


def test_settings_that_were_damaged_are_no_settings(cedm: Cedm, workplace: Path) -> None:
    """Nobody knows what such a run was made from: another one must not go on from its snapshots."""
    settings = ["conditioning=none", *TINY_EDM, "evaluation.backbone=null", "run_dir=run"]
    assert cedm("train", *settings).code == 0
    file = workplace / "run/settings.json"
    content = bytearray(file.read_bytes())
    for damage in (bytes([content[0] ^ 1]) + content[1:], content.replace(b'"seed": 0', b'"seed": 1'), None):
        file.unlink() if damage is None else file.write_bytes(damage)
        result = cedm("train", *settings, "training.lr=0.5")
        assert (result.code, "settings.json" in result.err, "overwrite=true" in result.err) == (2, True, True)
    assert cedm("train", *settings, "overwrite=true").code == 0
    assert len(list(workplace.glob("run-replaced-*"))) == 1


def weights(folder: Path) -> dict[str, list[float]]:
    denoiser = Denoiser.from_pretrained(folder / "denoiser.safetensors")
    return {name: value.flatten().tolist() for name, value in denoiser.state_dict().items()}


def test_several_averages_are_denoisers_of_their_own(cedm: Cedm, workplace: Path) -> None:
    settings = ["conditioning=none", *TINY_EDM, "evaluation.backbone=null", "training.extra_ema_halflife_kimg=[0.2,50]"]
    assert cedm("train", *settings, "training.ema_rampup_ratio=null", "run_dir=run").code == 0
    files = ["denoiser.safetensors", "denoiser-ema0.2kimg.safetensors", "denoiser-ema50kimg.safetensors"]
    assert {path.name for path in (workplace / "run").glob("denoiser*")} == set(files)
    metas = [Denoiser.from_pretrained(workplace / "run" / name).meta for name in files]
    assert [meta["ema_halflife_kimg"] for meta in metas] == [10, 0.2, 50]
    assert cedm("generate", f"ckpt=run/{files[1]}", "num=1", "steps=1", "run_dir=generated").code == 0


@pytest.mark.slow
def test_compiling_changes_no_file(cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and snapshots have the same names, and nearly the same values."""
    settings = ["conditioning=none", *TINY_EDM, "evaluation.backbone=null", "network.channel_mult=[1]"]
    settings += ["network.attn_resolutions=[]"]
    assert cedm("train", *settings, "run_dir=eager").code == 0
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # PyTorch may have set it for another test
    result = cedm("train", *settings, "trainer.compile=true", "run_dir=compiled")
    assert result.code == 0, result.err
    assert list(workplace.glob("cache/compiled/**/*.so"))
    eager, compiled = weights(workplace / "eager"), weights(workplace / "compiled")
    assert eager.keys() == compiled.keys()
    assert all(np.allclose(eager[name], compiled[name], rtol=1e-2, atol=1e-3) for name in eager)
    snapshots = [
        torch.load(max((workplace / folder / "snapshots").glob("*.ckpt")))["state_dict"]
        for folder in ("eager", "compiled")
    ]
    assert snapshots[0].keys() == snapshots[1].keys()


def test_training_on_an_assignments_file(cedm: Cedm, workplace: Path) -> None:
    """A file in data-set order takes the place of the cached pseudo-labels; empty clusters are dropped."""
    ids = np.arange(1797) % 4 * 3
    np.save(workplace / "ids.npy", ids)
    assert cedm("train", *TINY_EDM, "assignments=ids.npy", "evaluation.backbone=null").code == 0
    trained = only(workplace, "runs/digits/train-assignments-*/*")
    denoiser = Denoiser.from_pretrained(trained / "denoiser.safetensors")
    assert denoiser.label_dim == 4
    assert denoiser.cluster_ids is not None
    assert denoiser.cluster_ids.tolist() == [0, 3, 6, 9]


def test_unconditional_training(cedm: Cedm, workplace: Path) -> None:
    assert cedm("train", *TINY_EDM, "conditioning=none").code == 0
    trained = only(workplace, "runs/digits/train-none/*")
    assert Denoiser.from_pretrained(trained / "denoiser.safetensors").label_dim == 0
    result = cedm("generate", f"ckpt={trained}", "num=2", "steps=2", "clusters=uniform")
    assert result.code == 2
    assert "trained without clusters" in result.err


@pytest.mark.parametrize("method", ["kmeans", "labels", "random"])
def test_other_sources_of_groups_write_the_same_artifact(cedm: Cedm, workplace: Path, method: str) -> None:
    cedm("embed")
    result = cedm("cluster", f"clustering={method}", "run_dir=run")
    assert result.code == 0, result.err
    labels = PseudoLabels.load(workplace / "run/pseudo_labels.safetensors")
    expected = {"kmeans": 40, "labels": 10, "random": 40}[method]
    assert labels.num_clusters == labels.num_used == expected
    nmi = summary(workplace / "run")["nmi"]
    assert {"kmeans": nmi > 60, "labels": nmi == pytest.approx(100), "random": nmi < 15}[method]


def test_fine_tuning_starts_from_a_denoiser(cedm: Cedm, workplace: Path) -> None:
    """Also for other groups: what depends on the labels starts anew, all else is taken over."""
    settings = ["conditioning=none", *TINY_EDM, "evaluation.backbone=null"]
    assert cedm("train", *settings, "run_dir=first").code == 0
    frozen = ["training.lr=1e-30", "init_from=first/denoiser.safetensors"]
    assert cedm("train", *settings, *frozen, "run_dir=second").code == 0
    first, second = weights(workplace / "first"), weights(workplace / "second")
    assert all(np.allclose(first[name], second[name], atol=1e-6) for name in first)
    cedm("cluster", "clustering=random")
    labelled = [*settings[1:], *frozen, "clustering=random", "run_dir=third"]
    assert cedm("train", *labelled).code == 0
    assert cedm("train", *settings, *frozen, "run_dir=x", "network.model_channels=16").code == 2
    again = [*settings, "training.lr=1e-30", "run_dir=second"]
    assert "Nothing to do" in cedm("train", *again, "init_from=first").out  # the same weights under another name
    assert cedm("train", *again, "init_from=third").code == 2


def test_label_weights_are_kept_for_the_same_pseudo_labels_alone(cedm: Cedm, workplace: Path) -> None:
    """Clusters 0…4 of another clustering are other clusters, though their ids are equal."""
    settings = [*TINY_EDM, "evaluation.backbone=null", "clustering=random", "clustering.num_clusters=5"]
    frozen = ["training.lr=1e-30", "init_from=first"]
    for seed in (0, 1):
        assert cedm("cluster", *settings[-2:], f"seed={seed}").code == 0
    assert cedm("train", *settings, "training.lr=0.05", "training.lr_rampup_kimg=0", "run_dir=first").code == 0
    same = cedm("train", *settings, *frozen, "run_dir=same")
    other = cedm("train", *settings, *frozen, "seed=1", "run_dir=other")
    assert (same.code, other.code) == (0, 0), other.err
    assert "other pseudo-labels" in other.out
    assert "init_from   first" not in same.out
    unknown, of_other_images = Denoiser.from_pretrained("first"), Denoiser.from_pretrained("first")
    of_other_images.meta["images"] = "of another array whose ids and sorted classes are the same"
    assert other_clusters(unknown, unknown) is None
    assert other_clusters(unknown, of_other_images) == "it was trained on other images"
    unknown.meta = {}
    unknown.save_pretrained("older.safetensors")
    older = cedm("train", *settings, frozen[0], "init_from=older.safetensors", "run_dir=older")
    assert "does not tell" in older.out
    first = weights(workplace / "first")
    for folder, kept in (("same", True), ("other", False), ("older", False)):
        now = weights(workplace / folder)
        assert np.allclose(now["model.map_layer0.weight"], first["model.map_layer0.weight"], atol=1e-6)
        assert np.allclose(now["model.map_label.weight"], first["model.map_label.weight"], atol=1e-6) == kept, folder


def test_without_inception_weights_the_distance_has_another_name(
    cedm: Cedm, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never `fid` for what is no FID: the run's own backbone takes its place, under its own name."""

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(workplace / "hub"))
    result = cedm("train", "conditioning=none", *TINY_EDM, "evaluation.backbone=inception", "run_dir=run")
    assert result.code == 0, result.err
    assert "pixels, instead" in result.out
    results = summary(workplace / "run")
    assert "fid" not in results
    assert results["fd_pixels"] > 0
    assert results["distances"]["extractor"]["kind"] == "pixels"


def test_a_run_that_ended_before_its_summary_only_lacks_the_summary(cedm: Cedm, workplace: Path) -> None:
    settings = ["conditioning=none", *TINY_EDM, "run_dir=run"]
    assert cedm("train", *settings).code == 0
    before = summary(workplace / "run")
    (workplace / "run/summary.json").unlink()
    assert cedm("train", *settings).code == 0
    assert summary(workplace / "run") == before


def test_stages_that_a_training_does_not_need_say_so(cedm: Cedm, workplace: Path) -> None:
    for settings in (["conditioning=none"], ["assignments=ids.npy"], ["clustering=labels"]):
        assert "Nothing to do" in cedm("embed", *settings).out
    for settings in (["conditioning=none"], ["assignments=ids.npy"]):
        assert "Nothing to do" in cedm("cluster", *settings).out
    assert not (workplace / "runs").exists()


def test_a_run_folder_is_one_commands(cedm: Cedm, workplace: Path) -> None:
    assert cedm("cluster", "clustering=random", "run_dir=run").code == 0
    refused = cedm("train", "clustering=random", *TINY_EDM, "run_dir=run")
    assert refused.code == 2
    assert "run_dir" in refused.err


def test_a_folder_of_images_with_a_transformers_backbone(cedm: Cedm, workplace: Path) -> None:
    """The published settings' own path, through the real loader, with a tiny network in place of DINO's weights."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained("weights")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("weights")
    rng = np.random.default_rng(0)
    for index in range(24):
        path = workplace / "my images" / f"{index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)).save(path)
    settings = [
        "dataset=folder",
        'dataset.path="my images/"',
        "dataset.resolution=16",
        "backbone.path=weights",
        *TINY_TEMI,
        "clustering.num_neighbours=4",
        "clustering.batch_size=8",
        "evaluation.backbone=null",
        "network.channel_mult=[1]",
        "network.attn_resolutions=[]",
        *TINY_EDM,
        "training.batch_size=8",
        "trainer.precision=32-true",
    ]
    for command in ("embed", "cluster", "train"):
        result = cedm(command, *settings)
        assert result.code == 0, result.err
    embedded = summary(only(workplace, "runs/my-images/embed-dino_vitb16/*"))
    assert embedded["num_features"] == 16
    assert embedded["backbone"]["output"] == "cls_token"
    trained = only(workplace, "runs/my-images/train-temi-5/*")
    assert Denoiser.from_pretrained(trained / "denoiser.safetensors").img_channels == 3
