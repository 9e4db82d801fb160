"""Whether TEMI wants standardised embeddings: its scores on real ones, both ways. Minutes, so only when asked for."""

import json
import os
import sys
import time
import zipfile
from pathlib import Path

import torch
from lightning import Trainer
from safetensors.torch import load_file
from torch import Tensor

from datamodules.embedding_datamodule import EmbeddingDataModule
from datamodules.embeddings.embeddings import Embeddings
from datamodules.embeddings.neighbours import find_neighbours
from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.temi_module import TEMIModule
from metrics.clustering import ClusteringScores


def bench_standardise(seeds: tuple[int, ...] = (0, 1), clusters: tuple[int, ...] = (10,)) -> None:
    """CIFAR-10 by 64 features of a ResNet-56, from `CEDM_TEST_DATA`: a row per C and seed, raw beside standardised."""
    values, labels = cifar10(Path(os.environ.get("CEDM_TEST_DATA", "")))
    embeddings = Embeddings(values, values.mean(dim=0), values.std(dim=0, correction=0), {})
    neighbours = find_neighbours(values, 50).indices
    for num_clusters in clusters:
        settings = TEMISettings(num_clusters=num_clusters, num_heads=4, batch_size=1024, max_epochs=40)
        for seed in seeds:
            for standardise in (False, True):
                start = time.perf_counter()
                ids = clustered(embeddings, neighbours, settings, seed, standardise)
                scores = ClusteringScores(num_classes=10, num_clusters=num_clusters)
                scores.update(ids, labels)
                told = {name: round(float(value), 1) for name, value in scores.compute().items()}
                shown = f"NMI {told['nmi']}, accuracy {told['accuracy']}, {told['num_used']:.0f} used"
                what = "standardised" if standardise else "raw"
                took = f"{time.perf_counter() - start:.0f} s"
                print(f"C = {num_clusters}, seed {seed}, {what:<12}  {shown}, {took}", flush=True)


def cifar10(folder: Path) -> tuple[Tensor, Tensor]:
    """Embeddings float32 [50000, 64] and labels int64 [50000], in the order of EDM's ZIP."""
    if not (folder / "cifar10-train.zip").is_file():
        sys.exit("error: the part standardise needs CEDM_TEST_DATA, the folder of the shared real data.")
    values = load_file(folder / "cifar10-resnet56-embeddings.safetensors")["embeddings"].float()
    with zipfile.ZipFile(folder / "cifar10-train.zip") as file:
        labelled = sorted(json.loads(file.read("dataset.json"))["labels"])
    return values, torch.tensor([label for _, label in labelled])


def clustered(
    embeddings: Embeddings, neighbours: Tensor, settings: TEMISettings, seed: int, standardise: bool
) -> Tensor:
    """Cluster ids int64 [N] by the best head."""
    data = EmbeddingDataModule(
        embeddings, neighbours, settings.batch_size, settings.num_neighbours, seed=seed, standardise=standardise
    )
    torch.manual_seed(seed)
    module = TEMIModule(settings, data.dim, data.steps_per_epoch)
    Trainer(
        max_steps=module.max_steps,
        max_epochs=-1,
        devices=1,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)
    return module.predict(embeddings.head_inputs(standardise))[0].cpu()
