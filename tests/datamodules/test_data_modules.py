"""Data modules: batches as promised, resumed and distributed runs that see what one run sees, errors in words."""

from itertools import islice
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from datamodules.embedding_datamodule import EmbeddingDataModule, PairBatch
from datamodules.embeddings.embeddings import Embeddings
from datamodules.embeddings.neighbours import find_neighbours
from datamodules.image_datamodule import ImageBatch, ImageDataModule
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from storage.errors import UserError

from .images.test_sources import zip_folder
from .opening import opened


@pytest.fixture
def embeddings() -> Embeddings:
    values = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    return Embeddings.of(values)


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")  # image n is of colour n
    return opened("folder", tmp_path)


@pytest.fixture
def labels(source: ImageSource) -> PseudoLabels:
    """Cluster 3·(n mod 4) for image n, listed in another order than the source's, with an image that it lacks."""
    ids = [*source.ids[::-1], "other.png"]
    cluster_ids = torch.tensor([*(3 * (number % 4) for number in range(19, -1, -1)), 11])
    return PseudoLabels(cluster_ids, 12, torch.ones(21), ids)


class Recorder(L.LightningModule):
    """Keeps every batch it is given; takes an optimizer step as a training run would."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches: list[tuple[Tensor, ...]] = []

    def training_step(self, batch: ImageBatch | PairBatch, batch_idx: int) -> Tensor:
        self.batches.append(tuple(part.clone() for part in batch))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    data: L.LightningDataModule, folder: Path, max_steps: int, accumulate: int = 1, resume: bool = False
) -> Recorder:
    module = Recorder()
    trainer = L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=folder / "last.ckpt" if resume else None)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module


def assert_same_batches(first: list[tuple[Tensor, ...]], second: list[tuple[Tensor, ...]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_images_keep_their_own_labels(source: ImageSource, labels: PseudoLabels):
    data = ImageDataModule(source, labels, resolution=8, channels=3, batch_size=10)
    batches = list(islice(data.train_dataloader(), 4))
    seen = torch.cat([batch.images[:, 0, 0, 0] for batch in batches])
    assert torch.equal(torch.cat([batch.labels for batch in batches]), seen % 4)
    assert torch.equal(torch.cat([batch.positions for batch in batches]), torch.arange(40))
    assert seen[:20].sort().values.tolist() == seen[20:].sort().values.tolist() == list(range(20))
    assert (batches[0].images.dtype, batches[0].images.shape) == (torch.uint8, (10, 3, 8, 8))
    assert data.num_classes == 4
    assert data.cluster_ids is not None
    assert data.cluster_ids.tolist() == [0, 3, 6, 9]  # cluster 11 holds no image of this source
    assert data.class_frequencies is not None
    assert data.class_frequencies.tolist() == [0.25] * 4


def test_without_pseudo_labels_every_label_is_minus_one(source: ImageSource):
    data = ImageDataModule(source, None, resolution=8, channels=3, batch_size=5)
    assert next(iter(data.train_dataloader())).labels.tolist() == [-1] * 5
    assert (data.num_classes, data.class_frequencies, data.cluster_ids) == (0, None, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_sees_the_images_that_an_uninterrupted_one_sees(
    num_workers: int, source: ImageSource, labels: PseudoLabels, tmp_path: Path
):
    def data() -> ImageDataModule:
        memory_gb = 0 if num_workers else 8
        return ImageDataModule(
            source, labels, 8, 3, batch_size=6, accumulate=2, seed=4, num_workers=num_workers, memory_gb=memory_gb
        )

    whole = fit(data(), tmp_path / "whole", max_steps=9, accumulate=2).batches
    begun = fit(data(), tmp_path / "parts", max_steps=4, accumulate=2).batches
    rest = fit(data(), tmp_path / "parts", max_steps=9, accumulate=2, resume=True).batches
    assert len(whole) == 18
    assert_same_batches(whole, begun + rest)


def test_streaming_workers_and_memory_give_the_same_batches(source: ImageSource, labels: PseudoLabels):
    resident = ImageDataModule(source, labels, 8, 3, batch_size=7)
    streamed = ImageDataModule(source, labels, 8, 3, batch_size=7, num_workers=2, memory_gb=0)
    assert_same_batches(list(islice(resident.train_dataloader(), 6)), list(islice(streamed.train_dataloader(), 6)))
    assert resident.store is not None
    assert streamed.store is not None
    assert (resident.store.in_memory, streamed.store.in_memory) == (True, False)


CHANGES = ("same size", "longer", "truncated", "replaced", "gone")


@pytest.mark.parametrize(
    ("kind", "change", "workers"),
    [*((kind, change, 0) for kind in ("folder", "zip", "array") for change in CHANGES), ("folder", "truncated", 2)],
)
def test_images_that_change_while_they_are_streamed_are_named(tmp_path: Path, kind: str, change: str, workers: int):
    source = opened(kind, write_images(tmp_path, kind))
    data = ImageDataModule(source, None, 8, 3, batch_size=8, num_workers=workers, memory_gb=0)
    batches = iter(data.train_dataloader())
    for _ in range(4):  # each image once; from there on workers are ahead
        next(batches)
    path = tmp_path / {"folder": "images/00.png", "zip": "a.zip", "array": "a.npy"}[kind]
    content = path.read_bytes()
    if change == "replaced":
        path.with_name("other").write_bytes(content + b"more")
        path.with_name("other").replace(path)
    elif change == "gone":
        path.unlink()
    else:
        path.write_bytes({"same size": content, "longer": content + b"more", "truncated": content[:-9]}[change])
    if kind == "zip" and change in ("replaced", "gone"):  # the archive that was listed is still open
        assert len(next(batches).images) == 8
        return
    with pytest.raises(UserError, match=rf"^{path} (has changed|is gone)") as refused:
        list(islice(batches, 12))
    assert "Traceback" not in str(refused.value)


def write_images(folder: Path, kind: str) -> Path:
    """32 random images, 8×8; the place to open them."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    if kind == "array":
        np.save(folder / "a.npy", pixels)
        return folder / "a.npy"
    images = folder / "images"
    images.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{number:02d}.png")
    return images if kind == "folder" else zip_folder(images, folder / "a.zip")


def test_impossible_batches_are_refused_in_words(source: ImageSource, labels: PseudoLabels):
    with pytest.raises(UserError, match="batch_size=21 is larger than the data set of 20 images"):
        ImageDataModule(source, labels, 8, 3, batch_size=21)
    with pytest.raises(UserError, match=r"batch_size=10 .* 4 accumulated passes = 4; for example"):
        ImageDataModule(source, labels, 8, 3, batch_size=10, accumulate=4).setup()
    with pytest.raises(UserError, match="have no pseudo-label"):
        ImageDataModule(source, labels.select(source.ids[1:]), 8, 3, batch_size=4)


def test_pairs_are_an_image_and_one_of_its_nearest(embeddings: Embeddings):
    neighbours = find_neighbours(embeddings.values, 8).indices
    data = EmbeddingDataModule(embeddings, neighbours, batch_size=12, num_neighbours=5, seed=1)
    assert data.steps_per_epoch == 4
    drawn: set[int] = set()
    for pairs in islice(data.train_dataloader(), 100):
        places = (neighbours[pairs.indices, :5] == pairs.neighbours[:, None]).nonzero()
        assert len(places) == 12
        drawn.update(places[:, 1].tolist())
    assert drawn == {0, 1, 2, 3, 4}
    batch = data.on_after_batch_transfer(pairs, 0)
    standardised = (embeddings.values - embeddings.values.mean(dim=0)) / embeddings.values.std(dim=0, correction=0)
    torch.testing.assert_close(batch.images, standardised[pairs.indices])
    torch.testing.assert_close(batch.neighbours, standardised[pairs.neighbours])


def test_raw_embeddings_reach_heads_as_they_are(embeddings: Embeddings):
    neighbours = find_neighbours(embeddings.values, 3).indices
    data = EmbeddingDataModule(embeddings, neighbours, batch_size=12, num_neighbours=3, standardise=False)
    pairs = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(pairs, 0)
    assert torch.equal(batch.images, embeddings.values[pairs.indices])
    assert torch.equal(batch.neighbours, embeddings.values[pairs.neighbours])
    mean, std = embeddings.scaling(standardise=False)  # what a head's file holds then
    assert torch.equal((embeddings.values - mean) / std, embeddings.values)


def test_an_epoch_of_pairs_shows_no_image_twice(embeddings: Embeddings):
    data = EmbeddingDataModule(embeddings, find_neighbours(embeddings.values, 3).indices, 12, num_neighbours=3)
    batches = list(islice(data.train_dataloader(), 2 * data.steps_per_epoch))
    for epoch in (batches[:4], batches[4:]):
        assert len(torch.cat([pairs.indices for pairs in epoch]).unique()) == 48


@pytest.mark.filterwarnings("ignore")
def test_resumed_pairs_are_those_of_an_uninterrupted_run(embeddings: Embeddings, tmp_path: Path):
    neighbours = find_neighbours(embeddings.values, 8).indices

    def data() -> EmbeddingDataModule:
        return EmbeddingDataModule(embeddings, neighbours, batch_size=12, num_neighbours=8, seed=1)

    whole = fit(data(), tmp_path / "whole", max_steps=11).batches
    begun = fit(data(), tmp_path / "parts", max_steps=5).batches
    rest = fit(data(), tmp_path / "parts", max_steps=11, resume=True).batches
    assert_same_batches(whole, begun + rest)


def test_evaluation_shows_each_image_once_over_all_ranks(embeddings: Embeddings):
    data = EmbeddingDataModule(embeddings, find_neighbours(embeddings.values, 3).indices, 12, num_neighbours=3)
    batches = [batch for rank in range(3) for batch in data.evaluation_batches(rank, world_size=3, batch_size=7)]
    indices = torch.cat([indices for indices, _ in batches])
    assert sorted(indices.tolist()) == list(range(50))
    torch.testing.assert_close(torch.cat([values for _, values in batches]), embeddings.head_inputs(True)[indices])


def test_impossible_pairs_are_refused_in_words(embeddings: Embeddings):
    neighbours = find_neighbours(embeddings.values, 49).indices
    with pytest.raises(UserError, match="batch_size=51 is larger"):
        EmbeddingDataModule(embeddings, neighbours, batch_size=51, num_neighbours=5)
    with pytest.raises(UserError, match="a data set of 50 images has 49 at most"):
        EmbeddingDataModule(embeddings, neighbours, batch_size=12, num_neighbours=50)


def _record_rank(rank: int, folder: Path, data: ImageDataModule) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    data.trainer = type("Place", (), {"world_size": 2, "num_devices": 2, "global_rank": rank, "global_step": 3})()
    batches = list(islice(data.train_dataloader(), 4))
    gathered: list[list[ImageBatch]] = [[], []]
    torch.distributed.all_gather_object(gathered, batches)
    if rank == 0:
        torch.save(
            [tuple(torch.cat(parts) for parts in zip(*micro, strict=True)) for micro in zip(*gathered, strict=True)],
            folder / "out.pt",
        )
    torch.distributed.destroy_process_group()


def test_two_processes_together_see_the_images_of_one(source: ImageSource, labels: PseudoLabels, tmp_path: Path):
    def data() -> ImageDataModule:
        return ImageDataModule(source, labels, 8, 3, batch_size=8, accumulate=2, seed=2)

    torch.multiprocessing.start_processes(_record_rank, (tmp_path, data()), nprocs=2, start_method="fork")
    together = torch.load(tmp_path / "out.pt", weights_only=True)
    alone = [tuple(batch) for batch in islice(data().train_dataloader(), 3 * 2, 3 * 2 + 4)]
    assert_same_batches(together, alone)
    assert np.prod(alone[0][0].shape) == 4 * 3 * 8 * 8
