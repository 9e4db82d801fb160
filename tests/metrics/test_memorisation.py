"""Authenticity against its definition, against fresh samples, and on copies."""

import pytest
import torch
from torch import Tensor

from metrics.memorisation import memorisation, training_neighbours


def by_hand(features: Tensor, reference: Tensor) -> tuple[list[int], list[float]]:
    """Nearest training image of each generated one, and the ratio of the two distances."""
    nearest, ratios = [], []
    for x in features.double():
        distances = (reference.double() - x).norm(dim=1)
        index = int(distances.argmin())
        others = torch.cat([reference[:index], reference[index + 1 :]]).double()
        nearest.append(index)
        ratios.append(float(distances[index] / (others - reference[index].double()).norm(dim=1).min()))
    return nearest, ratios


@pytest.mark.parametrize("block_entries", [7, 1000])
def test_it_is_the_definition_whatever_the_blocks(block_entries: int) -> None:
    torch.manual_seed(0)
    features, reference = torch.randn(40, 3), torch.randn(50, 3)
    neighbours = training_neighbours(reference, block_entries)
    found = memorisation(features, reference, neighbours, block_entries)
    nearest, ratios = by_hand(features, reference)
    assert found.nearest.tolist() == nearest
    assert found.ratios.tolist() == pytest.approx(ratios, rel=1e-5)
    assert found.authenticity == sum(ratio >= 1 for ratio in ratios) / 40
    assert found.most_suspicious(3).tolist() == sorted(range(40), key=ratios.__getitem__)[:3]

    # Each training image against the others, as if it had been generated.
    left_out = [
        by_hand(reference[row : row + 1], torch.cat([reference[:row], reference[row + 1 :]]))[1][0] for row in range(50)
    ]
    assert neighbours.authenticity == pytest.approx(sum(ratio >= 1 for ratio in left_out) / 50)


@pytest.mark.parametrize("block_entries", [60, 1 << 20])
def test_nearest_images_of_a_time_lapse(block_entries: int) -> None:
    """Each frame is nearest to itself, copied, and to its neighbours in time, however far all of them lie."""
    torch.manual_seed(0)
    frames = 50 + 1e-4 * torch.randn(300, 40).cumsum(dim=0)
    shifted = frames + 1e-5
    neighbours = training_neighbours(frames, block_entries)
    found = memorisation(torch.cat([frames, shifted]), frames, neighbours, block_entries)
    nearest, _ = by_hand(torch.cat([frames, shifted]), frames)
    assert found.nearest.tolist() == nearest
    assert nearest[:300] == list(range(300))
    assert (found.distances[:300] == 0).all()
    assert (found.ratios[:300] == 0).all()


def test_of_equal_distances_the_first_image_is_nearest() -> None:
    """And an image that is no nearer than a third one is authentic."""
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    neighbours = training_neighbours(square)
    assert neighbours.indices.tolist() == [1, 0, 1, 0]
    assert neighbours.distances_to_next.tolist() == [1, 1, 1, 1]
    assert neighbours.authenticity == 1
    found = memorisation(torch.tensor([[0.5, 0.5], [0.0, 2.0]]), square, neighbours)
    assert found.nearest.tolist() == [0, 1]
    assert found.ratios.tolist() == pytest.approx([0.5**0.5, 1])
    assert found.authenticity == 0.5


def test_two_training_images_have_no_third() -> None:
    neighbours = training_neighbours(torch.tensor([[0.0], [1.0]]))
    assert neighbours.distances_to_next.tolist() == [float("inf")] * 2
    assert neighbours.authenticity == 0


def test_fresh_samples_are_as_authentic_as_training_images_and_copies_are_not() -> None:
    torch.manual_seed(0)
    fresh, reference = torch.randn(3000, 4), torch.randn(3000, 4)
    neighbours = training_neighbours(reference)
    assert memorisation(fresh, reference, neighbours).authenticity == pytest.approx(neighbours.authenticity, abs=0.03)
    copies = reference + 1e-3 * torch.randn(3000, 4)
    assert memorisation(copies, reference, neighbours).authenticity < 0.01


def test_a_copy_of_an_image_that_is_there_twice_is_a_copy() -> None:
    torch.manual_seed(0)
    reference = torch.randn(30, 4)
    reference[7] = reference[3]
    found = memorisation(reference[[7, 5]], reference, training_neighbours(reference))
    assert found.ratios.tolist() == [0, 0]
    assert found.distances.tolist() == [0, 0]


def test_one_training_image_has_no_neighbour() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        training_neighbours(torch.randn(1, 3))
