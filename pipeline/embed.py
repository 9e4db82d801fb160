"""`cedm embed`: images → embeddings and nearest neighbours, in the cache."""

import torch
from omegaconf import DictConfig

from datamodules.artifacts import DamagedArtifactError, MissingArtifactError, UserError
from datamodules.backbones import build_backbone
from datamodules.embeddings import Embeddings, embeddings_path, load_embeddings, make_embeddings
from datamodules.neighbours import make_neighbours, neighbours_path
from datamodules.sources import ImageSource
from pipeline.command import command, typed_command
from pipeline.inputs import check_clustering, identity_of, not_needed, plain, source_of
from pipeline.run_folder import (
    choose_run_folder,
    opened_run_folder,
    run_settings,
    write_optional_summary,
    write_summary,
)


@command
def embed(cfg: DictConfig) -> None:
    reason = not_needed(cfg, "embed")
    if reason is not None:
        print(f"Nothing to do: no embeddings are needed for {reason}.")
        return
    source = source_of(cfg)
    print(f"{source.name}: {len(source):,} images")
    check_clustering(cfg, source, before_embedding=True)
    device_of(cfg.trainer.accelerator)
    num_neighbours = cfg.clustering.num_neighbours if cfg.clustering.method == "temi" else None
    if num_neighbours is not None:
        check_neighbours(source, num_neighbours)
    identity = identity_of(cfg)
    path = embeddings_path(cfg.cache_dir, source, identity)
    done_before = path.exists()
    embeddings = cached_or_new(cfg, source, identity)
    if num_neighbours is not None:
        neighbours = neighbours_path(cfg.cache_dir, embeddings, num_neighbours)
        done_before = done_before and neighbours.exists()
        make_neighbours(embeddings, num_neighbours, cfg.cache_dir)
        print(f"neighbours  {neighbours}")
    print(f"embeddings  {path}  [{len(source):,} × {embeddings.values.shape[1]}]")
    if done_before:
        print("Nothing to do: they were there already.")
    results = {
        "num_images": len(source),
        "num_features": embeddings.values.shape[1],
        "embeddings": str(path),
        "backbone": identity,
    }
    inputs = {"dataset": source.fingerprint}
    if done_before:
        write_optional_summary(cfg, "embed", results, inputs)
    else:
        settings = run_settings(cfg, inputs, groups=("dataset", "backbone"))
        folder = choose_run_folder(cfg, f"embed-{cfg.backbone.name}", settings)
        with opened_run_folder(folder, settings, cfg.overwrite):
            print(f"summary     {write_summary(folder, 'embed', results, inputs)}")
    print(f"Next: {typed_command('cluster')}")


def cached_or_new(cfg: DictConfig, source: ImageSource, identity: dict) -> Embeddings:
    """The embeddings from the cache; computed first where they are not there."""
    try:
        return load_embeddings(source, identity, cfg.cache_dir, remake=typed_command("embed"))
    except (MissingArtifactError, DamagedArtifactError):
        backbone = build_backbone(plain(cfg.backbone), cfg.dataset.resolution, cfg.dataset.channels, cfg.cache_dir)
        device = device_of(cfg.trainer.accelerator)
        return make_embeddings(source, backbone, cfg.cache_dir, device=device, batch_size=cfg.backbone.batch_size)


def check_neighbours(source: ImageSource, num_neighbours: int) -> None:
    """Refuse before the embedding, not after it.

    Raises:
        UserError: there are not as many other images as neighbours asked for.
    """
    if num_neighbours >= len(source):
        raise UserError(
            f"clustering.num_neighbours={num_neighbours}, but {source.name!r} has {len(source)} images, so each has "
            f"{len(source) - 1} neighbours. Type clustering.num_neighbours={max(1, (len(source) - 1) // 4)}."
        )


def device_of(accelerator: str) -> torch.device:
    """The device that `trainer.accelerator` names; auto takes a GPU where there is one."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: this machine has no GPU that PyTorch can use. Type cpu.")
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.device("cuda")
    if accelerator == "mps":
        return torch.device("mps")
    return torch.device("cpu")


if __name__ == "__main__":
    embed()
