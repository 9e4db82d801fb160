"""Kernel distance and inception score against torch-fidelity; precision, recall, density, coverage by hand."""

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from metrics import kernel
from metrics.inception_score import inception_score
from metrics.kernel import kernel_distance, kernel_distance_of_all
from metrics.prdc import prdc


def test_kernel_distance_equals_torch_fidelity() -> None:
    torch.manual_seed(0)
    features, reference = torch.randn(300, 20) * 1.1 + 0.1, torch.randn(400, 20)
    result = kernel_distance(features, reference, num_subsets=20, subset_size=100, seed=7)
    expected = kid_features_to_metric(
        features.double(), reference.double(), kid_subsets=20, kid_subset_size=100, rng_seed=7, verbose=False
    )
    assert result.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-8)
    assert result.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-8)
    with pytest.raises(ValueError, match=r"subsets of 1000 images.*300 and 400"):
        kernel_distance(features, reference)


def test_inception_score_equals_torch_fidelity() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(503, 30)
    result = inception_score(logits, num_splits=10, seed=5)
    expected = isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=5)
    assert result.mean == pytest.approx(expected["inception_score_mean"], rel=1e-10)
    assert result.std == pytest.approx(expected["inception_score_std"], rel=1e-8)


def prdc_by_hand(features: Tensor, reference: Tensor, k: int) -> dict[str, float]:
    def distance(a: Tensor, b: Tensor) -> float:
        return float((a.double() - b.double()).square().sum())  # squared: no root, so no rounding, makes two equal

    def radius(points: Tensor, index: int) -> float:
        return sorted(distance(points[index], p) for i, p in enumerate(points) if i != index)[k - 1]

    real_radii = [radius(reference, i) for i in range(len(reference))]
    generated_radii = [radius(features, i) for i in range(len(features))]
    in_real = [[distance(x, y) <= r for y, r in zip(reference, real_radii, strict=True)] for x in features]
    in_generated = [[distance(x, y) <= r for x, r in zip(features, generated_radii, strict=True)] for y in reference]
    return {
        "precision": sum(any(row) for row in in_real) / len(features),
        "recall": sum(any(row) for row in in_generated) / len(reference),
        "density": sum(sum(row) for row in in_real) / (k * len(features)),
        "coverage": sum(any(column) for column in zip(*in_real, strict=True)) / len(reference),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_equals_the_definitions_whatever_the_blocks(k: int) -> None:
    torch.manual_seed(k)
    features, reference = 0.7 * torch.randn(40, 3) + 0.5, torch.randn(50, 3)
    expected = prdc_by_hand(features, reference, k)
    assert len(set(expected.values())) == 4  # no two scores agree by chance
    for block_entries in (7, 1000):
        assert prdc(features, reference, k, block_entries=block_entries) == pytest.approx(expected)


HARD = {
    "an offset": lambda x: 100 + 0.05 * x,
    "two offsets": lambda x: 0.05 * x + 100 * (torch.arange(len(x)) % 2)[:, None],
    "half precision": lambda x: (3 + x).half(),
    "ties": lambda x: x.round(),
    "copies": lambda x: x[torch.arange(len(x)) % 9],
    "near-duplicates": lambda x: x[torch.arange(len(x)) % 9] + 1e-5 * x,
}


@pytest.mark.parametrize("kind", HARD)
def test_prdc_where_products_in_float32_cancel(kind: str) -> None:
    """Balls are closed, and ties and copies count one by one."""
    torch.manual_seed(0)
    features, reference = HARD[kind](0.8 * torch.randn(60, 30)), HARD[kind](torch.randn(70, 30))
    features = torch.cat([features, reference[::10]])
    for k in (1, 4):
        expected = prdc_by_hand(features, reference, k)
        for block_entries in (150, 1 << 20):
            assert prdc(features, reference, k, block_entries=block_entries) == pytest.approx(expected, rel=1e-12)


def test_prdc_needs_a_kth_neighbour() -> None:
    with pytest.raises(ValueError, match=r"k=3 needs more than k images.*3 generated and 9 real"):
        prdc(torch.randn(3, 2), torch.randn(9, 2), k=3)


def test_the_error_of_the_kernel_distance() -> None:
    """The deviation between independent sets."""
    torch.manual_seed(0)
    reference = torch.randn(400, 10)
    sets = [kernel_distance(torch.randn(300, 10) + 0.4, reference, 12, 150) for _ in range(120)]
    deviation = float(torch.tensor([one.mean for one in sets]).std())
    assert sum(one.error for one in sets) / 120 == pytest.approx(deviation, rel=0.25)


def kernel_distance_by_hand(x: Tensor, y: Tensor) -> float:
    def mean(a: Tensor, b: Tensor) -> float:
        pairs = [(float(p.double() @ q.double()) / len(p) + 1) ** 3 for p in a for q in b if p is not q]
        return sum(pairs) / len(pairs)

    xs, ys = list(x), list(y)
    return mean(xs, xs) + mean(ys, ys) - 2 * mean(xs, ys)


def test_the_kernel_distance_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its error: by leaving out one image after the other, which is the deviation between independent sets."""
    torch.manual_seed(0)
    x, y = torch.randn(7, 4) + 0.3, torch.randn(11, 4)
    expected = kernel_distance_by_hand(x, y)
    without = [kernel_distance_by_hand(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(len(x))]
    error = (sum((one - sum(without) / 7) ** 2 for one in without) * 6 / 7) ** 0.5
    for block in (30, 1 << 24):
        monkeypatch.setattr(kernel, "KERNELS_AT_ONCE", block)
        assert kernel_distance_of_all(x, y) == pytest.approx((expected, error), rel=1e-9)

    reference = torch.randn(60, 16)  # as it is: the real images of a cluster
    for shift, most in ((1.0, 1.15), (0.0, 1.6)):  # of sets that are alike, twice the variance
        sets = [kernel_distance_of_all(torch.randn(10, 16) + shift, reference) for _ in range(200)]
        values, errors = torch.tensor(sets, dtype=torch.float64).T
        assert 0.85 < float(errors.square().mean().sqrt() / values.std()) < most
        many = kernel_distance_of_all(torch.randn(4000, 16) + shift, reference)
        assert float(values.mean()) == pytest.approx(many.value, abs=4 * float(values.std()) / 200**0.5)  # unbiased
