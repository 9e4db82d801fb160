"""Fréchet distance against torch-fidelity, NumPy and closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from metrics.frechet import (
    FeatureStatistics,
    FrechetDistance,
    Statistics,
    effective_rank,
    frechet_distance,
    frechet_error,
    frechet_extrapolated,
)
from storage.errors import UserError


def statistics_of(features: Tensor, batch_size: int = 50) -> Statistics:
    metric = FeatureStatistics(features.shape[1])
    for batch in features.split(batch_size):
        metric.update(batch)
    return metric.compute()


def correlated(num_images: int, num_features: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(num_features, num_features, generator=generator) / num_features**0.5
    return torch.randn(num_images, num_features, generator=generator) @ mix + shift


def torch_fidelity_distance(a: Tensor, b: Tensor) -> float:
    sides = (fid_features_to_statistics(features.double()) for features in (a, b))
    return fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]


@pytest.mark.parametrize("num_images", [(500, 400), (500, 30), (25, 30)], ids=["full_rank", "one_singular", "singular"])
def test_distance_equals_torch_fidelity(num_images: tuple[int, int]) -> None:
    a, b = correlated(num_images[0], 64, seed=0), correlated(num_images[1], 64, seed=1, shift=0.3)
    distance = frechet_distance(statistics_of(a), statistics_of(b))
    assert distance == pytest.approx(torch_fidelity_distance(a, b), rel=1e-6)
    metric = FrechetDistance(statistics_of(b))
    metric.update(a)
    assert float(metric.compute()) == pytest.approx(distance, rel=1e-12)


def test_distance_of_diagonal_normals_has_a_closed_form() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([2.0, 1.0, 5.0])
    var_a, var_b = torch.tensor([4.0, 0.0, 1e-6]), torch.tensor([1.0, 9.0, 1.0])
    expected = (mean_a - mean_b).square().sum() + (var_a.double().sqrt() - var_b.double().sqrt()).square().sum()
    distance = frechet_distance(Statistics(mean_a, var_a.diag()), Statistics(mean_b, var_b.diag()))
    assert distance == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("num_images", [300, 20])
def test_a_set_is_at_no_distance_from_itself(num_images: int) -> None:
    statistics = statistics_of(correlated(num_images, 64, seed=0))
    assert 0 <= frechet_distance(statistics, statistics) < 1e-10 * float(statistics.cov.trace())


def test_statistics_equal_numpy_whatever_the_batches() -> None:
    features = correlated(1001, 40, seed=2, shift=20.0)
    whole, in_bits = statistics_of(features, batch_size=1001), statistics_of(features, batch_size=7)
    for statistics in (whole, in_bits):
        assert statistics.n == 1001
        np.testing.assert_allclose(statistics.mean, features.double().numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.cov, np.cov(features.double().numpy(), rowvar=False), atol=1e-11)
    torch.testing.assert_close(whole.cov, in_bits.cov, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_images", [300, 25])
def test_features_far_from_the_origin_keep_their_digits(num_images: int) -> None:
    """Against the nuclear norm of the centred features' product, which needs no covariance."""
    a, b = (1e4 + 0.05 * correlated(num_images, 40, seed) for seed in (0, 1))
    apart = [side.double() - side.double().mean(dim=0) for side in (a, b)]
    traces = sum(side.square().sum() for side in apart) - 2 * torch.linalg.svdvals(apart[0] @ apart[1].mT).sum()
    expected = (a.double().mean(dim=0) - b.double().mean(dim=0)).square().sum() + traces / (num_images - 1)
    distance = frechet_distance(statistics_of(a, batch_size=7), statistics_of(b))
    assert distance == pytest.approx(float(expected), rel=1e-9)
    metric = FeatureStatistics(40)
    torch.testing.assert_close(metric(a).cov, statistics_of(a).cov, rtol=1e-10, atol=1e-13)  # `forward`
    metric(b)
    torch.testing.assert_close(metric.compute().cov, torch.cat([a, b]).double().mT.cov(), rtol=1e-9, atol=1e-13)


def test_half_precision_modules_leave_the_sums_in_float64() -> None:
    features = correlated(200, 8, seed=0)
    module = torch.nn.Module()
    module.statistics = FeatureStatistics(8)
    module.half().float()
    module.statistics.update(features)
    module.bfloat16()
    torch.testing.assert_close(module.statistics.compute().cov, statistics_of(features).cov, rtol=1e-12, atol=1e-12)


def test_nothing_of_it_enters_a_checkpoint_and_reset_forgets() -> None:
    metric = FrechetDistance(statistics_of(correlated(100, 8, seed=0)))
    metric.update(correlated(100, 8, seed=1))
    first = metric.compute()
    assert not metric.state_dict()
    metric.reset()
    metric.update(correlated(100, 8, seed=1))
    assert metric.compute() == first


def test_bad_features_are_refused() -> None:
    metric = FeatureStatistics(4)
    with pytest.raises(ValueError, match=r"\[images, 4\], got \[3, 5\]"):
        metric.update(torch.randn(3, 5))
    with pytest.raises(ValueError, match="not finite"):
        metric.update(torch.tensor([[0.0, 1.0, torch.nan, 2.0]]))
    metric.update(torch.randn(1, 4))
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        metric.compute()
    with pytest.raises(ValueError, match="8 and 4 features"):
        frechet_distance(statistics_of(torch.randn(9, 8)), statistics_of(torch.randn(9, 4)))


def test_files_bring_the_statistics_back(tmp_path: Path) -> None:
    statistics = statistics_of(correlated(100, 8, seed=0))
    statistics.meta = {"extractor": "pixels"}
    statistics.save(tmp_path / "reference.safetensors")
    loaded = Statistics.load(tmp_path / "reference.safetensors")
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.cov, statistics.cov)
    assert (loaded.n, loaded.meta) == (100, {"extractor": "pixels"})

    statistics.save_npz(tmp_path / "reference.npz")
    from_npz = Statistics.load_npz(tmp_path / "reference.npz")
    assert torch.equal(from_npz.cov, statistics.cov)
    assert from_npz.n is None


def test_files_that_are_no_statistics_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.npz: no such file"):
        Statistics.load_npz(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", features=np.zeros(3))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], dtype=object), sigma=np.zeros((1, 1)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "shapes.npz").read_bytes()[:150])
    for name in ("text", "other", "shapes", "objects", "cut"):
        with pytest.raises(UserError, match=rf"{name}\.npz.*mu \[D\] and sigma \[D, D\]"):
            Statistics.load_npz(tmp_path / f"{name}.npz")


def gaussian(num: int, dim: int = 12) -> Tensor:
    """Features around which the distance from N(0, 1) is known, whatever their number."""
    return torch.randn(num, dim, dtype=torch.float64) * torch.linspace(0.7, 1.4, dim) + 0.1


def test_the_error_is_the_deviation_between_sets() -> None:
    """And, of a set, that of the jackknife; where images are as few as features, it is no smaller."""
    torch.manual_seed(0)
    reference = Statistics(torch.zeros(12), torch.eye(12, dtype=torch.float64))
    sets = [gaussian(250) for _ in range(150)]
    distances = [frechet_distance(statistics_of(one), reference) for one in sets]
    errors = [frechet_error(one.float(), statistics_of(one), reference) for one in sets]
    assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.15)
    but_one = [statistics_of(torch.cat([sets[0][:i], sets[0][i + 1 :]])) for i in range(250)]
    left_out = [frechet_distance(one, reference) for one in but_one]
    assert errors[0] == pytest.approx(np.std(left_out) * 249**0.5, rel=0.1)

    few = [gaussian(100, 120) for _ in range(60)]
    wide = Statistics(torch.zeros(120), torch.eye(120, dtype=torch.float64))
    deviation = np.std([frechet_distance(statistics_of(one), wide) for one in few])
    assert deviation < np.mean([frechet_error(one, statistics_of(one), wide) for one in few]) < 2 * deviation


def test_the_distance_of_infinitely_many_images() -> None:
    """torch-fidelity's distances and scikit-learn's line give the same; and the truth lies within its error."""
    torch.manual_seed(0)
    features, real = gaussian(3000), torch.randn(20, 12, dtype=torch.float64)
    reference = statistics_of(real)
    draw, sizes, distances = torch.Generator().manual_seed(2020), np.linspace(300, 3000, 15).round(), []
    theirs = fid_features_to_statistics(real)
    for size in sizes:
        part = features[torch.randperm(3000, generator=draw)[: int(size)]]
        found = fid_statistics_to_metric(fid_features_to_statistics(part), theirs, verbose=False)
        distances.append(found["frechet_inception_distance"])
    line = LinearRegression().fit(1 / sizes[:, np.newaxis], distances)
    found = frechet_extrapolated(features, reference)
    assert (found.value, found.slope) == pytest.approx((line.intercept_, line.coef_[0]), rel=1e-6)

    exact = Statistics(torch.zeros(12), torch.eye(12, dtype=torch.float64))
    truth = frechet_distance(Statistics(torch.full((12,), 0.1), torch.linspace(0.7, 1.4, 12).square().diag()), exact)
    sets = [gaussian(400) for _ in range(30)]
    assert np.mean([frechet_distance(statistics_of(one), exact) for one in sets]) > 1.15 * truth
    assert np.mean([frechet_extrapolated(one, exact).value for one in sets]) == pytest.approx(truth, rel=0.1)
    with pytest.raises(ValueError, match="there are 19"):
        frechet_extrapolated(features[:19], reference)


def test_effective_rank() -> None:
    assert effective_rank(torch.eye(9)) == pytest.approx(9)
    assert effective_rank(torch.ones(5, 5)) == pytest.approx(1)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0, 0.0]))) == pytest.approx(4 / 3**0.75)
    assert effective_rank(torch.zeros(4, 4)) == 0
