"""Settings of generation: which images a model makes, shared by `cedm generate` and `cedm evaluate`."""

from dataclasses import dataclass
from typing import Any

from storage.settings import REQUIRED, Settings, setting

LARGEST_SEED = 2**62  # a sum with the number of images stays in 64 bits
MOST_IMAGES = 10**9


@dataclass(frozen=True)
class SamplingSettings(Settings):
    """What every command that lets a model generate asks for; what goes into the sampler identifies a run there."""

    first_seed: int = setting(0, "seed of the first image", low=0, high=LARGEST_SEED)
    clusters: Any = setting(
        "frequencies",
        "frequencies: drawn as often as in training; uniform; or cluster ids, seed s takes the (s mod n)-th of n",
    )
    steps: int | None = setting(
        None, "of the sampler; null: 18 up to 32×32 pixels, 40 from 64×64 on", low=1, identifies=False
    )
    churn: float | None = setting(None, "S_churn, 0 is deterministic; null: that of sampler=", low=0, identifies=False)
    guidance: float | None = setting(None, "strength of the guidance; null: that of sampler=", low=0, identifies=False)
    head: str | None = setting(
        None,
        "head.safetensors of the clustering, or its folder: sampler.guide=head, and how sure it is of each image",
        identifies=False,
        path=True,
    )
    batch_size: int = setting(128, "images at once on each device", low=1, identifies=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        ids = self.cluster_ids
        if ids is not None and not (ids and all(isinstance(cluster, int) for cluster in ids)):
            self.refuse("clusters", "frequencies, uniform, or a list of cluster ids such as clusters=[3,7] is expected")

    @property
    def cluster_ids(self) -> list[int] | None:
        """The clusters that are asked for by id; None where they are drawn."""
        if self.clusters in ("frequencies", "uniform"):
            return None
        return list(self.clusters) if isinstance(self.clusters, list) else [self.clusters]

    @property
    def for_sampler(self) -> dict[str, Any]:
        """The settings of the sampler that are given here."""
        short = {"steps": self.steps, "churn": self.churn, "guidance": self.guidance}
        return {name: value for name, value in short.items() if value is not None}


@dataclass(frozen=True)
class GenerateSettings(SamplingSettings):
    """`cedm generate`: a trained model → images."""

    ckpt: str = setting(REQUIRED, "denoiser.safetensors, or the folder of a run", identifies=False, path=True)
    num: int = setting(64, "images, with seeds from first_seed on", low=1, high=MOST_IMAGES)
    seeds: Any = setting(None, "a list of seeds instead, such as [3,17]")
    keep: float = setting(1.0, "with a head, generate num/keep images, keep each cluster's surest", above=0, high=1)
    format: str = setting(
        "png", "png: a folder of PNG files; zip: EDM's ZIP; npy: one array", choices=("png", "zip", "npy")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != 1 and self.head is None:
            self.refuse("keep", "whose confidence? Set head=FOLDER/head.safetensors of the clustering")
        if self.num_candidates > MOST_IMAGES:
            self.refuse("num", f"with keep={self.keep}, at most {MOST_IMAGES:,} images are generated at once")
        seeds = self.seed_list
        if seeds is not None:
            valid = all(isinstance(seed, int) and 0 <= seed <= LARGEST_SEED for seed in seeds)
            if not (seeds and valid and len(set(seeds)) == len(seeds)):
                expected = f"a list of different whole numbers from 0 to {LARGEST_SEED}, such as seeds=[3,17]"
                self.refuse("seeds", f"{expected}, is expected")

    @property
    def seed_list(self) -> list[int] | None:
        """The seeds that are asked for one by one; None where they are counted from `first_seed`."""
        if self.seeds is None:
            return None
        return list(self.seeds) if isinstance(self.seeds, list) else [self.seeds]

    @property
    def num_candidates(self) -> int:
        """How many images to generate so that `num` are kept."""
        return max(self.num, round(self.num / self.keep))
