import math

import pytest
import torch
from scipy import stats

from lightning_modules.diffusion.label_draws import LABEL_DRAWS, draw_labels, golden_ratio_points

FREQUENCIES = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0], dtype=torch.float64)


def test_points_are_those_of_integer_arithmetic():
    seeds = [0, 1, 2, 3, 6_765, 123_456_789, 2**32 - 1, 2**62, 2**62 + 12_345]
    exact = [((seed * 0x9E3779B97F4A7C15 + 2**63) % 2**64 >> 11) / 2**53 for seed in seeds]
    assert golden_ratio_points(torch.tensor(seeds)).tolist() == exact
    assert exact[0] == 0.5
    assert exact[1] == pytest.approx((0.5 + 1 / ((1 + math.sqrt(5)) / 2)) % 1, abs=1e-15)


@pytest.mark.parametrize("first", [0, 1_000, 2**40 + 7])
@pytest.mark.parametrize("count", [50, 1_000, 20_000])
def test_consecutive_seeds_hold_each_cluster_in_its_share(first, count):
    """The counts of 100 clusters are within a few images of their share, where independent ones are not."""
    frequencies = torch.arange(1, 101, dtype=torch.float64)
    shares = count * frequencies / frequencies.sum()
    seeds = first + torch.arange(count)
    found = draw_labels(seeds, frequencies).bincount(minlength=100)
    assert float((found - shares).abs().max()) < 1 + math.log(count) / 2
    if count == 20_000:
        independent = draw_labels(seeds, frequencies, "independent").bincount(minlength=100)
        assert float((independent - shares).abs().max()) > 20


def test_an_image_s_label_depends_on_its_seed_alone():
    seeds = torch.tensor([5, 1000, 7])
    for draw in LABEL_DRAWS:
        assert draw_labels(seeds, FREQUENCIES, draw)[1] == draw_labels(torch.tensor([1000]), FREQUENCIES, draw)[0]


@pytest.mark.parametrize("draw", LABEL_DRAWS)
def test_labels_follow_the_frequencies(draw):
    counts = draw_labels(torch.arange(20_000), FREQUENCIES, draw).bincount(minlength=6)
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    used = [1, 3, 4]
    assert stats.chisquare(counts[used].numpy(), 20_000 * FREQUENCIES[used].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("frequencies", [[1.0], [0.0, 3.0, 0.0], [1.0, 1e-300]])
def test_no_seed_falls_beyond_the_last_cluster(frequencies):
    largest = pow(0x9E3779B97F4A7C15, -1, 2**64) * (2**63 - 1) % 2**64  # the seed of the largest point, if below 2⁶³
    seeds = torch.tensor([0, 1, largest if largest < 2**63 else largest - 2**64])
    labels = draw_labels(seeds, torch.tensor(frequencies, dtype=torch.float64))
    assert all(frequencies[label] > 0 for label in labels.tolist())


def test_equal_frequencies_draw_uniformly():
    counts = draw_labels(torch.arange(20_000), torch.ones(10), "independent").bincount(minlength=10)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert (draw_labels(torch.arange(20_000), torch.ones(10)).bincount(minlength=10) - 2_000).abs().max() <= 4


@pytest.mark.parametrize("frequencies", [[0.0, 0.0], [0.5, -0.1], [float("nan"), 1.0]])
def test_frequencies_that_are_none_are_refused(frequencies):
    with pytest.raises(ValueError, match="frequencies must be"):
        draw_labels(torch.arange(4), torch.tensor(frequencies))
