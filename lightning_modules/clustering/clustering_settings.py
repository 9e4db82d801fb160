"""The settings of the clustering methods: `clustering=`."""

from dataclasses import dataclass
from typing import Any

from storage.additions import OBJECTIVES
from storage.settings import Settings, setting

TEMI_VERSION = 3  # raised whenever the same settings and seed would give other clusters than before


@dataclass(frozen=True)
class ClusteringSettings(Settings):
    """What all methods have; each has a subclass."""

    group = "clustering"

    method: str = setting("temi", "how images are clustered", choices=("temi", "kmeans", "labels", "random", "clip"))
    num_clusters: int | None = setting(100, "number of clusters C", low=2, high=10**7)
    num_neighbours: int = setting(50, "nearest neighbours that `embed` finds of each image", low=1)


@dataclass(frozen=True)
class TEMISettings(ClusteringSettings):
    """TEMI (arXiv 2303.17896) with the β of C-EDM (arXiv 2403.00570)."""

    num_clusters: int = setting(100, "number of clusters C", low=2, high=10**7)
    num_neighbours: int = setting(50, "pairs are drawn from this many nearest neighbours", low=1)
    neighbour_search: str = setting(
        "exact", "approximate: for millions of images on a CPU; needs faiss-cpu", choices=("exact", "approximate")
    )
    standardise: bool = setting(False, "each dimension of the embeddings to mean 0 and standard deviation 1 first")
    objective: str = setting("temi", "what is minimised", choices=("temi", "wmi", "pmi", "scan"), additions=OBJECTIVES)
    beta: float = setting(0.6, "0.6 spreads the images over all clusters, 1 lets the number used saturate", above=0)
    num_heads: int = setting(50, "heads trained side by side; the one with the lowest loss assigns", low=1)
    batch_size: int = setting(512, "pairs in a step, over all devices; an epoch's last partial batch is dropped", low=1)
    max_epochs: int = setting(100, "passes through the data", low=1)
    precision: str = setting("32-true", "of the training", choices=("32-true", "bf16-mixed", "16-mixed"))
    lr: float = setting(1e-4, "learning rate at 256 pairs; scaled with the batch size", above=0)
    warmup_epochs: int = setting(20, "epochs over which the learning rate rises; it is constant after", low=0)
    weight_decay: float = setting(1e-4, "AdamW's, for weights; biases have none", low=0)
    student_temperature: float = setting(0.1, "divides the student's logits", above=0)
    teacher_temperature: float = setting(0.1, "divides the teacher's logits, in assignments too", above=0)
    probs_momentum: float = setting(0.9, "share that the running cluster probabilities keep", low=0, below=1)
    entropy_weight: float = setting(5.0, "weight of the negative entropy in objective=scan", low=0)
    teacher_momentum: float = setting(0.996, "share of the teacher that each step keeps", low=0, below=1)
    frozen_last_layer_epochs: int = setting(1, "first epochs in which the last layer does not learn", low=0)
    hidden_dim: int = setting(512, "width of a head's hidden layer", low=1)
    bottleneck_dim: int = setting(256, "width of a head's normalised features", low=1)


@dataclass(frozen=True)
class KMeansSettings(ClusteringSettings):
    """k-means on the L2-normalised embeddings."""

    method: str = setting("kmeans", "how images are clustered")
    num_clusters: int = setting(100, "number of clusters C", low=2, high=10**7)


@dataclass(frozen=True)
class LabelsSettings(ClusteringSettings):
    """The data set's own labels as clusters: label-conditioned EDM."""

    method: str = setting("labels", "how images are clustered")
    num_clusters: int | None = setting(None, "as many as there are classes")


@dataclass(frozen=True)
class RandomSettings(KMeansSettings):
    """Random clusters of equal size: the control that conditioning alone is measured against."""

    method: str = setting("random", "how images are clustered")


@dataclass(frozen=True)
class CLIPSettings(ClusteringSettings):
    """Zero-shot CLIP (arXiv 2103.00020): each image goes to the class name nearest to it. Set backbone=clip_vitl14."""

    method: str = setting("clip", "how images are clustered")
    num_clusters: int | None = setting(None, "as many as there are class names")
    class_names: Any = setting(None, "a list, or a text file with a name per line; null: the data set's own")
    prompt: str = setting("a photo of a {}.", "{} stands for the class name")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt.count("{}") != 1 or self.prompt.count("{") != 1:
            self.refuse("prompt", 'one {} is expected in the place of the class name, such as "a photo of a {}."')


METHODS: dict[str, type[ClusteringSettings]] = {
    "temi": TEMISettings,
    "kmeans": KMeansSettings,
    "labels": LabelsSettings,
    "random": RandomSettings,
    "clip": CLIPSettings,
}
