"""`cedm cluster`: embeddings → pseudo-labels, and for TEMI the head that can label new images."""

import sys
from pathlib import Path

from datamodules.images.sources import ImageSource, open_source
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from lightning_modules.clustering.assignment import ClusteringHead
from lightning_modules.clustering.clustering_settings import CLIPSettings, LabelsSettings, TEMISettings
from pipeline.running.condition import Condition
from pipeline.running.run_folder import (
    choose_run_folder,
    opened_run_folder,
    run_settings,
    runs_of,
    write_summary_beside,
)
from pipeline.settings.door import typed_command
from pipeline.settings.schemas import SharedSettings
from storage.errors import DamagedArtifactError, MissingArtifactError
from storage.files import set_aside
from storage.settings import names_in


def cluster(settings: SharedSettings) -> None:
    """Cluster the images, unless the pseudo-labels of these settings are in the cache already."""
    condition = Condition.of(settings)
    reason = condition.needs_no("cluster")
    if reason is not None:
        print(f"Nothing to do: no pseudo-labels are made for {reason}.")
        return
    source = open_source(settings.dataset, settings.cache_dir, without_images=True)
    condition.check(source)
    path = condition.pseudo_labels_path(source)
    inputs = condition.inputs(source)
    run = run_settings(settings, inputs, ("dataset", "backbone", "clustering", "seed"))
    labels = None if settings.overwrite else made_before(condition, source)
    if labels is not None:
        print(f"Nothing to do: the pseudo-labels are there already.\n{describe(labels, path)}")
        if settings.run_dir is not None:
            from pipeline.running.cluster_scores import cluster_summary  # torchmetrics takes seconds to import

            results = cluster_summary(labels, source, path)
            write_summary_beside(Path(settings.run_dir), "cluster", results, inputs, run)
        print(next_command(source))
        return

    from pipeline.running.clustering import Clustering  # Lightning takes seconds to import
    from pipeline.running.processes import join

    parent = runs_of(settings.dataset.name, f"cluster-{name_of(condition)}")
    temi = isinstance(condition.clustering, TEMISettings)
    machine, folder = join(
        settings.trainer,
        lambda: choose_run_folder(settings.run_dir, parent, run, settings.overwrite),
        one_process=not temi,
    )
    watching = settings.loggers, names_in(settings.callbacks)
    clustering = Clustering(condition, source, folder, settings.map_images, settings.page_images, *watching)
    data = clustering.temi_data(machine.world_size) if temi else None
    with opened_run_folder(folder, run, settings.overwrite, machine.rank):
        if machine.rank == 0:
            what = "images" if source.has_images else "embeddings without images"
            print(f"{source.name}: {len(source):,} {what}; {condition.method} on {machine}; run folder {folder}")
            if source.splits is not None:
                print(f"split          {source.splits}")
        if data is None:
            labels = clustering.without_training()
        else:
            labels = clustering.train_temi(data, settings.trainer, settings.overwrite)
        if machine.rank == 0:
            pictures = clustering.write(labels)
            print(f"{describe(labels, path)}\npictures       {', '.join(map(str, pictures))}")
            print(next_command(source))


def made_before(condition: Condition, source: ImageSource) -> PseudoLabels | None:
    """The pseudo-labels in the cache, and for TEMI the head too; a damaged file is set aside, to be made again."""
    file = condition.pseudo_labels_path(source)
    try:
        labels = PseudoLabels.load(file)
        if isinstance(condition.clustering, TEMISettings):
            file = condition.head_path(source)
            ClusteringHead.from_pretrained(file)
        return labels
    except MissingArtifactError:
        return None
    except DamagedArtifactError as error:
        print(f"{error} Set aside as {set_aside(file).name}; making it again.", file=sys.stderr)
        return None


def next_command(source: ImageSource) -> str:
    """What to type next; without images nothing is trained."""
    return f"Next: {typed_command('train' if source.has_images else 'bound')}"


def name_of(condition: Condition) -> str:
    """Method and number of clusters, but where that is the number of names: `temi-40`, `labels`."""
    clustering = condition.clustering
    if isinstance(clustering, LabelsSettings | CLIPSettings):
        return clustering.method
    return f"{clustering.method}-{clustering.num_clusters}"


def describe(labels: PseudoLabels, path: Path) -> str:
    """Some lines for the terminal."""
    counts = labels.counts[labels.counts > 0]
    use = f"{labels.num_used} of {labels.num_clusters} (utilization ratio {labels.utilization_ratio:.3f})"
    sizes = f"{int(counts.min())} to {int(counts.max())} images each"
    alone = "\nWarning: all images are in one cluster; `train` needs two or more." if labels.num_used == 1 else ""
    return f"pseudo-labels  {path}\nclusters used  {use}, {sizes}{alone}"
