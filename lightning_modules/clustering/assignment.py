"""From a trained head to cluster ids, and the artifact that assigns new images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_modules.clustering.heads import ClusteringHeads
from storage.artifacts import read_artifact, write_artifact
from storage.errors import UserError
from storage.hub import OnTheHub
from storage.standardised import standardised

KIND = "clustering-head"
BATCH_SIZE = 8192  # embeddings at once: 330 MB of logits at 10,000 clusters


@torch.no_grad()
def assign(head: ClusteringHeads, embeddings: Iterable[Tensor], temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """Cluster of each image: the argmax of one head's softmax.

    Args:
        head: a single head (see `ClusteringHeads.head`).
        embeddings: batches [B, D], scaled as in training, on the head's device.
        temperature: divides the logits; changes the confidence, not the cluster.

    Returns:
        Cluster ids, int64 [N], and each image's largest probability, float32 [N].

    Raises:
        ValueError: `head` holds several heads.
    """
    if head.num_heads != 1:
        raise ValueError(f"assignment takes one head, not {head.num_heads}: pick it with .head(index)")
    best = [(head(batch)[0].float() / temperature).softmax(dim=-1).max(dim=-1) for batch in embeddings]  # of [B, C]
    return torch.cat([most.indices for most in best]), torch.cat([most.values for most in best])


@dataclass(frozen=True)
class ClusteringHead(OnTheHub):
    """All it takes to assign an image: one teacher head, how it wants embeddings scaled, and which backbone made them.

    Attributes:
        head: a `ClusteringHeads` with one head.
        mean: [D], what is subtracted from an embedding: the mean of the training embeddings, or 0 for raw embeddings.
        std: [D], what it is divided by then: their standard deviation, or 1.
        backbone_identity: what the backbone says of itself; embeddings of another backbone mean nothing to this head.
        temperature: that of the softmax behind the confidence.

    Examples:
        >>> heads = ClusteringHeads(num_heads=1, embedding_dim=16, num_clusters=10)
        >>> head = ClusteringHead(heads, mean=torch.zeros(16), std=torch.ones(16), backbone_identity={"kind": "mine"})
        >>> cluster_ids, confidence = head.assign(torch.randn(5, 16))
        >>> cluster_ids.shape, confidence.shape
        (torch.Size([5]), torch.Size([5]))
    """

    FILE: ClassVar[str] = "head.safetensors"

    head: ClusteringHeads
    mean: Tensor
    std: Tensor
    backbone_identity: Mapping[str, Any]
    temperature: float = 0.1

    @property
    def num_clusters(self) -> int:
        return self.head.num_clusters

    def inputs(self, raw_embeddings: Tensor) -> Tensor:
        """What the head reads of embeddings [N, D] as the backbone gives them."""
        return standardised(raw_embeddings, self.mean, self.std)

    def assign(self, raw_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Cluster ids, int64 [N], and confidences, float32 [N], of embeddings [N, D] as the backbone gives them.

        A dimension in which the training images were all alike tells nothing, however much it changes in new images.
        """
        return assign(self.head, map(self.inputs, raw_embeddings.split(BATCH_SIZE)), self.temperature)

    def save_pretrained(self, path: str | Path, **meta: Any) -> None:
        """Writes the artifact `clustering-head`, a file or `head.safetensors` in a folder.

        `meta` joins what is recorded of its making.
        """
        sizes = ("embedding_dim", "num_clusters", "hidden_dim", "bottleneck_dim")
        weights = {f"head.{name}": weight for name, weight in self.head.state_dict().items()}
        write_artifact(
            self.file_at(path),
            KIND,
            {**weights, "mean": self.mean, "std": self.std},
            {
                **meta,
                "architecture": {size: getattr(self.head, size) for size in sizes},
                "backbone": dict(self.backbone_identity),
                "temperature": self.temperature,
            },
        )

    @classmethod
    def _load(cls, path: Path) -> "ClusteringHead":
        artifact = read_artifact(path, KIND)
        weights, meta = {name: value.float() for name, value in artifact.tensors.items()}, artifact.meta
        try:
            mean, std, temperature = weights.pop("mean"), weights.pop("std"), float(meta["temperature"])
            with torch.device("meta"):  # of the size that the file says, while its weights may be fewer
                head = ClusteringHeads(num_heads=1, **meta["architecture"])
            head.load_state_dict({name.removeprefix("head."): weight for name, weight in weights.items()}, assign=True)
            if not (mean.shape == std.shape == (head.embedding_dim,) and temperature > 0):
                raise ValueError(f"mean {[*mean.shape]}, std {[*std.shape]}, temperature {temperature}")
            return cls(head.requires_grad_(False).eval(), mean, std, dict(meta["backbone"]), temperature)
        except Exception as error:  # whatever a made-up description ends in
            raise UserError(f"{path}: no clustering head of this project ({str(error)[:500]}).") from error
