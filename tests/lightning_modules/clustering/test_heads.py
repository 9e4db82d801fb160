"""Stacked heads equal heads built from PyTorch's own layers."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_modules.clustering.heads import ClusteringHeads


def separate_head(heads: ClusteringHeads, index: int) -> nn.Sequential:
    """Head `index` made of nn.Linear, with PyTorch's weight normalisation."""
    last = weight_norm(nn.Linear(heads.bottleneck_dim, heads.num_clusters, bias=False), dim=0)
    network = nn.Sequential(
        nn.Linear(heads.embedding_dim, heads.hidden_dim), nn.GELU(), nn.Linear(heads.hidden_dim, heads.bottleneck_dim)
    )
    with torch.no_grad():
        network[0].weight.copy_(heads.hidden_weight[index])
        network[0].bias.copy_(heads.hidden_bias[index])
        network[2].weight.copy_(heads.bottleneck_weight[index])
        network[2].bias.copy_(heads.bottleneck_bias[index])
        last.parametrizations.weight.original0.copy_(heads.gain[index])
        last.parametrizations.weight.original1.copy_(heads.direction[index])
    return nn.Sequential(network, Normalise(), last)


class Normalise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.norm(dim=-1, keepdim=True)


def trained_looking_heads() -> ClusteringHeads:
    torch.manual_seed(0)
    heads = ClusteringHeads(num_heads=3, embedding_dim=10, num_clusters=7, hidden_dim=16, bottleneck_dim=8)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(torch.randn_like(parameter))
    return heads


def test_stacked_heads_equal_separate_networks_with_gradients() -> None:
    heads, embeddings = trained_looking_heads(), torch.randn(5, 10)
    target = torch.randn(3, 5, 7)
    logits = heads(embeddings)
    (logits * target).sum().backward()
    for index in range(3):
        network = separate_head(heads, index)
        expected = network(embeddings)
        (expected * target[index]).sum().backward()
        torch.testing.assert_close(logits[index], expected)
        for ours, theirs in [
            (heads.hidden_weight, network[0][0].weight),
            (heads.bottleneck_bias, network[0][2].bias),
            (heads.gain, network[2].parametrizations.weight.original0),
            (heads.direction, network[2].parametrizations.weight.original1),
        ]:
            torch.testing.assert_close(ours.grad[index], theirs.grad, rtol=1e-4, atol=1e-5)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    heads = ClusteringHeads(num_heads=4, embedding_dim=64, num_clusters=100)
    assert 0.019 < heads.hidden_weight.std() < 0.021
    linear = nn.Linear(256, 100, bias=False).weight  # the last layer keeps PyTorch's own initialisation
    for initial in (linear, heads.direction):
        assert 0.0624 < initial.abs().max() <= 1 / 16
        assert 0.035 < initial.std() < 0.037  # (1/16) / √3
    assert not torch.equal(heads.hidden_weight[0], heads.hidden_weight[1])
    assert heads(torch.randn(32, 64)).abs().max() <= 1 + 1e-5  # unit gains bound the logits by 1


def test_one_head_alone_computes_the_same_and_is_a_copy() -> None:
    heads, embeddings = trained_looking_heads(), torch.randn(5, 10)
    alone = heads.head(2)
    before = alone(embeddings)
    torch.testing.assert_close(before[0], heads(embeddings)[2])
    assert not before.requires_grad
    with torch.no_grad():
        heads.hidden_weight.zero_()
    assert torch.equal(alone(embeddings), before)
