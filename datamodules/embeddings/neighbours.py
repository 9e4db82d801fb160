"""Nearest neighbours: the k most similar images of each image, by cosine similarity of the raw embeddings."""

from collections.abc import Iterator
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
CLOSE = 1024 * 2**-23  # of a row's squared length: similarities that differ by less are taken again in float64


class Directions(NamedTuple):
    """Embeddings at length 1, from their mean m: products of float32 that would cancel far from the origin do not here.

    cos(x, y) = (x − m)·(y − m) + m·(x − m) + m·(y − m) + |m|², of which the last three are taken in float64.
    """

    values: Tensor  # [N, D], as they came
    centred: Tensor  # float32 [N, D], x − m, on the device of the search; so are the others
    along: Tensor  # float64 [N], m·(x − m), less their median: small numbers keep their digits in float32
    constant: Tensor  # float64 scalar, |m|² and twice that median

    @classmethod
    def of(cls, values: Tensor, device: str | torch.device = "cpu") -> "Directions":
        """Those of embeddings [N, D]."""

        def units() -> Iterator[Tensor]:
            return (unit(part.to(device)) for part in values.split(PART))

        mean = torch.stack([x.sum(dim=0) for x in units()]).sum(dim=0) / len(values)  # [D]
        centred, along = map(torch.cat, zip(*(((x - mean).float(), (x - mean) @ mean) for x in units()), strict=True))
        return cls(values, centred, along - along.median(), mean @ mean + 2 * along.median())


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
    comes first. Similarities are taken between directions from their mean, in float32, and where they lie too close
    together for it in float64, so that embeddings with a large common offset and near-duplicates have their neighbours
    too.

    Examples:
        >>> find_neighbours(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), k=1).indices.tolist()
        [[1], [0], [1]]
    """
    _check(values, k)
    return _search(torch.arange(len(values)), Directions.of(values, device), k, block_size)


def find_approximate_neighbours(
    values: Tensor, k: int, device: str | torch.device = "cpu", probes: int = PROBES
) -> Neighbours:
    """k near neighbours of each row of `values` [N, D] by cosine similarity, itself excluded; most of them the nearest.

    An inverted file of faiss on the CPU: k-means cells, of which each image looks into the `probes` nearest. It takes
    the distances of directions from their mean, for which float32 does; their squares are 2 − 2 cos. Its recall is
    measured against the exact search on a random sample of rows, on `device`.
    """
    faiss = needed(*FAISS)
    _check(values, k)
    exact = Directions.of(values, device)
    directions = exact.centred.cpu().numpy()  # [N, D]
    count, dim = directions.shape
    cells = max(1, min(int(4 * count**0.5), count // 39))  # faiss asks for 39 points or more per cell
    index = faiss.index_factory(dim, f"IVF{cells},Flat", faiss.METRIC_L2)
    index.train(directions)
    index.add(directions)
    index.nprobe = probes
    squared, indices = map(torch.from_numpy, index.search(directions, k + 1))  # [N, k + 1] each
    itself = indices == torch.arange(count)[:, None]
    itself[~itself.any(dim=1), -1] = True  # hidden by k + 1 twins: the last goes
    similarities, indices = 1 - squared[~itself].view(count, k) / 2, indices[~itself].view(count, k)

    short = (indices < 0).any(dim=1).nonzero()[:, 0]  # of too few in their cells
    indices[short], similarities[short], _ = _search(short, exact, k)
    return Neighbours(indices, similarities, _recall(indices, exact))


def _recall(indices: Tensor, directions: Directions) -> float:
    """Share of the true nearest neighbours of RECALL_SAMPLE rows that `indices` [N, k] holds."""
    sample = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))[:RECALL_SAMPLE]
    nearest = _search(sample, directions, indices.shape[1]).indices
    pairs = zip(indices[sample].tolist(), nearest.tolist(), strict=True)
    return sum(len({*own} & {*true}) for own, true in pairs) / nearest.numel()


def _check(values: Tensor, k: int) -> None:
    """Raises `UserError` where k is not in 1…N−1."""
    if not 1 <= k < len(values):
        raise UserError(f"{k} neighbours of {len(values)} images: expected between 1 and {len(values) - 1}.")


def _block_size(directions: Tensor) -> int:
    """Rows whose similarities with all images fill one block."""
    return max(1, BLOCK_BYTES[directions.device.type == "cpu"] // (4 * len(directions)))


def _search(rows: Tensor, directions: Directions, k: int, block_size: int | None = None) -> Neighbours:
    """The k nearest of `rows` [n] among all directions, block by block."""
    values, centred, along, constant = directions
    found, close = Neighbours(torch.empty(len(rows), k, dtype=torch.int64), torch.empty(len(rows), k)), []
    size = min(block_size or _block_size(centred), max(1, len(rows)))
    memory = centred.new_empty(size, len(centred))  # one for all blocks
    for part in tqdm(torch.arange(len(rows)).split(size), desc="nearest neighbours", unit=" blocks", delay=2):
        own = centred[rows[part].to(centred.device)]
        block = torch.mm(own, centred.T, out=memory[: len(part)])  # [b, N]
        block += along.float()
        products, indices = _largest(block, rows[part], k)
        similarities = products + along[rows[part].to(along.device), None] + constant
        found.similarities[part], found.indices[part] = similarities[:, :k].cpu().float(), indices[:, :k].cpu()
        undecided = products[:, 0] - products[:, -1] < CLOSE * own.square().sum(dim=1)
        close.append(part[undecided.cpu()])
    for part in torch.cat(close).split(max(1, size // 2)) if close else ():  # near-duplicates far from the mean
        own = unit(values[rows[part]].to(along.device))
        block = torch.cat([own @ unit(others.to(own.device)).T for others in values.split(PART)], dim=1)
        similarities, indices = (of_all[:, :k].cpu() for of_all in _largest(block, rows[part], k))
        found.similarities[part], found.indices[part] = similarities.float(), indices
    return found


def _largest(block: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k + 1 largest products of `rows` [b] with all others, or all there are, and where, from a block [b, N]."""
    block[torch.arange(len(rows), device=block.device), rows.to(block.device)] = -torch.inf
    products, indices = block.topk(min(k + 1, block.shape[1] - 1), dim=1)  # which promises no order of ties:
    indices, by_index = indices.sort(dim=1)  # by rising index
    products, by_product = products.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    return products, indices.gather(1, by_product)


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
