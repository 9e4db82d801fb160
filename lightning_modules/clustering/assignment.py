"""From a trained head to cluster ids, and the artifact that assigns new images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.clustering.heads import ClusteringHeads
from storage.artifacts import read_artifact, write_artifact
from storage.standardise import standardise

KIND = "clustering-head"
BATCH_SIZE = 8192  # embeddings at once: 330 MB of logits at 10,000 clusters


@torch.no_grad()
def assign(head: ClusteringHeads, embeddings: Iterable[Tensor], temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """Cluster of each image: the argmax of one head's softmax.

    Args:
        head: a single head (see `ClusteringHeads.head`).
        embeddings: batches [B, D], standardised as in training, on the head's device.
        temperature: divides the logits; changes the confidence, not the cluster.

    Returns:
        Cluster ids, int64 [N], and each image's largest probability, float32 [N].

    Raises:
        ValueError: `head` holds several heads.
    """
    if head.num_heads != 1:
        raise ValueError(f"assignment takes one head, not {head.num_heads}: pick it with .head(index)")
    cluster_ids, confidences = [], []
    for batch in embeddings:
        probs = (head(batch)[0].float() / temperature).softmax(dim=-1)  # [B, C]
        confidence, cluster_id = probs.max(dim=-1)
        cluster_ids.append(cluster_id)
        confidences.append(confidence)
    return torch.cat(cluster_ids), torch.cat(confidences)


@dataclass(frozen=True)
class ClusteringHead:
    """All it takes to assign an image: one teacher head, how to standardise an embedding, and which backbone made it.

    Attributes:
        head: a `ClusteringHeads` with one head.
        mean: [D], mean of the training embeddings.
        std: [D], their standard deviation.
        backbone_identity: what the backbone says of itself; embeddings of another backbone mean nothing to this head.
        temperature: that of the softmax behind the confidence.
    """

    head: ClusteringHeads
    mean: Tensor
    std: Tensor
    backbone_identity: Mapping[str, Any]
    temperature: float = 0.1

    @property
    def num_clusters(self) -> int:
        return self.head.num_clusters

    def assign(self, raw_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Cluster ids, int64 [N], and confidences, float32 [N], of embeddings [N, D] as the backbone gives them.

        A dimension in which the training images were all alike tells nothing, however much it changes in new images.
        """
        if raw_embeddings.ndim != 2 or raw_embeddings.shape[1] != len(self.mean):
            raise ValueError(
                f"this head reads embeddings [images, {len(self.mean)}], not {list(raw_embeddings.shape)}: "
                f"compute them with the backbone {self.backbone_identity}"
            )
        standardised = (standardise(batch, self.mean, self.std) for batch in raw_embeddings.split(BATCH_SIZE))
        return assign(self.head, standardised, self.temperature)

    def save(self, path: str | Path, meta: Mapping[str, Any] | None = None) -> None:
        """Writes the artifact `clustering-head`; `meta` joins what is recorded of its making."""
        architecture = {
            "embedding_dim": self.head.embedding_dim,
            "num_clusters": self.head.num_clusters,
            "hidden_dim": self.head.hidden_dim,
            "bottleneck_dim": self.head.bottleneck_dim,
        }
        weights = {f"head.{name}": weight for name, weight in self.head.state_dict().items()}
        write_artifact(
            path,
            KIND,
            {**weights, "mean": self.mean, "std": self.std},
            {
                **(meta or {}),
                "architecture": architecture,
                "backbone": dict(self.backbone_identity),
                "temperature": self.temperature,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "ClusteringHead":
        """Reads and verifies the artifact.

        Raises:
            UserError: the file is missing, damaged, or something else.
        """
        artifact = read_artifact(path, KIND)
        head = ClusteringHeads(num_heads=1, **artifact.meta["architecture"])
        weights = {name.removeprefix("head."): t for name, t in artifact.tensors.items() if name.startswith("head.")}
        head.load_state_dict(weights)
        return cls(
            head=head.requires_grad_(False).eval(),
            mean=artifact.tensors["mean"],
            std=artifact.tensors["std"],
            backbone_identity=artifact.meta["backbone"],
            temperature=artifact.meta["temperature"],
        )
