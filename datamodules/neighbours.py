"""Nearest neighbours: the k most similar images of each image, by cosine similarity of the raw embeddings."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from datamodules.artifacts import UserError, file_stem, make_once, read_artifact
from datamodules.embeddings import Embeddings

KIND = "neighbours"
BLOCK_BYTES = 1 << 28  # memory for the similarities of one block of images with all images


class Neighbours(NamedTuple):
    """The nearest neighbours of each image, the most similar first; no image is its own neighbour."""

    indices: Tensor  # int64 [N, k]
    similarities: Tensor  # float32 [N, k]


def find_neighbours(
    values: Tensor,
    k: int,
    block_size: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Neighbours:
    """Exact k nearest neighbours of each row of `values` [N, D] by cosine similarity, itself excluded.

    Works on blocks of rows, so memory stays at N·k plus one block. Among neighbours of equal similarity the lower index
    comes first. Raises `UserError` where k is not in 1…N−1.
    """
    count = len(values)
    if not 1 <= k < count:
        raise UserError(f"{k} neighbours of {count} images: expected between 1 and {count - 1}")
    directions = F.normalize(values.to(device, torch.float32))  # [N, D]
    block_size = block_size or max(1, BLOCK_BYTES // (4 * count))
    indices = torch.empty(count, k, dtype=torch.int64)
    similarities = torch.empty(count, k)
    with tqdm(total=count, desc="nearest neighbours", unit=" images", disable=not progress) as bar:
        for start in range(0, count, block_size):
            block = directions[start : start + block_size] @ directions.T  # [b, N]
            rows = torch.arange(len(block), device=device)
            block[rows, start + rows] = -torch.inf
            top_similarities, top_indices = _in_order(*block.topk(k, dim=1))  # [b, k]
            similarities[start : start + len(block)] = top_similarities.cpu()
            indices[start : start + len(block)] = top_indices.cpu()
            bar.update(len(block))
    return Neighbours(indices, similarities)


def _in_order(similarities: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [b, k] by falling similarity, and where that is equal by rising index: topk promises no order of ties."""
    by_index = indices.argsort(dim=1)
    similarities, indices = similarities.gather(1, by_index), indices.gather(1, by_index)
    by_similarity = similarities.argsort(dim=1, descending=True, stable=True)
    return similarities.gather(1, by_similarity), indices.gather(1, by_similarity)


def neighbours_path(cache_dir: str | Path, embeddings: Embeddings, k: int) -> Path:
    """Where the k nearest neighbours in these embeddings are kept."""
    source, backbone = embeddings.meta["source"]["name"], embeddings.meta["backbone"]["kind"]
    stem = file_stem(source, backbone, f"k{k}", embeddings.fingerprint)
    return Path(cache_dir) / "neighbours" / f"{stem}.safetensors"


def make_neighbours(
    embeddings: Embeddings,
    k: int,
    cache_dir: str | Path,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Neighbours:
    """The k nearest neighbours in these embeddings, from the cache or computed now and kept there."""

    def make() -> tuple[dict[str, Tensor], dict[str, object]]:
        found = find_neighbours(embeddings.values, k, device=device, progress=progress)
        return found._asdict(), {"embeddings": embeddings.meta, "k": k}

    remake = f"cedm embed dataset={embeddings.meta['source']['name']}"
    return Neighbours(**make_once(neighbours_path(cache_dir, embeddings, k), KIND, remake, make).tensors)


def load_neighbours(embeddings: Embeddings, k: int, cache_dir: str | Path, remake: str) -> Neighbours:
    """Reads neighbours that were made before; `remake` is the command that makes them."""
    return Neighbours(**read_artifact(neighbours_path(cache_dir, embeddings, k), KIND, remake).tensors)
