"""`cedm embed`: images → embeddings and nearest neighbours, in the cache."""

from omegaconf import DictConfig

from datamodules.embeddings.embeddings import embeddings_path
from datamodules.embeddings.neighbours import import_faiss, make_neighbours, neighbours_path
from datamodules.images.sources import ImageSource
from pipeline.pictures.data_report import keep_report, report_data
from pipeline.running.embedding import cached_or_new, devices_of, embed_share
from pipeline.running.run_folder import (
    choose_run_folder,
    opened_run_folder,
    run_settings,
    write_optional_summary,
    write_summary,
)
from pipeline.settings.command import command, typed_command
from pipeline.settings.inputs import check_clustering, identity_of, not_needed, source_of
from storage.errors import UserError


@command
def embed(cfg: DictConfig) -> None:
    source = source_of(cfg)
    if embed_share(cfg, source):
        return
    reason = not_needed(cfg, "embed")
    device = devices_of(cfg)[0]  # of the neighbour search
    search = cfg.clustering.get("neighbour_search")
    num_neighbours = cfg.clustering.num_neighbours if cfg.clustering.method == "temi" else None
    if reason is None:
        check_clustering(cfg, source, before_embedding=True)
        if num_neighbours is not None:
            check_neighbours(source, num_neighbours)
            if search == "approximate":
                import_faiss()  # before the embedding, not after it
    report = report_data(source, cfg.dataset.resolution, cfg.dataset.channels, cfg.cache_dir)
    if reason is not None:
        print(f"Nothing to do: no embeddings are needed for {reason}.")
        return
    identity = identity_of(cfg)
    path = embeddings_path(cfg.cache_dir, source, identity)
    done_before = path.exists()
    embeddings = cached_or_new(cfg, source, identity)
    if num_neighbours is not None:
        neighbours = neighbours_path(cfg.cache_dir, embeddings, num_neighbours, search)
        done_before = done_before and neighbours.exists()
        found = make_neighbours(embeddings, num_neighbours, cfg.cache_dir, device=device, search=search)
        recall = "" if search == "exact" else f"  ({search}, recall {found.recall:.3f})"
        print(f"neighbours  {neighbours}{recall}")
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
    settings = run_settings(cfg, inputs, groups=("dataset", "backbone"))
    if done_before:
        write_optional_summary(cfg, "embed", results, inputs, settings)
    else:
        folder = choose_run_folder(cfg, f"embed-{cfg.backbone.name}", settings)
        with opened_run_folder(folder, settings, cfg.overwrite):
            keep_report(report, folder)
            print(f"summary     {write_summary(folder, 'embed', results, inputs)}")
    print(f"Next: {typed_command('cluster')}")


def check_neighbours(source: ImageSource, num_neighbours: int) -> None:
    """Refuse before the embedding, not after it.

    Raises:
        UserError: there are not as many other images as neighbours asked for.
    """
    if num_neighbours >= len(source):
        without = "clustering=kmeans, which needs none (nor does `cedm assign`)"
        instead = f"clustering.num_neighbours={fewer}, or {without}" if (fewer := (len(source) - 1) // 4) else without
        raise UserError(
            f"clustering.num_neighbours={num_neighbours}, but {source.name!r} has {len(source)} images, so each has "
            f"{len(source) - 1} neighbours. Type {instead}."
        )


if __name__ == "__main__":
    embed()
