"""`cedm assign`: a trained clustering head and new images → their pseudo-labels."""

import shlex
from pathlib import Path

from omegaconf import DictConfig

from datamodules.pseudo_labels.pseudo_labels import PseudoLabels, made_for
from lightning_modules.clustering.assignment import ClusteringHead
from pipeline.commands.cluster import summary_of
from pipeline.pictures.cluster_pictures import map_of, thumbnails, write_pictures
from pipeline.running.run_folder import choose_run_folder, opened_run_folder, run_settings, write_summary
from pipeline.settings.command import command, typed_command
from pipeline.settings.inputs import embeddings_of, identity_of, source_of, typed_head_file
from pipeline.settings.words import word
from storage.digests import file_digest
from storage.errors import UserError


@command
def assign(cfg: DictConfig) -> None:
    head_path = typed_head_file(Path(str(cfg.head)))
    head = ClusteringHead.load(head_path)
    source = source_of(cfg)
    if head.backbone_identity != identity_of(cfg):
        raise UserError(
            f"head={head_path}: it was trained on embeddings of another backbone ({head.backbone_identity}) than "
            f"backbone={cfg.backbone.name} ({identity_of(cfg)}). "
            "Choose the backbone= and dataset.resolution= of its training."
        )
    embeddings = embeddings_of(cfg, source)
    inputs = {"dataset": source.fingerprint, "head": file_digest(head_path)}
    settings = run_settings(cfg, inputs, groups=("dataset", "backbone"))
    folder = choose_run_folder(cfg, "assign", settings)
    with opened_run_folder(folder, settings, cfg.overwrite):
        cluster_ids, confidence = head.assign(embeddings.values)
        meta = {"made_from": inputs, **made_for(source)}
        labels = PseudoLabels(cluster_ids, head.num_clusters, confidence, list(source.ids), meta)
        path = folder / "pseudo_labels.safetensors"
        labels.save(path)
        labels.save_csv(folder / "pseudo_labels.csv")
        title = f"{source.name}, assigned by {head_path.name}, C = {head.num_clusters:,}"
        pictures = write_pictures(folder, labels, thumbnails(cfg, source), map_of(cfg, embeddings), title)
        write_summary(folder, "assign", summary_of(labels, source, path), inputs)
    print(f"pseudo-labels  {path}\n               {folder / 'pseudo_labels.csv'}")
    print(f"pictures       {', '.join(map(str, pictures))}")
    print(f"Next: {typed_command('train')} {shlex.quote(word('assignments', path))}")


if __name__ == "__main__":
    assign()
