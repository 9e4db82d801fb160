"""A flat map of the embeddings: a place in the plane for each image of a sample, near images near to each other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.embeddings.neighbours import find_neighbours, unit
from storage.artifacts import entry_path, make_once
from storage.distances import SquaredDistances
from storage.fingerprints import file_stem, fingerprint

KIND = "embedding-map"
PCA_DIMENSIONS = 50  # what t-SNE's authors reduce to first; it suppresses noise and costs little
PERPLEXITY = 30
ITERATIONS = 500
FEWEST_IMAGES = 10  # a map of less is no map
ANCHORS = 5  # placed images between which another one lies
SAME_DIRECTION = 1e-24  # squared distance of directions, below which rounding decides
NEAREST = 8  # neighbours of an image that are shown
PART = 8192  # rows that are looked at at once


class EmbeddingMap(NamedTuple):
    """Places of some images."""

    rows: Tensor  # int64 [M], which images of the data set they are
    places: Tensor  # float32 [M, 2]


@dataclass(frozen=True)
class MappedEmbeddings:
    """Embeddings of a data set for pictures: who lies where, and near whom. What it takes to make is kept in the cache.

    None of it depends on any clustering: all clusterings of a data set are shown on the same map.

    Attributes:
        values: [N, D], as the backbone gives them.
        identity: a fingerprint that tells these embeddings from any other.
        name: of the data set, for names of files.
        map_images: how many t-SNE places; 0: no map.
    """

    values: Tensor
    identity: str
    name: str
    cache_dir: str
    map_images: int

    def only(self, rows: Tensor) -> "MappedEmbeddings":
        """Those of a part of the data set, int64 [M]."""
        return replace(self, values=self.values[rows], identity=fingerprint([self.identity, rows.tolist()]))

    def map(self) -> EmbeddingMap | None:
        """The map of a random sample of `map_images`; None where that is too few.

        PCA, then t-SNE (van der Maaten and Hinton, JMLR 2008) of L2-normalised embeddings, so that nearness on the map
        is nearness by cosine.
        """
        rows = sample_of(len(self.values), self.map_images)
        if len(rows) < FEWEST_IMAGES:
            return None
        method = f"PCA to {PCA_DIMENSIONS}, t-SNE, perplexity {PERPLEXITY}, {ITERATIONS} iterations"
        made_from = {"num_images": len(rows), "method": method}
        found = self._made(KIND, "maps", made_from, lambda: {"rows": rows, "places": _t_sne(self.values[rows])})
        return EmbeddingMap(**found)

    def places(self, rows: Tensor) -> Tensor | None:
        """Places of the images `rows` on the map, float32 [M, 2]; None where there is no map.

        An image that t-SNE did not place lies between the `ANCHORS` most similar ones that it did, weighted by the
        inverse squares of the distances of their directions (Shepard 1968).
        """
        found = self.map()
        if found is None:
            return None
        anchors, places = unit(self.values[found.rows]), []
        for part in rows.split(PART):
            squared, nearest = SquaredDistances(unit(self.values[part]), anchors).nearest(ANCHORS)  # [b, ANCHORS]
            weights = 1 / squared.clamp_min(SAME_DIRECTION)
            weights /= weights.sum(dim=1, keepdim=True)
            places.append((weights[..., None] * found.places[nearest]).sum(dim=1))
        return torch.cat(places).float()

    def neighbours(self, rows: Tensor) -> Tensor:
        """The nearest of the images `rows` to each of them, the nearest first: positions in `rows`, int64 [M, k].

        k is `NEAREST`, or less where there are fewer images.
        """
        k = min(NEAREST, len(rows) - 1)
        if k < 1:
            return torch.empty(len(rows), 0, dtype=torch.int64)
        made_from = {"k": k, "rows": fingerprint(rows.tolist())}

        def make() -> dict[str, Tensor]:
            return {"indices": find_neighbours(self.values[rows], k).indices}

        return self._made("map-neighbours", "neighbours", made_from, make)["indices"]

    def _made(
        self, kind: str, folder: str, description: dict[str, Any], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors from the cache, or made now and kept there."""
        made_from = {"embeddings": self.identity, **description}
        path = Path(self.cache_dir) / folder / f"{file_stem(self.name, fingerprint(made_from))}.safetensors"
        return make_once(entry_path(path, kind, made_from), kind, lambda: (make(), made_from)).tensors


def sample_of(total: int, count: int) -> Tensor:
    """Rows of a random sample of at most `count` images, sorted: int64. A smaller one is a part of a larger one."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values


def _t_sne(values: Tensor) -> Tensor:
    """Embeddings [M, D] → places, float32 [M, 2]."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = F.normalize(values.float(), dim=1).cpu().numpy()
    if min(points.shape) > PCA_DIMENSIONS:
        points = PCA(PCA_DIMENSIONS, random_state=0).fit_transform(points)
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    t_sne = TSNE(perplexity=perplexity, max_iter=ITERATIONS, init="pca", random_state=0)
    return torch.from_numpy(t_sne.fit_transform(points)).float()
