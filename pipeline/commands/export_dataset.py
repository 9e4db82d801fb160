"""`cedm export-dataset`: images and cluster ids → a data set that other people's trainers read."""

import shlex

from datamodules.images.sources import open_source
from pipeline.pictures.table import write_csv
from pipeline.running.condition import Condition, pseudo_labels_fingerprint
from pipeline.running.export import FORMATS, ClassedImages
from pipeline.running.run_folder import (
    choose_run_folder,
    opened_run_folder,
    read_summary,
    run_settings,
    runs_of,
    write_summary,
)
from pipeline.settings.schemas import ExportDatasetSettings
from pipeline.settings.words import word

# What reads it back, for the last line.
READ_BY = {
    "edm_zip": ["dataset=zip"],
    "folders": ["dataset=folder", "dataset.labels=folders"],
    "hf": ["dataset=hf", "dataset.label_key=cluster"],
}


def export_dataset(settings: ExportDatasetSettings) -> None:
    """Write the images as they are stored, each with its cluster; clusters without an image are no classes."""
    condition = Condition.of(settings)
    source = open_source(settings.dataset, settings.cache_dir)
    labels = condition.pseudo_labels(source)
    if labels is None:
        settings.refuse("conditioning", "the images are exported with their clusters. Leave conditioning= out")
    source = source.only(labels.ids)
    inputs = {"dataset": source.fingerprint, "pseudo_labels": pseudo_labels_fingerprint(labels)}
    run = run_settings(settings, inputs, ("dataset", "format"))
    parent = runs_of(settings.dataset.name, "export-dataset")
    folder = choose_run_folder(settings.run_dir, parent, run, settings.overwrite)
    summary = None if settings.overwrite else read_summary(folder, "export-dataset")
    if summary is None:
        clusters = labels.used_clusters.tolist()
        counts = labels.counts[labels.used_clusters].tolist()
        with opened_run_folder(folder, run, settings.overwrite):
            images = ClassedImages(source, labels.compact().tolist(), [f"cluster {cluster}" for cluster in clusters])
            written = FORMATS[settings.format](images, folder)
            rows = [
                {"class": number, "cluster": cluster, "num_images": count}
                for number, (cluster, count) in enumerate(zip(clusters, counts, strict=True))
            ]
            write_csv(folder / "classes.csv", rows)
            summary = {"written": str(written), "num_images": len(source), "num_classes": len(clusters)}
            write_summary(folder, "export-dataset", summary, inputs)
    else:
        print("Nothing to do: this data set is exported.")
    print(f"images      {summary['written']}  ({summary['num_images']:,} in {summary['num_classes']:,} classes)")
    words = [*READ_BY[settings.format], word("dataset.path", summary["written"])]
    if source.splits is not None and settings.format != "hf":  # the names of the split folders are in the ids
        words.append(f"dataset.split={settings.dataset.split}")
    print(f"classes     {folder / 'classes.csv'}\nRead by     {shlex.join(words)}")
