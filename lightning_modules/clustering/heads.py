"""Clustering heads: many small networks from embedding to cluster logits, computed side by side."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClusteringHeads(nn.Module):
    """H independent heads that read the same embeddings (TEMI, arXiv 2303.17896).

    Each is Linear(D → hidden_dim), GELU, Linear(hidden_dim → bottleneck_dim), L2 normalisation, then a linear map
    without bias, weight-normalised: logit_c = gain_c ⟨direction_c / |direction_c|, features⟩. So |logit_c| ≤ |gain_c|,
    and the gains start at 1. All heads share one tensor per layer, [H, out, in]; a layer is one batched product.

    Args:
        num_heads: H.
        embedding_dim: D, dimensions of an embedding.
        num_clusters: C, logits per head.
        hidden_dim: width of the hidden layer.
        bottleneck_dim: width of the normalised features that the last layer reads.

    Examples:
        >>> heads = ClusteringHeads(num_heads=4, embedding_dim=16, num_clusters=10)
        >>> heads(torch.randn(5, 16)).shape
        torch.Size([4, 5, 10])
    """

    def __init__(
        self,
        num_heads: int,
        embedding_dim: int,
        num_clusters: int,
        hidden_dim: int = 512,
        bottleneck_dim: int = 256,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.embedding_dim = embedding_dim
        self.num_clusters = num_clusters
        self.hidden_dim = hidden_dim
        self.bottleneck_dim = bottleneck_dim

        self.hidden_weight = nn.Parameter(torch.empty(num_heads, hidden_dim, embedding_dim))
        self.hidden_bias = nn.Parameter(torch.empty(num_heads, hidden_dim))
        self.bottleneck_weight = nn.Parameter(torch.empty(num_heads, bottleneck_dim, hidden_dim))
        self.bottleneck_bias = nn.Parameter(torch.empty(num_heads, bottleneck_dim))
        self.direction = nn.Parameter(torch.empty(num_heads, num_clusters, bottleneck_dim))
        self.gain = nn.Parameter(torch.empty(num_heads, num_clusters, 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """MLP: truncated normal weights (standard deviation 0.02), zero biases. Last layer: unit gains, and directions
        as PyTorch initialises a linear layer, uniform up to 1/√bottleneck_dim: the published heads leave it so.
        """
        for weight in (self.hidden_weight, self.bottleneck_weight):
            nn.init.trunc_normal_(weight, std=0.02)
        bound = self.bottleneck_dim**-0.5
        nn.init.uniform_(self.direction, -bound, bound)
        nn.init.zeros_(self.hidden_bias)
        nn.init.zeros_(self.bottleneck_bias)
        nn.init.ones_(self.gain)

    @property
    def last_layer(self) -> list[nn.Parameter]:
        """The parameters of the weight-normalised layer."""
        return [self.direction, self.gain]

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of every head.

        Args:
            embeddings: [B, D], standardised per dimension or raw: `clustering.standardise`.

        Returns:
            [H, B, C].
        """
        x = embeddings.expand(self.num_heads, -1, -1)  # [H, B, D], a view; a copy under autocast
        x = torch.baddbmm(self.hidden_bias[:, None], x, self.hidden_weight.mT)  # [H, B, hidden]
        x = F.gelu(x)
        x = torch.baddbmm(self.bottleneck_bias[:, None], x, self.bottleneck_weight.mT)  # [H, B, bottleneck]
        x = F.normalize(x, dim=-1)
        last_weight = self.gain * F.normalize(self.direction, dim=-1)  # [H, C, bottleneck]
        return x @ last_weight.mT  # [H, B, C]

    def head(self, index: int) -> "ClusteringHeads":
        """A copy of head `index` alone, ready for inference: a `ClusteringHeads` with one head and no gradients."""
        if not 0 <= index < self.num_heads:
            raise ValueError(f"head {index} does not exist: there are {self.num_heads} heads, counted from 0")
        with torch.device("meta"):  # no time spent on initial weights that are replaced at once
            alone = ClusteringHeads(1, self.embedding_dim, self.num_clusters, self.hidden_dim, self.bottleneck_dim)
        weights = {name: stacked[index : index + 1].clone() for name, stacked in self.state_dict().items()}
        alone.load_state_dict(weights, assign=True)
        return alone.requires_grad_(False).eval()
