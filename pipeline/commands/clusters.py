"""`cedm clusters`: the clusters of a run → one HTML page to look into them and to name them."""

from pathlib import Path

from datamodules.images.sources import ImageSource, open_source
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels
from pipeline.pictures.cluster_page import PAGE, write_cluster_page
from pipeline.pictures.cluster_pictures import GALLERY, thumbnails, write_pictures
from pipeline.running.clustering import Clustering
from pipeline.running.condition import Condition
from pipeline.running.finished_run import clusters_of_run, read_any_summary, settings_of
from pipeline.running.run_folder import SUMMARY_FILE
from pipeline.settings.door import typed_words, understood
from pipeline.settings.schemas import AssignSettings, ClustersSettings, ScoreSettings, SharedSettings
from storage.errors import UserError


def clusters(settings: ClustersSettings) -> None:
    """Write the page into the run's folder, and draw the pictures that lie there again; or the page into `file=`.

    What else is set here replaces the run's settings: names of the clusters, above all.
    """
    folder = Path(settings.run)
    summary = read_any_summary(folder)
    made_with = settings_of(folder, summary, understood(summary["command"], tuple(typed_words())))
    condition, dataset = Condition.of(made_with), made_with.dataset
    source = open_source(dataset, made_with.cache_dir)
    try:
        labels = clusters_of_run(folder, summary, made_with, source)
    except KeyError as error:
        raise UserError(f"{folder / SUMMARY_FILE}: not a summary as cedm writes it ({error} is missing).") from error
    part, mapped = source.only(labels.ids), condition.mapped(source, made_with.map_images)
    if mapped is not None and part is not source:
        mapped = mapped.only(labels.rows_in(source.ids))
    images, names = thumbnails(part, dataset.resolution, dataset.channels), condition.names(labels)
    title = title_of(made_with, source, labels)
    if settings.file is None and (folder / GALLERY).is_file():
        pictures = write_pictures(folder, labels, images, mapped, title, names, 0, made_with.loggers)
        print(f"pictures    {', '.join(map(str, pictures))}")
    path = Path(settings.file or folder / PAGE)
    write_cluster_page(path, labels, images, mapped, title, names, made_with.page_images)
    print(f"clusters    {path}  ({path.stat().st_size / 1e6:.1f} MB)")


def title_of(settings: SharedSettings, source: ImageSource, labels: PseudoLabels) -> str:
    """What stands above the pictures: which clustering of which data set."""
    if isinstance(settings, ScoreSettings):
        file, _, key = settings.assignments.partition("::")
        return f"{source.name}, {key or Path(file).stem}"
    if isinstance(settings, AssignSettings):
        return f"{source.name}, assigned by {Path(settings.head).name}, C = {labels.num_clusters:,}"
    condition = Condition.of(settings)
    if condition.method == "assignments":
        return f"{source.name}, {condition.name(labels)}"
    return Clustering(condition, source, Path(), map_images=0, page_images=0).title
