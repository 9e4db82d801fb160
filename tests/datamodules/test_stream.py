"""The order of images: permutations per epoch, resumed and distributed runs that see what one run would."""

from itertools import islice

import pytest
import torch

from datamodules.stream import SampleStream, StreamBatches
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


def test_ranks_together_see_what_one_process_sees():
    alone = torch.cat(list(islice(StreamBatches(24, accumulate=2), 6)))
    ranks = [list(islice(StreamBatches(24, world_size=3, rank=rank, accumulate=2), 6)) for rank in range(3)]
    together = torch.cat([torch.cat(parts) for parts in zip(*ranks, strict=True)])
    assert torch.equal(together, alone)


def test_a_batch_that_does_not_divide_names_one_that_does():
    with pytest.raises(UserError, match=r"batch_size=100 .* 3 devices x 2 accumulated passes = 6; for example 102"):
        StreamBatches(100, world_size=3, accumulate=2)
