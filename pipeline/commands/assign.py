"""`cedm assign`: a trained clustering head and new images → their pseudo-labels."""

import shlex
from pathlib import Path

from datamodules.images.sources import open_source
from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, made_for
from lightning_modules.clustering.assignment import ClusteringHead
from pipeline.pictures.cluster_pictures import thumbnails, write_pictures
from pipeline.running.cluster_scores import cluster_summary
from pipeline.running.condition import Condition
from pipeline.running.run_files import head_file
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, runs_of, write_summary
from pipeline.settings.door import typed_command
from pipeline.settings.schemas import AssignSettings
from pipeline.settings.words import word
from storage.digests import file_digest
from storage.errors import UserError


def assign(settings: AssignSettings) -> None:
    """Give every image the cluster that the head finds it in."""
    path, condition, dataset = head_file(settings.head), Condition.of(settings), settings.dataset
    head = ClusteringHead.from_pretrained(path)
    source = open_source(dataset, settings.cache_dir, without_images=True).undivided
    check_backbone(path, head, condition)
    embeddings = condition.embeddings(source)
    width = embeddings.values.shape[1]
    if width != head.head.embedding_dim:  # a file says no more of its backbone
        raise UserError(
            f"head={path}: it was trained on embeddings of {head.head.embedding_dim} numbers, and those of "
            f"embeddings={settings.embeddings} have {width}. Give those of the network that it was trained on."
        )
    inputs = condition.inputs(source) | {"head": file_digest(path)}
    run = run_settings(settings, inputs, ("dataset", "backbone"))
    folder = choose_run_folder(settings.run_dir, runs_of(dataset.name, "assign"), run, settings.overwrite)
    with opened_run_folder(folder, run, settings.overwrite):
        cluster_ids, confidence = head.assign(embeddings.values)
        meta = {"made_from": inputs, **made_for(source)}
        labels = PseudoLabels(cluster_ids, head.num_clusters, confidence, list(source.ids), meta)
        written = folder / "pseudo_labels.safetensors"
        labels.save(written)
        labels.save_csv(folder / "pseudo_labels.csv")
        title = f"{source.name}, assigned by {path.name}, C = {head.num_clusters:,}"
        images = thumbnails(source, dataset.resolution, dataset.channels)
        shown = condition.mapped(source, settings.map_images)
        names = condition.names(labels)
        pictures = write_pictures(folder, labels, images, shown, title, names, settings.page_images, settings.loggers)
        write_summary(folder, "assign", cluster_summary(labels, source, written), inputs)
    print(f"pseudo-labels  {written}\n               {folder / 'pseudo_labels.csv'}")
    print(f"pictures       {', '.join(map(str, pictures))}")
    if source.has_images:
        print(f"Next: {typed_command('train')} {shlex.quote(word('assignments', written))}")


def check_backbone(path: Path, head: ClusteringHead, condition: Condition) -> None:
    """Refuse a head that was trained on embeddings of another backbone; one of a file may be that of any file."""
    theirs, ours = head.backbone_identity, condition.backbone_identity
    if theirs != ours and not (condition.of_file and theirs.get("kind") == ours["kind"]):
        raise UserError(
            f"head={path}: it was trained on embeddings of another backbone ({theirs}) than "
            f"backbone={condition.backbone.name} ({ours}). "
            "Set backbone= and dataset.resolution= to those of its training."
        )
