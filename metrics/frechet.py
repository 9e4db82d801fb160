"""Fréchet distance between two sets of features: FID on Inception, FDD on DINOv2, and so on for any extractor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from storage.artifacts import read_artifact, write_artifact
from storage.bounds import refuse_npz
from storage.errors import UserError
from storage.files import atomic_path

KIND = "feature-statistics"


@dataclass  # not frozen: torchmetrics copies what `compute` returns field by field
class Statistics:
    """Mean and covariance of a set of features, in float64.

    Attributes:
        mean: [D].
        cov: [D, D], over n − 1.
        n: number of features, or None for a file that doesn't tell.
        meta: what made them (extractor, data set, …), as JSON can hold it.
    """

    mean: Tensor
    cov: Tensor
    n: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Writes the artifact `feature-statistics`."""
        write_artifact(path, KIND, {"mean": self.mean, "cov": self.cov}, {**self.meta, "n": self.n})

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Reads and verifies the artifact.

        Raises:
            UserError: the file is missing, damaged, or something else.
        """
        artifact = read_artifact(path, KIND)
        mean, cov = (artifact.tensors.get(name, torch.empty(0)) for name in ("mean", "cov"))
        meta = dict(artifact.meta)
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not mean.is_floating_point() or "n" not in meta:
            raise UserError(f"{path}: no statistics of this project: mean {[*mean.shape]}, cov {[*cov.shape]}.")
        return cls(mean, cov, n=meta.pop("n"), meta=meta)

    def save_npz(self, path: str | Path) -> None:
        """Writes EDM's reference format: an .npz file with `mu` [D] and `sigma` [D, D]."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mu=self.mean.cpu().numpy(), sigma=self.cov.cpu().numpy())

    @classmethod
    def load_npz(cls, path: str | Path) -> "Statistics":
        """Reads EDM's reference format.

        Raises:
            UserError: the file is missing, is no such .npz file, or its arrays don't fit together.
        """
        expected = "expected an .npz file with mu [D] and sigma [D, D], as EDM's reference statistics"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for name in ("mu", "sigma"):
                    refuse_npz(arrays, name, Path(path).stat().st_size)
                mean, cov = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; {expected}") from error
        except Exception as error:  # a damaged or made-up archive can raise anything
            raise UserError(f"{path}: can't be read ({error}); {expected}") from error
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise UserError(f"{path}: mu is {list(mean.shape)} and sigma {list(cov.shape)}; {expected}")
        if not (mean.isfinite().all() and cov.isfinite().all()):
            raise UserError(f"{path}: holds values that are not finite; {expected}")
        scale = cov.diagonal().abs().max()
        if not torch.allclose(cov, cov.mT, rtol=0, atol=1e-6 * float(scale)) or (cov.diagonal() < 0).any():
            raise UserError(f"{path}: sigma is no covariance: not symmetric, or with negative variances; {expected}")
        return cls(mean, cov)


class Limit(NamedTuple):
    """A distance extrapolated to infinitely many images.

    Attributes:
        value: the distance.
        error: standard error of the extrapolation alone.
        slope: how much more N images show, times N.
    """

    value: float
    error: float
    slope: float


class FeatureStatistics(Metric):
    """Mean and covariance of features, streamed, in float64.

    The state is one matrix. Its upper part is Σ aᵀa over the features from an origin o, with a 1 in front,
    a = (1, f − o): it holds their number, their sum and the sum of their outer products, and adds up over batches. The
    last row is (1, o). The origin is the mean of the first batch, so that nothing cancels however far from 0 the
    features lie; processes agree on one before their sums are added.

    Args:
        num_features: D.

    Examples:
        >>> metric = FeatureStatistics(num_features=2)
        >>> metric.update(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
        >>> statistics = metric.compute()
        >>> statistics.mean.tolist(), statistics.cov.tolist(), statistics.n
        ([1.0, 2.0], [[2.0, 4.0], [4.0, 8.0]], 2)
    """

    full_state_update = True  # sums from different origins do not add up
    moments: Tensor  # [2 + D, 1 + D], float64

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        kwargs.setdefault("dist_sync_fn", all_reduce_moments)
        super().__init__(**kwargs)
        self.num_features = num_features
        size = 2 + num_features, 1 + num_features
        self.add_state("moments", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        """Adds features [B, D].

        Raises:
            ValueError: the shape is another, or a value is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"expected features [images, {self.num_features}], got {list(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("a feature is not finite: the distance would be NaN")
        if not len(features):
            return
        augmented = torch.cat([features.new_ones(len(features), 1), features], dim=1).double()  # [B, 1 + D]
        self.moments[-1] = torch.where(self.moments[0, 0] == 0, augmented.mean(dim=0), self.moments[-1])
        augmented[:, 1:] -= self.moments[-1, 1:]
        self.moments[:-1] += augmented.mT @ augmented

    def compute(self) -> Any:
        """The `Statistics` of all features so far.

        Raises:
            ValueError: fewer than two features were added.
        """
        return self.statistics()

    def statistics(self) -> Statistics:
        """As `compute`, of this process alone unless called within it."""
        n = round(self.moments[0, 0].item())
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {n}")
        mean = self.moments[0, 1:] / n  # from the origin
        cov = (self.moments[1:-1, 1:] - n * mean.outer(mean)) / (n - 1)
        return Statistics(self.moments[-1, 1:] + mean, cov, n)


class FrechetDistance(FeatureStatistics):
    """Fréchet distance of the features added so far from a reference.

    Args:
        reference: statistics of the reference set.

    Examples:
        >>> metric = FrechetDistance(Statistics(mean=torch.zeros(2), cov=torch.eye(2)))
        >>> metric.update(torch.tensor([[4.0, 0.0], [2.0, 0.0], [3.0, 1.0], [3.0, -1.0]]))  # mean (3, 0), variances 2/3
        >>> round(float(metric.compute()), 4)  # 3² + 2 (1 − √⅔)²
        9.0673
    """

    def __init__(self, reference: Statistics, **kwargs: Any) -> None:
        super().__init__(num_features=len(reference.mean), **kwargs)
        self.reference = reference

    def compute(self) -> Tensor:
        """The distance, a float64 scalar: of rank 0, whose processor alone works on it.

        Raises:
            ValueError: fewer than two features were added.
        """
        own, several = self.statistics(), self._is_synced  # with the sums of other processes
        distance = torch.zeros((), dtype=torch.float64, device=own.mean.device)
        if not several or dist.get_rank(self.process_group) == 0:
            distance += frechet_distance(own, self.reference)
        if several:
            dist.broadcast(distance, group=self.process_group, group_src=0)
        return distance.cpu()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), the squared 2-Wasserstein distance of two normal distributions.

    With Σ = L Lᵀ on both sides, the eigenvalues of Σ_a Σ_b are the squared singular values of L_aᵀ L_b, so the last
    trace is their sum. That needs no root of a nearly singular product, and holds where there are fewer images than
    features.

    Raises:
        ValueError: the two have different numbers of features.

    Examples:
        >>> a = Statistics(mean=torch.tensor([3.0, 0.0]), cov=torch.eye(2))
        >>> b = Statistics(mean=torch.tensor([0.0, 0.0]), cov=4 * torch.eye(2))
        >>> round(frechet_distance(a, b), 6)  # 3² + 2 (2 − 1)²
        11.0
    """
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"the statistics have {len(a.mean)} and {len(b.mean)} features: take both with the same feature extractor"
        )
    mean_a, cov_a, mean_b, cov_b = (t.detach().cpu().double() for t in (a.mean, a.cov, b.mean, b.cov))
    trace_of_root = torch.linalg.svdvals(_factor(cov_a).mT @ _factor(cov_b)).sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_of_root
    return max(0.0, float(distance))  # rounding can leave equal sets a little below 0


def frechet_error(features: Tensor, own: Statistics, reference: Statistics) -> float:
    """Standard error of the distance over the images of a set, drawn independently: its bootstrap to first order.

    Image x adds φ(x) = 2 (μ − m)·(x − μ) + (x − μ)ᵀ (1 − T) (x − μ), the derivative of the distance of N(μ, Σ) from
    N(m, S), with T = Σ^−½ (Σ^½ S Σ^½)^½ Σ^−½, the optimal transport from one to the other; the error is φ's standard
    deviation over √N. Resampling itself would not do: copies of images narrow a covariance, so that resampled sets lie
    much further from the reference than the set.

    Args:
        features: [N, D], of the set.
        own, reference: statistics of the set and of what it is compared with.
    """
    mean, cov, their_mean, their_cov = (
        part.double().to(features.device) for part in (own.mean, own.cov, reference.mean, reference.cov)
    )
    eigenvalues, axes = torch.linalg.eigh(cov)
    in_range = eigenvalues > eigenvalues.abs().max() * len(cov) * torch.finfo(cov.dtype).eps
    roots, axes = eigenvalues[in_range].sqrt(), axes[:, in_range]  # Σ^½ = axes · roots in its range
    squares, turned = torch.linalg.eigh((axes * roots).mT @ their_cov @ (axes * roots))
    root = (turned * squares.clamp(min=0).sqrt()) @ turned.mT
    transport = (axes / roots) @ root @ (axes / roots).mT
    parts = []
    for part in features.split(4096):
        apart = part.double() - mean
        parts.append(2 * apart @ (mean - their_mean) + (apart * (apart - apart @ transport)).sum(dim=1))
    return float(torch.cat(parts).std()) / len(features) ** 0.5


def frechet_extrapolated(features: Tensor, reference: Statistics, num_sizes: int = 15, seed: int = 2020) -> Limit:
    """The distance that infinitely many images would have (arXiv 1911.07023).

    To first order, a distance of N images lies above that by a constant over N. So it is taken on random parts of the
    set, of sizes evenly spaced from a tenth of it to all, and the line through distance against 1/N ends at 1/N = 0.

    Args:
        features: [N, D].
        num_sizes: how many parts.
        seed: of the parts.

    Raises:
        ValueError: a tenth of the images are fewer than 2.
    """
    if len(features) < 20:
        raise ValueError(f"a tenth of the images has to be 2 at least, but there are {len(features)}")
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(len(features) / 10, len(features), num_sizes).round().int().tolist()
    distances = []
    for size in sizes:
        chosen = torch.randperm(len(features), generator=draw)[:size].to(features.device)
        statistics = FeatureStatistics(features.shape[1]).to(features.device)
        for part in features[chosen].split(4096):
            statistics.update(part)
        distances.append(frechet_distance(statistics.statistics(), reference))
    (slope, value), spread = np.polyfit(1 / np.array(sizes), distances, 1, cov=True)
    return Limit(float(value), float(spread[1, 1] ** 0.5), float(slope))


def effective_rank(cov: Tensor) -> float:
    """Over how many directions the variance is spread: exp of the entropy of the eigenvalues' shares of their sum.

    From O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality", 2007; 0 where nothing
    varies.

    Examples:
        >>> round(effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0]))), 6)
        2.0
    """
    shares = torch.linalg.eigvalsh(cov.double()).clamp(min=0)
    total = float(shares.sum())
    return float(torch.special.entr(shares / total).sum().exp()) if total > 0 else 0.0


def _factor(cov: Tensor) -> Tensor:
    """L [D, r] with L Lᵀ = cov [D, D]: Cholesky's where cov has full rank, else from the eigenvectors of its range."""
    lower, failed = torch.linalg.cholesky_ex(cov)
    if not failed:
        return lower
    eigenvalues, eigenvectors = torch.linalg.eigh(cov)
    rounding = eigenvalues.abs().max() * len(cov) * torch.finfo(cov.dtype).eps
    in_range = eigenvalues > rounding
    return eigenvectors[:, in_range] * eigenvalues[in_range].sqrt()


def all_reduce_moments(state: Tensor, group: Any = None) -> list[Tensor]:
    """The `moments` of all processes, as the one entry of what torchmetrics takes for the list of their states.

    In place of gathering a [D, D] matrix from every process just to add them up. Their origin is the mean of the
    processes' own, each with the weight of its images.
    """
    origin = state[0, 0] * state[-1]  # [1 + D]
    dist.all_reduce(origin, group=group)
    origin /= origin[0].clamp(min=1)
    moved = state[-1, 1:] - origin[1:]
    total = state.clone()
    total[1:-1] += moved[:, None] * total[0]  # Σ (f − o') a = Σ (f − o) a + (o − o') Σ a
    total[:-1, 1:] += total[:-1, :1] * moved
    dist.all_reduce(total, group=group)
    total[-1] = origin
    return [total]
