"""Nearest neighbours: the k most similar images of each image, by cosine similarity of the raw embeddings."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from datamodules.embeddings.embeddings import Embeddings
from datamodules.packages import needed
from storage.artifacts import entry_path, make_once
from storage.errors import UserError
from storage.fingerprints import file_stem

KIND = "neighbours"
BLOCK_BYTES = {True: 1 << 28, False: 1 << 31}  # similarities of one block with all images; on a CPU, on a GPU
FAISS = (
    "faiss",
    "clustering.neighbour_search=approximate, unlike clustering.neighbour_search=exact,",
    "faiss-cpu",
)  # for `needed`
PROBES = 64  # cells that an approximate search looks into
RECALL_SAMPLE = 1000  # rows
PART = 8192  # rows that are in float64 at once


class Directions(NamedTuple):
    """Embeddings at length 1, from their mean m: products of float32 that would cancel far from the origin do not here.

    cos(x, y) = (x − m)·(y − m) + m·(x − m) + m·(y − m) + |m|², of which the last three are taken in float64.
    """

    centred: Tensor  # float32 [N, D], x − m
    along: Tensor  # float64 [N], m·(x − m), less their median: small numbers keep their digits in float32
    constant: Tensor  # float64 scalar, |m|² and twice that median

    @classmethod
    def of(cls, values: Tensor) -> "Directions":
        """Those of embeddings [N, D]."""
        mean = torch.stack([unit(part).sum(dim=0) for part in values.split(PART)]).sum(dim=0) / len(values)  # [D]
        parts = [(x.float(), x @ mean) for x in (unit(part) - mean for part in values.split(PART))]
        centred, along = map(torch.cat, zip(*parts, strict=True))
        return cls(centred, along - along.median(), mean @ mean + 2 * along.median())


def unit(values: Tensor) -> Tensor:
    """Rows [n, D] at length 1, float64; zeros stay zeros."""
    return F.normalize(values.double())


class Neighbours(NamedTuple):
    """The nearest neighbours of each image, the most similar first; no image is its own neighbour."""

    indices: Tensor  # int64 [N, k]
    similarities: Tensor  # float32 [N, k]
    recall: float = 1.0  # share of the true k nearest that are found; below 1, measured on a sample


def find_neighbours(
    values: Tensor, k: int, block_size: int | None = None, device: str | torch.device = "cpu"
) -> Neighbours:
    """Exact k nearest neighbours of each row of `values` [N, D] by cosine similarity, itself excluded.

    Works on blocks of rows, so memory stays at N·k plus one block. Among neighbours of equal similarity the lower index
    comes first; similarities count as equal where float32 cannot tell them apart, by the spread of the directions and
    not by their length, so that embeddings with a large common offset have their neighbours too.

    Examples:
        >>> find_neighbours(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), k=1).indices.tolist()
        [[1], [0], [1]]
    """
    _check(values, k)
    directions = Directions.of(values.to(device))
    blocks = torch.arange(len(values), device=device).split(block_size or _block_size(directions.centred))
    memory = directions.centred.new_empty(len(blocks[0]), len(values))
    found = Neighbours(torch.empty(len(values), k, dtype=torch.int64), torch.empty(len(values), k))
    for rows in tqdm(blocks, desc="nearest neighbours", unit=" blocks", delay=2):
        block = rows.cpu()
        found.similarities[block], found.indices[block] = map(Tensor.cpu, _nearest_of(rows, directions, k, memory))
    return found


def find_approximate_neighbours(
    values: Tensor, k: int, device: str | torch.device = "cpu", probes: int = PROBES
) -> Neighbours:
    """k near neighbours of each row of `values` [N, D] by cosine similarity, itself excluded; most of them the nearest.

    An inverted file of faiss on the CPU: k-means cells, of which each image looks into the `probes` nearest. Its
    recall is measured against the exact search on a random sample of rows, on `device`.
    """
    faiss = needed(*FAISS)
    _check(values, k)
    directions = F.normalize(values.float())  # [N, D], on the CPU
    count, dim = directions.shape
    cells = max(1, min(int(4 * count**0.5), count // 39))  # faiss asks for 39 points or more per cell
    index = faiss.index_factory(dim, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(directions.numpy())
    index.add(directions.numpy())
    index.nprobe = probes
    similarities, indices = map(torch.from_numpy, index.search(directions.numpy(), k + 1))  # [N, k + 1] each
    itself = indices == torch.arange(count)[:, None]
    itself[~itself.any(dim=1), -1] = True  # hidden by k + 1 twins: the last goes
    similarities, indices = similarities[~itself].view(count, k), indices[~itself].view(count, k)

    exact = Directions.of(values.to(device))
    for rows in (indices < 0).any(dim=1).nonzero()[:, 0].split(_block_size(exact.centred)):  # too few in its cells
        nearest = _nearest_of(rows.to(device), exact, k)
        similarities[rows], indices[rows] = nearest[0].cpu(), nearest[1].cpu()
    return Neighbours(indices, similarities, _recall(indices, exact))


def _recall(indices: Tensor, directions: Directions) -> float:
    """Share of the true nearest neighbours of RECALL_SAMPLE rows that `indices` [N, k] holds."""
    count, k = indices.shape
    sample = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:RECALL_SAMPLE]
    hits = 0
    for rows in sample.split(_block_size(directions.centred)):
        nearest = _nearest_of(rows.to(directions.centred.device), directions, k)[1].cpu()  # [b, k]
        hits += int((indices[rows][:, :, None] == nearest[:, None]).sum())
    return hits / (len(sample) * k)


def _check(values: Tensor, k: int) -> None:
    """Raises `UserError` where k is not in 1…N−1."""
    if not 1 <= k < len(values):
        raise UserError(f"{k} neighbours of {len(values)} images: expected between 1 and {len(values) - 1}.")


def _block_size(directions: Tensor) -> int:
    """Rows whose similarities with all images fill one block."""
    return max(1, BLOCK_BYTES[directions.device.type == "cpu"] // (4 * len(directions)))


def _nearest_of(rows: Tensor, directions: Directions, k: int, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Similarities and indices, [b, k], of the k nearest of `rows` [b] among all `directions` [N, D].

    `memory` [b or more, N] is overwritten, so that one block serves a whole search.
    """
    centred, along, constant = directions
    block = torch.mm(centred[rows], centred.T, out=None if memory is None else memory[: len(rows)])  # [b, N]
    block += along.float()
    block[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
    products, indices = block.topk(k, dim=1)  # which promises no order of ties: by rising index
    indices, by_index = indices.sort(dim=1)
    products, by_product = products.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    return (products + along[rows][:, None] + constant).float(), indices.gather(1, by_product)


def neighbours_path(cache_dir: str | Path, embeddings: Embeddings, k: int, search: str = "exact") -> Path:
    """Where the k nearest neighbours in these embeddings are kept."""
    source, backbone = embeddings.meta["source"]["name"], embeddings.meta["backbone"]["kind"]
    how = f"k{k}" if search == "exact" else f"{search}-k{k}"
    path = Path(cache_dir) / "neighbours" / f"{file_stem(source, backbone, how, embeddings.fingerprint)}.safetensors"
    return entry_path(path, KIND, {"embeddings": embeddings.meta, "k": k, "search": search})


def make_neighbours(
    embeddings: Embeddings, k: int, cache_dir: str | Path, device: str | torch.device = "cpu", search: str = "exact"
) -> Neighbours:
    """The k nearest neighbours in these embeddings, from the cache or computed now and kept there."""

    def make() -> tuple[dict[str, Tensor], dict[str, object]]:
        find = find_neighbours if search == "exact" else find_approximate_neighbours
        found = find(embeddings.values, k, device=device)
        meta = {"embeddings": embeddings.meta, "k": k, "search": search, "recall": found.recall}
        return {"indices": found.indices, "similarities": found.similarities}, meta

    artifact = make_once(neighbours_path(cache_dir, embeddings, k, search), KIND, make)
    return Neighbours(**artifact.tensors, recall=artifact.meta["recall"])
