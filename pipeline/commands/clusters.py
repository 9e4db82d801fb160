"""`cedm clusters`: the clusters of a run → one HTML page to look into them and to name them."""

from pathlib import Path

from datamodules.images.sources import open_source
from pipeline.pictures.cluster_page import PAGE, write_cluster_page
from pipeline.pictures.cluster_pictures import thumbnails
from pipeline.running.condition import Condition
from pipeline.running.finished_run import clusters_of_run, read_any_summary, settings_of
from pipeline.running.run_folder import SUMMARY_FILE
from pipeline.settings.door import typed_words, understood
from pipeline.settings.schemas import ClustersSettings
from storage.errors import UserError


def clusters(settings: ClustersSettings) -> None:
    """Write the page into the run's folder or into `file=`; what else is set here replaces the run's settings."""
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
    path = write_cluster_page(
        Path(settings.file or folder / PAGE),
        labels,
        thumbnails(part, dataset.resolution, dataset.channels),
        mapped,
        f"{source.name}, {condition.name(labels)}",
        condition.names(labels),
        made_with.page_images,
    )
    print(f"clusters    {path}  ({path.stat().st_size / 1e6:.1f} MB)")
