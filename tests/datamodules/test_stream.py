"""The order of images: permutations per epoch, resumed and distributed runs that see what one run would."""

from itertools import islice

import numpy as np
import pytest
import torch

from datamodules.stream import SampleStream, StreamBatches, random_integers
from storage.errors import UserError


def test_each_epoch_is_another_permutation_of_all_items():
    stream = SampleStream(10, seed=1)
    epochs = stream.indices(torch.arange(50)).reshape(5, 10)
    assert (epochs.sort(dim=1).values == torch.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5
    assert not torch.equal(epochs, SampleStream(10, seed=2).indices(torch.arange(50)).reshape(5, 10))


def test_any_position_can_be_asked_for_alone_and_in_any_order():
    stream = SampleStream(7, seed=3)
    order = stream.indices(torch.arange(100))
    positions = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stream.indices(positions), order[positions])
    assert torch.equal(SampleStream(7, seed=3).indices(positions[:1]), order[positions[:1]])


def test_a_short_epoch_drops_another_tail_each_time():
    stream = SampleStream(10, seed=0, epoch_size=8)
    epochs = stream.indices(torch.arange(8 * 40)).reshape(40, 8)
    assert all(len(set(epoch)) == 8 for epoch in epochs.tolist())
    assert epochs.unique().tolist() == list(range(10))


def test_a_resumed_run_sees_the_rest_of_the_order():
    whole = torch.stack(list(islice(StreamBatches(12, accumulate=3), 30)))  # 10 steps of 3 passes
    rest = torch.stack(list(islice(StreamBatches(12, accumulate=3, start_step=4), 18)))
    assert torch.equal(whole[12:], rest)
    assert torch.equal(whole.flatten(), torch.arange(120))
    assert len(list(StreamBatches(12, start_step=4, num_steps=5))) == 5


def test_ranks_together_see_what_one_process_sees():
    alone = torch.cat(list(StreamBatches(24, accumulate=2, num_steps=3)))
    ranks = [list(StreamBatches(24, world_size=3, rank=rank, accumulate=2, num_steps=3)) for rank in range(3)]
    together = torch.cat([torch.cat(parts) for parts in zip(*ranks, strict=True)])
    assert torch.equal(together, alone)


def test_a_batch_that_does_not_divide_names_one_that_does():
    with pytest.raises(UserError, match=r"batch_size=100 .* 3 devices x 2 accumulated passes = 6; for example 102"):
        StreamBatches(100, world_size=3, accumulate=2)


def test_random_integers_are_uniform_and_a_function_of_the_position():
    positions = torch.arange(60_000)
    draws = random_integers(5, positions, upper=6)
    counts = torch.bincount(draws, minlength=6).double()
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 20.5  # chi-square with 5 degrees of freedom: 1 in 1000
    pairs = torch.bincount(draws[:-1] * 6 + draws[1:], minlength=36).double()  # neighbouring positions: independent
    assert ((pairs - pairs.mean()) ** 2 / pairs.mean()).sum() < 66.6  # 35 degrees of freedom: 1 in 1000
    assert torch.equal(random_integers(5, positions[1234:1240], upper=6), draws[1234:1240])
    assert not torch.equal(random_integers(6, positions, upper=6), draws)


def test_random_integers_follow_the_published_generator():
    # SplitMix64 started at 0 gives these first numbers (the reference vector of the Java and C implementations).
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]

    class Zero:
        def generate_state(self, count: int, dtype: type) -> np.ndarray:
            return np.zeros(count, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "SeedSequence", lambda seed: Zero())
        draws = random_integers(0, torch.tensor([1, 2, 3]), upper=1 << 31)
    assert draws.tolist() == [number % (1 << 31) for number in expected]
