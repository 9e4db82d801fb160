"""`cedm cluster`: embeddings → pseudo-labels, and for TEMI the head that can label new images."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from omegaconf import DictConfig
from torch import Tensor

from callbacks.curve import draw_curves
from callbacks.schedule import EveryEpochs
from callbacks.snapshots import Snapshots
from callbacks.throughput import ImageProgressBar
from callbacks.utilization import UtilizationRatio
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.clip_text import embed_class_names
from datamodules.embedding_datamodule import EmbeddingDataModule
from datamodules.images.sources import ImageSource
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, made_for
from datamodules.stream import split_batch
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.clustering.kmeans import kmeans, random_groups
from lightning_modules.clustering.zero_shot import zero_shot
from lightning_modules.temi_module import TEMIModule
from pipeline.commands.score import scores
from pipeline.pictures.cluster_pictures import map_of, thumbnails, write_pictures
from pipeline.running.fit import fit
from pipeline.running.processes import join
from pipeline.running.run_folder import (
    choose_run_folder,
    opened_run_folder,
    run_settings,
    write_optional_summary,
    write_summary,
)
from pipeline.settings.command import command, typed_command
from pipeline.settings.inputs import (
    check_clustering,
    class_names_of,
    embeddings_if_there,
    embeddings_of,
    neighbours_of,
    not_needed,
    plain,
    pseudo_label_description,
    pseudo_labels_file,
    source_of,
)
from storage.errors import DamagedArtifactError, MissingArtifactError, UserError
from storage.files import set_aside

UTILIZATION_LOOKS = 20  # how often the whole data set is assigned during the training
METHODS = {"temi": "TEMI", "kmeans": "k-means", "labels": "given labels", "random": "random groups", "clip": "CLIP"}
NAMED_GROUPS = ("labels", "clip")  # as many clusters as there are names
NOT_OF_THE_MODULE = ("method", "num_neighbours", "neighbour_search")


@command
def cluster(cfg: DictConfig) -> None:
    reason = not_needed(cfg, "cluster")
    if reason is not None:
        print(f"Nothing to do: no pseudo-labels are made for {reason}.")
        return
    source = source_of(cfg)
    check_clustering(cfg, source)
    path = pseudo_labels_file(cfg, source)
    inputs = {"dataset": source.fingerprint}
    settings = run_settings(cfg, inputs, groups=("dataset", "backbone", "clustering", "trainer", "seed"))
    labels = None if cfg.overwrite else made_before(path, with_head=cfg.clustering.method == "temi")
    if labels is not None:
        print(f"Nothing to do: the pseudo-labels are there already.\n{describe(labels, path)}")
        write_optional_summary(cfg, "cluster", summary_of(labels, source, path), inputs, settings)
        print(f"Next: {typed_command('train')}")
        return
    what = f"cluster-{cfg.clustering.method}"
    if cfg.clustering.num_clusters is not None and cfg.clustering.method not in NAMED_GROUPS:
        what += f"-{cfg.clustering.num_clusters}"
    machine, folder = join(cfg, lambda: choose_run_folder(cfg, what, settings))
    temi = cfg.clustering.method == "temi"
    data = temi_data(cfg, source, machine.world_size) if temi else None
    with opened_run_folder(folder, settings, cfg.overwrite, machine.rank):
        if machine.rank == 0:
            print(f"{source.name}: {len(source):,} images; {cfg.clustering.method} on {machine}; run folder {folder}")
        labels = group(cfg, source) if data is None else train_temi(cfg, source, data, folder, path)
        if machine.rank == 0:
            pictures = write_results(cfg, labels, source, path, folder)
            print(f"{describe(labels, path)}\npictures       {', '.join(map(str, pictures))}")
            print(f"Next: {typed_command('train')}")


def made_before(path: Path, with_head: bool) -> PseudoLabels | None:
    """The pseudo-labels in the cache, and beside them the head; a damaged file is set aside, to be made again."""
    file = path
    try:
        labels = PseudoLabels.load(file)
        if with_head:
            file = head_file(path)
            ClusteringHead.load(file)
        return labels
    except MissingArtifactError:
        return None
    except DamagedArtifactError as error:
        print(f"{error}\nSet aside as {set_aside(file).name}; making it again.", file=sys.stderr)
        return None


def write_results(cfg: DictConfig, labels: PseudoLabels, source: ImageSource, path: Path, folder: Path) -> list[Path]:
    """The pseudo-labels, the pictures, whose paths it returns, and the summary into `folder`; then into the cache.

    What lies in the cache is taken for done, so nothing may be missing then.
    """
    labels.save(folder / "pseudo_labels.safetensors")
    labels.save_csv(folder / "pseudo_labels.csv")
    shown_map = map_of(cfg, embeddings_if_there(cfg, source))
    pictures = write_pictures(folder, labels, thumbnails(cfg, source), shown_map, title_of(cfg, source))
    write_summary(folder, "cluster", summary_of(labels, source, path), {"dataset": source.fingerprint})
    labels.save(path)
    return pictures


def temi_data(cfg: DictConfig, source: ImageSource, world_size: int) -> EmbeddingDataModule:
    """The pairs that TEMI is trained on.

    Raises:
        UserError: there are no embeddings yet, or the batch does not fit the data set or the devices.
    """
    clustering = cfg.clustering
    split_batch(clustering.batch_size, world_size)
    embeddings = embeddings_of(cfg, source)
    return EmbeddingDataModule(
        embeddings,
        neighbours_of(cfg, embeddings),
        batch_size=clustering.batch_size,
        num_neighbours=clustering.num_neighbours,
        seed=cfg.seed,
    )


def train_temi(
    cfg: DictConfig,
    source: ImageSource,
    data: EmbeddingDataModule,
    folder: Path,
    path: Path,
) -> PseudoLabels:
    """Train the heads, assign every image by the best teacher head, and write that head beside the pseudo-labels."""
    clustering, embeddings = cfg.clustering, data.embeddings
    torch.manual_seed(cfg.seed)
    module = TEMIModule(
        embedding_dim=data.dim,
        steps_per_epoch=data.steps_per_epoch,
        **{key: value for key, value in plain(clustering).items() if key not in NOT_OF_THE_MODULE},
    )
    every_epochs = max(1, clustering.max_epochs // UTILIZATION_LOOKS)
    utilization = UtilizationRatio(data.evaluation_batches, thumbnails(cfg, source).gather, every_epochs)
    callbacks: list[Callback] = [
        utilization,
        Snapshots(folder / "snapshots", EveryEpochs(every_epochs)),
        ImageProgressBar(clustering.batch_size, module.max_steps * clustering.batch_size, "TEMI", unit="pair"),
    ]
    fit(
        cfg,
        folder,
        module,
        data,
        callbacks,
        max_steps=module.max_steps,
        precision=cfg.trainer.precision,
        outcomes=("temi/utilization_ratio", "train/loss"),
        log_every_steps=max(1, min(50, data.steps_per_epoch)),
    )
    cluster_ids, confidence = (found.cpu() for found in module.predict(embeddings.standardised()))
    head = module.clustering_head(embeddings.mean, embeddings.std, embeddings.meta["backbone"])
    if module.global_rank == 0:
        for file in (folder / "head.safetensors", head_file(path)):
            head.save(file, {"dataset": source.name})
        draw_curves(
            folder / "utilization.png",
            {"": utilization.history},
            "epochs",
            "utilization ratio (clusters used / C)",
            title_of(cfg, source),
        )
    return pseudo_labels(cfg, source, cluster_ids, clustering.num_clusters, confidence)


def group(cfg: DictConfig, source: ImageSource) -> PseudoLabels:
    """Groups that need no training: k-means, the given labels, random ones, or CLIP's zero-shot classes."""
    method, num_clusters = cfg.clustering.method, cfg.clustering.num_clusters
    confidence, names = torch.ones(len(source)), None
    if method == "kmeans":
        cluster_ids, confidence = kmeans(embeddings_of(cfg, source).values, num_clusters, cfg.seed)
    elif method == "random":
        cluster_ids = random_groups(len(source), num_clusters, cfg.seed)
    elif method == "labels":
        assert source.labels is not None
        cluster_ids = source.labels
        names = source.class_names
        num_clusters = len(names) if names else int(source.labels.max()) + 1
    elif method == "clip":
        names = class_names_of(cfg, source)
        num_clusters = len(names)
        images = embeddings_of(cfg, source).values
        texts = embed_class_names(BackboneSettings(**plain(cfg.backbone)), names, cfg.clustering.prompt)
        cluster_ids, confidence = zero_shot(images, texts.embeddings, texts.logit_scale)
    else:
        raise UserError(f"clustering.method={method}: type clustering=temi, kmeans, labels, random or clip.")
    return pseudo_labels(cfg, source, cluster_ids, num_clusters, confidence, names)


def pseudo_labels(
    cfg: DictConfig,
    source: ImageSource,
    cluster_ids: Tensor,
    num_clusters: int,
    confidence: Tensor,
    cluster_names: list[str] | None = None,
) -> PseudoLabels:
    """The artifact's content, with the description of what made it."""
    meta = {"made_from": pseudo_label_description(cfg, source), "method": cfg.clustering.method, **made_for(source)}
    if cluster_names:
        meta["cluster_names"] = cluster_names
    return PseudoLabels(cluster_ids.long(), num_clusters, confidence.float(), list(source.ids), meta)


def head_file(path: Path) -> Path:
    """Where the head that made the pseudo-labels at `path` lies."""
    return path.with_name(f"{path.stem}-head.safetensors")


def title_of(cfg: DictConfig, source: ImageSource) -> str:
    """What stands above the pictures of a clustering."""
    clustering = cfg.clustering
    title = f"{source.name}, {METHODS[clustering.method]}"
    if clustering.method in NAMED_GROUPS:
        return title
    if clustering.method == "temi":
        title = f"{source.name}, {clustering.objective.upper()}"
        if clustering.objective == "temi":  # the others have no β
            title += f" with β = {clustering.beta}"
    return f"{title}, C = {clustering.num_clusters:,}"


def summary_of(labels: PseudoLabels, source: ImageSource, path: Path) -> dict[str, Any]:
    """What `summary.json` says of pseudo-labels: how they use the clusters and, with labels, how they score."""
    return {**scores(labels.cluster_ids, labels.num_clusters, source.labels), "pseudo_labels": str(path)}


def describe(labels: PseudoLabels, path: Path) -> str:
    """Two lines for the terminal."""
    counts = labels.counts[labels.counts > 0]
    use = f"{labels.num_used} of {labels.num_clusters} (utilization ratio {labels.utilization_ratio:.3f})"
    sizes = f"{int(counts.min())} to {int(counts.max())} images each"
    return f"pseudo-labels  {path}\nclusters used  {use}, {sizes}"


if __name__ == "__main__":
    cluster()
