"""`cedm evaluate` on digits: numbers against independent ones, one pass, going on, and what users get wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from datamodules.backbones.backbone_base import Backbone
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import build_backbone
from datamodules.images.dataset_settings import DatasetSettings
from pipeline.evaluation.memorised import count_copies, rows_within

from ..faults.jobs import Forks
from .conftest import Cedm, summary

SCORES = (
    "fd_pixels", "sw_pixels", "precision", "recall", "density", "coverage", "clipped_density", "clipped_coverage",
)  # fmt: skip
PLAIN_FD = ["metrics=[fd]", "memorisation=false"]


def digits() -> np.ndarray:
    return np.rint(load_digits().images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]


def write_pngs(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:05d}.png")
    return folder


@pytest.fixture
def drawn(workplace: Path) -> Path:
    """300 "generated" digits: noise on real ones."""
    noise = np.random.default_rng(0).normal(0, 30, (300, 8, 8))
    return write_pngs(workplace / "drawn", np.clip(digits()[::5][:300] + noise, 0, 255).astype(np.uint8))


def test_the_numbers_are_those_of_torch_fidelity(cedm: Cedm, drawn: Path, workplace: Path) -> None:
    """On the same features; and a finished evaluation says so."""
    result = cedm("evaluate", f"generated={drawn}", "run_dir=run", "prdc.k_density_coverage=3")
    assert result.code == 0, result.err
    found = summary("run")
    images = np.stack([np.array(Image.open(path)) for path in sorted(drawn.glob("*.png"))])
    ours, theirs = (torch.from_numpy(side.reshape(len(side), -1) / 127.5 - 1).float() for side in (images, digits()))
    fid = fid_statistics_to_metric(*(fid_features_to_statistics(f.double()) for f in (ours, theirs)), verbose=False)
    assert found["fd_pixels"] == pytest.approx(fid["frechet_inception_distance"], rel=1e-5)
    prc = prc_features_to_metric(
        ours, theirs, prc_neighborhood=3, prc_batch_size=5000, save_cpu_ram=True, verbose=False
    )
    assert found["precision"] == pytest.approx(prc["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(prc["recall"], abs=1e-6)

    ((low, high),) = found["scores"]["fd_pixels"]["intervals"]
    assert 0 < low < (low + high) / 2 == pytest.approx(found["fd_pixels"])
    protocol = found["scores"]["fd_pixels"]["protocol"]
    assert protocol["extractor"] == {"name": "pixels", "kind": "pixels", "resolution": 8, "channels": 1}
    assert (protocol["generated"][0]["num_images"], protocol["reference"]["num_images"]) == (300, 1797)
    assert protocol["reference"]["fingerprint"] == found["inputs"]["reference"]
    assert found["scores"]["precision"]["protocol"]["k"] == 3
    memory = found["memorisation"][0]
    assert found["copies"] == memory["copies"] == 0
    assert found["authenticity"] == memory["authenticity"] < 1
    assert 0.3 < found["scores"]["authenticity"]["protocol"]["of_training_images"] < 0.7
    assert Image.open(memory["picture"]).width > 300
    events = EventAccumulator(str(workplace / "run")).Reload()
    assert events.Scalars("evaluate/fd_pixels")[0].value == pytest.approx(found["fd_pixels"], rel=1e-5)
    assert events.Tags()["images"] == ["evaluate/nearest_training_images"]

    again = cedm("evaluate", f"generated={drawn}", "run_dir=run", "prdc.k_density_coverage=3")
    assert "Nothing to do" in again.out
    assert "fd_pixels ↓" in again.out


def test_a_model_its_images_and_their_zip_have_the_same_distances(cedm: Cedm, model: Path, workplace: Path) -> None:
    """Whatever the batch; and the protocol of the files still says how they were made."""
    generate = ["num=60", "steps=3", f"ckpt={model}"]
    assert cedm("generate", *generate, "run_dir=pngs").code == 0
    assert cedm("generate", *generate, "run_dir=zipped", "format=zip").code == 0
    made = [f"generated={model}", "num=60", "steps=3"]
    runs = [[*made, "batch_size=7"], [*made, "batch_size=64"], ["generated=pngs"], ["generated=zipped"]]
    found = []
    for number, overrides in enumerate(runs):
        result = cedm("evaluate", *overrides, f"run_dir=run{number}")
        assert result.code == 0, result.err
        found.append(summary(f"run{number}"))
    for other in found[1:]:
        assert [other[name] for name in SCORES] == pytest.approx([found[0][name] for name in SCORES], rel=1e-6)
    of_model, of_files = (run["scores"]["recall"]["protocol"]["generated"][0] for run in (found[0], found[2]))
    assert (of_model["seeds"], of_model["steps"]) == ("0 to 59", 3)
    assert of_files["made_by"]["steps"] == 3
    assert of_files["made_by"]["inputs"]["denoiser"] == of_model["sha256"]


def test_each_image_is_seen_once(
    cedm: Cedm, drawn: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, dinov2: Path
) -> None:
    """By each extractor, whatever the number of metrics; those of the data set never again."""
    seen: dict[str, int] = {}
    extract = Backbone.extract

    def counted(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 1:  # one alone tells how long a feature vector is
            seen[self.name] = seen.get(self.name, 0) + len(images)
        return extract(self, images)

    run = ["evaluate", f"generated={drawn}", "dataset.max_images=200", f"evaluation.weights.dinov2_vitl14={dinov2}"]
    everything = ["metrics=[fd,fdd,prdc]", "prdc.num_images=100"]
    with monkeypatch.context() as counting:
        counting.setattr(Backbone, "extract", counted)
        assert cedm(*run, *everything).code == 0
        assert seen == {"dinov2_vitl14": 300 + 200, "pixels": 300 + 200}
        seen.clear()
        assert cedm(*run, *everything, "prdc.k_density_coverage=4").code == 0
        assert seen == {"dinov2_vitl14": 300, "pixels": 300}
    first, second = (summary(folder) for folder in sorted((workplace / "runs/digits/evaluate").iterdir()))
    assert first["fdd"] == second["fdd"] > 0
    assert first["fd_pixels"] == second["fd_pixels"]
    protocol = first["scores"]["precision"]["protocol"]
    assert protocol["extractor"]["name"] == "dinov2_vitl14"  # what prdc takes where fdd is asked for
    assert len(protocol["extractor"]["files"]["model.safetensors"]) == 64  # the weights' checksum
    assert (protocol["generated_images_used"], protocol["real_images_used"]) == (100, 100)


@pytest.fixture
def dinov2(workplace: Path) -> Path:
    """A tiny network in the format of DINOv2's weights."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, image_size=16, patch_size=8
    )
    Dinov2Model(config).save_pretrained(workplace / "dinov2")
    processor = BitImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    processor.save_pretrained(workplace / "dinov2")
    return workplace / "dinov2"


def test_a_distance_sees_the_borders(dinov2: Path) -> None:
    """Which the processor would crop away."""
    from pipeline.evaluation.reference import Extractors

    extractors = Extractors(BackboneSettings(), {"dinov2_vitl14": dinov2}, DatasetSettings(), "cache")
    settings = extractors.settings("dinov2_vitl14")
    images = torch.full((2, 3, 20, 20), 128, dtype=torch.uint8)
    images[1, :, 0] = 255
    extractor = extractors.build("dinov2_vitl14")
    one, other = extractor.extract(images)
    assert not torch.allclose(one, other, atol=1e-4)
    cropped = build_backbone(settings, 8, 1).extract(images)
    torch.testing.assert_close(cropped[0], cropped[1])
    assert extractor.identity == extractors.identity("dinov2_vitl14") != build_backbone(settings, 8, 1).identity


@pytest.mark.slow
def test_two_processes_equal_one(cedm: Cedm, model: Path, workplace: Path, forks: Forks) -> None:
    settings = [f"generated={model}", "num=61", "steps=3", "sets=2", "metrics=[fd,sw,prdc,clipped]"]
    np.save("clusters.npy", np.array([2, 5, 7])[load_digits().target % 3])
    settings += ["per_cluster=true", "assignments=clusters.npy"]
    assert cedm("evaluate", *settings, "run_dir=one").code == 0
    job = forks.start("evaluate", *settings, "cache_dir=other", "run_dir=two", folder=workplace, ranks=2)
    job.succeed()
    assert job.words().count("fd_pixels ↓") == 1
    one, both = summary("one"), summary("two")
    assert [row["cluster"] for row in one["per_cluster"]["clusters"]] != []
    for ours, theirs in zip(one["per_cluster"]["clusters"], both["per_cluster"]["clusters"], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    for name in (*SCORES, "kd_per_cluster_pixels"):
        assert both["scores"][name]["sets"] == pytest.approx(one["scores"][name]["sets"], rel=1e-6)
    for ours, theirs in zip(one["memorisation"], both["memorisation"], strict=True):
        assert ours["authenticity"] == theirs["authenticity"]
        assert [x["generated"] for x in ours["most_suspicious"]] == [x["generated"] for x in theirs["most_suspicious"]]


def test_three_sets_are_all_reported_and_a_stopped_run_goes_on(
    cedm: Cedm, model: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.evaluation.generated import GeneratedByModel

    settings = [f"generated={model}", "num=40", "steps=2", "sets=3", *PLAIN_FD, "run_dir=run"]
    gather, first_seeds = GeneratedByModel.gather, []

    def until_the_third(self: GeneratedByModel, indices: torch.Tensor) -> torch.Tensor:
        first_seeds.append(int(self.seeds[0]))
        if len(first_seeds) == 3:
            raise OSError("the power is gone")
        return gather(self, indices)

    monkeypatch.setattr(GeneratedByModel, "gather", until_the_third)
    with pytest.raises(OSError, match="power"):
        cedm("evaluate", *settings)
    assert not Path("run/summary.json").exists()
    assert cedm("evaluate", *settings).code == 0
    assert first_seeds == [0, 40, 80, 80]
    score = summary("run")["scores"]["fd_pixels"]
    assert len(set(score["sets"])) == 3
    assert score["best"] == min(score["sets"])
    assert score["mean"] == summary("run")["fd_pixels"] == pytest.approx(np.mean(score["sets"]))
    assert [g["seeds"] for g in score["protocol"]["generated"]] == ["0 to 39", "40 to 79", "80 to 119"]

    assert cedm("evaluate", f"generated={model}", "num=40", "steps=2", "first_seed=80", *PLAIN_FD).code == 0
    (alone,) = workplace.glob("runs/digits/evaluate/*")
    assert summary(alone)["fd_pixels"] == pytest.approx(score["sets"][2], rel=1e-6)

    for name, images in {"many": digits()[:70], "few": digits()[:50]}.items():
        write_pngs(workplace / name, images)
    assert cedm("evaluate", "generated=[many,few]", *PLAIN_FD, "run_dir=folders").code == 0
    assert [g["num_images"] for g in summary("folders")["scores"]["fd_pixels"]["protocol"]["generated"]] == [70, 50]


def test_reference_files_of_edm_serve_and_are_written(cedm: Cedm, drawn: Path) -> None:
    written = cedm("evaluate", f"generated={drawn}", *PLAIN_FD, "save_reference=digits.npz", "run_dir=a")
    assert written.code == 0, written.err
    with np.load("digits.npz") as arrays:
        np.testing.assert_allclose(arrays["mu"], (digits().reshape(1797, -1) / 127.5 - 1).mean(0), atol=1e-6)
        assert arrays["sigma"].shape == (64, 64)
    read = cedm("evaluate", f"generated={drawn}", "metrics=[fd]", "reference=digits.npz", "run_dir=b")
    assert "does not say which images" in read.out, read.err
    assert summary("b")["fd_pixels"] == pytest.approx(summary("a")["fd_pixels"], rel=1e-9)
    assert summary("b")["memorisation"] == []
    Path("digits.npz").unlink()  # a finished run writes it again
    assert cedm("evaluate", f"generated={drawn}", *PLAIN_FD, "save_reference=digits.npz", "run_dir=a").code == 0
    assert Path("digits.npz").exists()


def test_the_training_set_itself_is_noticed(cedm: Cedm, workplace: Path) -> None:
    write_pngs(workplace / "copies", digits())
    result = cedm("evaluate", "generated=copies", "run_dir=run")
    assert result.code == 0, result.err
    assert summary("run")["copies"] == 1797
    assert "is this the data set itself?" in result.out
    assert "fd_pixels is 0 but for rounding" in result.out
    some = digits()[:40].copy()
    some[10:] = 255 - some[10:]
    write_pngs(workplace / "some", some)
    assert "10 of 40 images are training images" in cedm("evaluate", "generated=some", "run_dir=other").out


def test_notes_on_lossy_files_and_on_recall_without_precision(cedm: Cedm, drawn: Path, workplace: Path) -> None:
    """Images far apart from the real ones and from one another reach all of them; the notes name the set."""
    noise = np.random.default_rng(0).integers(0, 2, (100, 8, 8), dtype=np.uint8) * 255
    write_pngs(workplace / "noise", noise)
    (workplace / "lossy").mkdir()
    for path in drawn.glob("*.png"):  # JPEG by content, whatever it is called
        Image.open(path).save(workplace / "lossy" / path.name, "JPEG", quality=95)
    result = cedm("evaluate", f"generated=[{drawn},lossy,noise]", "memorisation=false", "run_dir=run")
    assert result.code == 0, result.err
    found = summary("run")
    precision, recall = (found["scores"][name]["sets"] for name in ("precision", "recall"))
    assert (precision[2], recall[2]) == (0, 1)
    notes = [note.split(":")[0] for note in found["notes"] if "lose detail" in note or "Recall" in note]
    assert notes == ["Set 2", "Set 3"]
    described = found["scores"]["recall"]["protocol"]["generated"]
    assert [one["lossy"] for one in described] == [[], ["JPEG"], []]


def test_arrays_as_other_scripts_write_them_equal_the_files(cedm: Cedm, drawn: Path, workplace: Path) -> None:
    """ADM's and DiT's: uint8 [N, H, W, C] as `arr_0`, and in ADM's the labels as `arr_1`."""
    images = np.stack([np.array(Image.open(path)) for path in sorted(drawn.glob("*.png"))])[..., np.newaxis]
    np.savez("plain.npz", images)
    np.savez_compressed("labelled.npz", images, np.arange(300) - 7)
    np.savez("named.npz", samples=images[..., 0])
    np.save("plain.npy", images)
    runs = (str(drawn), "plain.npz", "labelled.npz", "named.npz", "plain.npy")
    found = []
    for number, generated in enumerate(runs):
        result = cedm("evaluate", f"generated={generated}", f"run_dir=run{number}")
        assert result.code == 0, result.err
        found.append({name: summary(f"run{number}")[name] for name in (*SCORES, "authenticity")})
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-9)


def test_every_copy_among_near_duplicates_is_counted(cedm: Cedm, workplace: Path) -> None:
    """Frames of a time-lapse: one pixel changes at a time, by one of its 256 values."""
    frames = np.cumsum(np.eye(64, dtype=np.uint8)[np.arange(200) % 64], axis=0).astype(np.uint8).reshape(-1, 8, 8) + 200
    write_pngs(workplace / "lapse", frames)
    others = frames[:20].copy()
    others[:, 7, 7] = 0
    write_pngs(workplace / "made", np.concatenate([frames[::2], others]))
    data = ["dataset=folder", "dataset.path=lapse", "dataset.resolution=8", "dataset.channels=1"]
    result = cedm("evaluate", *data, "generated=made", "metrics=[fd]", "evaluation.backbone=pixels", "run_dir=run")
    assert result.code == 0, result.err
    assert summary("run")["copies"] == 100


def test_a_copy_is_found_whatever_its_features_are_rounded_to() -> None:
    """Each feature of an image differs a little from batch to batch, by more than the images do from one another."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8, generator=generator)
    reference = 10 + 1e-6 * torch.randn(30, 8, generator=generator)
    features = torch.cat([reference, reference[:10]]) + 1e-5 * torch.randn(40, 8, generator=generator)
    made = torch.cat([pixels, 255 - pixels[:10]])

    class Images:
        def __init__(self, images: torch.Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def gather(self, indices: torch.Tensor) -> torch.Tensor:
            return self.images[indices]

    theirs = rows_within(features, reference, reach=1e-4)
    assert count_copies(Images(made), torch.arange(40), Images(pixels), theirs) == 30
    assert len(rows_within(features[:0], reference, reach=1.0)) == 0
