"""A flat map of the embeddings: a place in the plane for each image of a sample, near images near to each other."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from storage.artifacts import entry_path, make_once
from storage.fingerprints import file_stem, fingerprint

KIND = "embedding-map"
PCA_DIMENSIONS = 50  # what t-SNE's authors reduce to first; it suppresses noise and costs little
PERPLEXITY = 30
ITERATIONS = 500
FEWEST_IMAGES = 10  # a map of less is no map


class EmbeddingMap(NamedTuple):
    """Places of some images."""

    rows: Tensor  # int64 [M], which images of the data set they are
    places: Tensor  # float32 [M, 2]


def make_embedding_map(
    values: Tensor, identity: str, name: str, cache_dir: str | Path, num_images: int
) -> EmbeddingMap | None:
    """The map of a random sample of `num_images` embeddings, from the cache or made now and kept there.

    PCA, then t-SNE (van der Maaten and Hinton, JMLR 2008) of L2-normalised embeddings, so that nearness on the map is
    nearness by cosine. It does not depend on any clustering: all clusterings of a data set are shown on the same map.

    Args:
        values: [N, D], as the backbone gives them.
        identity: a fingerprint that tells these embeddings from any other.
        name: of the data set, for the file's name.

    Returns:
        None where there are too few images for a map.
    """
    sample = min(num_images, len(values))
    if sample < FEWEST_IMAGES:
        return None

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        rows = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:sample].sort().values
        return {"rows": rows, "places": _t_sne(values[rows])}, description

    description = {
        "embeddings": identity,
        "num_images": sample,
        "method": f"PCA to {PCA_DIMENSIONS}, t-SNE, perplexity {PERPLEXITY}, {ITERATIONS} iterations",
    }
    path = Path(cache_dir) / "maps" / f"{file_stem(name, fingerprint(description))}.safetensors"
    return EmbeddingMap(**make_once(entry_path(path, KIND, description), KIND, make).tensors)


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
