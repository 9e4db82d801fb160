"""Counter-based random numbers: known answers, distributions, and dependence on nothing but their place."""

import math

import pytest
import torch
from scipy import stats

from storage.philox import Stream, integers, normal, permutation, philox4x32, torch_seed, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known-answer vectors of philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    words = philox4x32([torch.tensor([word]) for word in counter], key)
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("draw", [uniform, normal])
def test_batch_and_order_do_not_matter(draw):
    positions = torch.arange(500)
    together = draw(7, Stream.NOISE, positions, (3, 32, 32))
    assert torch.equal(draw(7, Stream.NOISE, positions[[250]], (3, 32, 32))[0], together[250])
    assert torch.equal(draw(7, Stream.NOISE, positions.flip(0), (3, 32, 32)).flip(0), together)
    assert torch.equal(draw(7, Stream.NOISE, positions, (5,)), together.flatten(1)[:, :5])


@pytest.mark.parametrize("draw", [uniform, normal])
def test_seeds_streams_positions_and_elements_differ(draw):
    positions = torch.tensor([0, 1, 2**32, 2**40 + 1])
    draws = [draw(seed, stream, positions, (6,)) for seed in (0, 1, 2**32, 2**63 - 1) for stream in (1, 2)]
    numbers = torch.stack(draws).flatten()
    assert len(numbers.unique()) == len(numbers)


def test_streams_are_distinct_and_their_published_numbers_stay():
    names = "SIGMA NOISE AUGMENT_UNIFORM AUGMENT_NORMAL LABEL_DROPOUT NETWORK_DROPOUT LATENTS CHURN LABELS ORDER"
    assert {stream.name: int(stream) for stream in Stream} == {
        name: n for n, name in enumerate([*names.split(), "NEIGHBOURS", "MEASURED_NOISE"], 1)
    }


def test_uniform_distribution():
    numbers = uniform(3, Stream.NOISE, torch.arange(2000), (10, 10), dtype=torch.float64).flatten()
    assert 0 <= float(numbers.min()) < float(numbers.max()) < 1
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3


def test_normal_distribution():
    numbers = normal(3, Stream.NOISE, torch.arange(2000), (10, 10), dtype=torch.float64)
    assert stats.kstest(numbers.flatten().numpy(), "norm").pvalue > 1e-3
    correlations = torch.corrcoef(numbers.flatten(1).T) - torch.eye(100)  # of the elements, over positions
    assert float(correlations.abs().max()) < 6 / math.sqrt(2000)
    neighbours = torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 5 / math.sqrt(numbers.numel())


@pytest.mark.parametrize("draw", [uniform, normal])
def test_single_precision_rounds_double_precision(draw):
    positions = torch.arange(300)
    double = draw(5, Stream.SIGMA, positions, (50,), dtype=torch.float64)
    single = draw(5, Stream.SIGMA, positions, (50,))
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_one_number_per_position(draw):
    assert draw(5, Stream.SIGMA, torch.arange(7)).shape == (7,)
    assert draw(5, Stream.SIGMA, torch.arange(0), (3, 8, 8)).shape == (0, 3, 8, 8)


def test_integers_are_uniform_and_a_function_of_the_position():
    positions = torch.arange(60_000)
    draws = integers(5, Stream.NEIGHBOURS, positions, upper=6)
    assert stats.chisquare(draws.bincount(minlength=6)).pvalue > 1e-3
    pairs = (draws[:-1] * 6 + draws[1:]).bincount(minlength=36)  # neighbouring positions: independent
    assert stats.chisquare(pairs).pvalue > 1e-3
    assert torch.equal(integers(5, Stream.NEIGHBOURS, positions[1234:1240], upper=6), draws[1234:1240])
    assert int(integers(5, Stream.NEIGHBOURS, positions, upper=2**31).max()) > 2**31 * 0.999


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
def test_permutations_hold_each_number_once(length):
    drawn = {tuple(permutation(seed, Stream.ORDER, epoch, length).tolist()) for seed in (0, 1) for epoch in range(5)}
    assert all(sorted(order) == list(range(length)) for order in drawn)
    assert len(drawn) == 10 or length < 7


def test_each_order_is_equally_likely():
    orders = torch.stack([permutation(3, Stream.ORDER, epoch, 3) for epoch in range(3000)])
    counts = (orders @ torch.tensor([9, 3, 1])).unique(return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_torch_seeds_differ_and_are_valid():
    seeds = {torch_seed(seed, rank, step) for seed in (0, 1) for rank in range(4) for step in (*range(20), 2**32)}
    assert len(seeds) == 2 * 4 * 21
    for seed in seeds:
        torch.Generator().manual_seed(seed)
