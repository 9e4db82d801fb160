"""`cedm cluster`: embeddings → pseudo-labels, and for TEMI the head that can label new images."""

import sys

from datamodules.images.sources import ImageSource, open_source
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.clustering.assignment import ClusteringHead
<<<<<<< HEAD
from lightning_modules.clustering.clustering_settings import CLIPSettings, LabelsSettings, TEMISettings
from pipeline.running.cluster_scores import cluster_summary, describe
from pipeline.running.condition import Condition
=======
from lightning_modules.clustering.clustering_settings import TEMISettings
from lightning_modules.clustering.kmeans import kmeans, random_groups
from lightning_modules.clustering.zero_shot import zero_shot
from lightning_modules.temi_module import TEMIModule
from pipeline.commands.score import scores
from pipeline.pictures.cluster_pictures import map_of, thumbnails, write_pictures
from pipeline.running.fit import fit
from pipeline.running.processes import join
>>>>>>> inner
from pipeline.running.run_folder import (
    choose_run_folder,
    opened_run_folder,
    run_settings,
    runs_of,
    write_summary_where_asked,
)
from pipeline.settings.door import typed_command
from pipeline.settings.schemas import SharedSettings
from storage.errors import DamagedArtifactError, MissingArtifactError
from storage.files import set_aside

<<<<<<< HEAD
=======
UTILIZATION_LOOKS = 20  # how often the whole data set is assigned during the training
METHODS = {"temi": "TEMI", "kmeans": "k-means", "labels": "given labels", "random": "random groups", "clip": "CLIP"}
NAMED_GROUPS = ("labels", "clip")  # as many clusters as there are names
>>>>>>> inner

def cluster(settings: SharedSettings) -> None:
    """Cluster the images, unless the pseudo-labels of these settings are in the cache already."""
    condition = Condition.of(settings)
    reason = condition.needs_no("cluster")
    if reason is not None:
        print(f"Nothing to do: no pseudo-labels are made for {reason}.")
        return
    source = open_source(settings.dataset, settings.cache_dir)
    condition.check(source)
    path = condition.pseudo_labels_path(source)
    inputs = {"dataset": source.fingerprint}
    run = run_settings(settings, inputs, ("dataset", "backbone", "clustering", "seed"))
    labels = None if settings.overwrite else made_before(condition, source)
    if labels is not None:
        print(f"Nothing to do: the pseudo-labels are there already.\n{describe(labels, path)}")
        results = cluster_summary(labels, source, path)
        write_summary_where_asked(settings.run_dir, "cluster", results, inputs, run)
        print(f"Next: {typed_command('train')}")
        return

    from pipeline.running.clustering import Clustering  # Lightning takes seconds to import
    from pipeline.running.processes import join

    parent = runs_of(settings.dataset.name, f"cluster-{name_of(condition)}")
    machine, folder = join(
        settings.trainer, lambda: choose_run_folder(settings.run_dir, parent, run, settings.overwrite)
    )
    clustering = Clustering(condition, source, folder, settings.map_images)
    data = clustering.temi_data(machine.world_size) if isinstance(condition.clustering, TEMISettings) else None
    with opened_run_folder(folder, run, settings.overwrite, machine.rank):
        if machine.rank == 0:
            print(f"{source.name}: {len(source):,} images; {condition.method} on {machine}; run folder {folder}")
        if data is None:
            labels = clustering.without_training()
        else:
            labels = clustering.train_temi(data, settings.trainer, settings.overwrite)
        if machine.rank == 0:
            pictures = clustering.write(labels)
            print(f"{describe(labels, path)}\npictures       {', '.join(map(str, pictures))}")
            print(f"Next: {typed_command('train')}")


def made_before(condition: Condition, source: ImageSource) -> PseudoLabels | None:
    """The pseudo-labels in the cache, and for TEMI the head too; a damaged file is set aside, to be made again."""
    file = condition.pseudo_labels_path(source)
    try:
        labels = PseudoLabels.load(file)
        if isinstance(condition.clustering, TEMISettings):
            file = condition.head_path(source)
            ClusteringHead.load(file)
        return labels
    except MissingArtifactError:
        return None
    except DamagedArtifactError as error:
        print(f"{error} Set aside as {set_aside(file).name}; making it again.", file=sys.stderr)
        return None


<<<<<<< HEAD
def name_of(condition: Condition) -> str:
    """Method and number of clusters, but where that is the number of names: `temi-40`, `labels`."""
    clustering = condition.clustering
    if isinstance(clustering, LabelsSettings | CLIPSettings):
        return clustering.method
    return f"{clustering.method}-{clustering.num_clusters}"
=======
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
    module = TEMIModule(TEMISettings(**plain(clustering)), data.dim, data.steps_per_epoch)
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
        precision=clustering.precision,
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
        texts = embed_class_names(plain(cfg.backbone), names, cfg.clustering.prompt)
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
>>>>>>> inner
