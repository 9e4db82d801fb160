"""3×3 convolutions with a quarter of the multiplications, for float32 on a CPU, where multiplications are the limit.

Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray, arXiv 1509.09308): a tile of 4×4 output pixels is

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

of the filter g and the tile d of 6×6 input pixels around it. Summed over channels, ⊙ becomes one matrix product for
each of the 36 places in a tile. With both axes in one Kronecker product, the three transforms are matrix products too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

OUT, FILTER, IN = 4, 3, 6  # pixels along one axis of an output tile, a filter, an input tile
# Where polynomials are evaluated, besides ∞. With 256 channels the relative error is 2·10⁻⁶ (root mean square; of a
# direct convolution 2·10⁻⁷); with 0, ±1, ±2, which everybody takes, it is twice as much.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
PAYS_FROM_CHANNELS, PAYS_FROM_PIXELS = 256, 16  # below, the transforms cost more than they save
CHUNK = 2**23  # numbers in a transformed input that stay in the processor's cache
# x @ weight.T by oneDNN, as torch.compile calls it. PyTorch's own float32 product is MKL's, which does not use AVX-512
# on other makers' processors than Intel's: there it is half as fast as oneDNN's, and as the convolution to beat.
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether this convolution (stride 1, padding 1) is faster here than as PyTorch computes it."""
    return (
        ONEDNN_LINEAR is not None
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and weight.shape[2:] == (FILTER, FILTER)
        and min(weight.shape[:2]) >= PAYS_FROM_CHANNELS
        and min(x.shape[2:]) >= PAYS_FROM_PIXELS
    )


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` of x `[B, C, H, W]` and weight `[K, C, 3, 3]`, channels last."""
    return _Conv3x3.apply(x, weight, bias)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight).add_(bias.reshape(-1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _convolve(grad, weight.flip(2, 3).transpose(0, 1)) if needs_x else None,
            _weight_gradient(x, grad) if needs_weight else None,
            grad.sum(dim=(0, 2, 3)) if needs_bias else None,
        )


def _vandermonde(columns: int) -> Tensor:
    """Powers of the points, `[6, columns]`; at ∞ only the highest counts."""
    powers = torch.tensor(POINTS, dtype=torch.float64).unsqueeze(1) ** torch.arange(columns)
    at_infinity = torch.eye(columns, dtype=torch.float64)[-1:]
    return torch.cat([powers, at_infinity])


def _both_axes(matrix: Tensor) -> Tensor:
    return torch.kron(matrix, matrix).float()


A_T = _both_axes(_vandermonde(OUT).T)  # [16, 36]
G = _both_axes(_vandermonde(FILTER))  # [36, 9]
B_T = _both_axes(_vandermonde(IN).inverse().T)  # [36, 36]


def _tiles(x: Tensor, size: int) -> Tensor:
    """Tiles of size×size pixels of x `[B, C, H, W]`, one around each 4×4 output pixels: `[size², tiles·C]`."""
    margin = (size - OUT) // 2
    to_the_right, below = -x.shape[3] % OUT, -x.shape[2] % OUT  # zeros up to whole tiles
    x = F.pad(x, (margin, margin + to_the_right, margin, margin + below))
    tiles = x.unfold(2, size, OUT).unfold(3, size, OUT)  # [B, C, rows, columns, size, size]
    return tiles.permute(4, 5, 0, 2, 3, 1).reshape(size * size, -1)


def _chunks(x: Tensor, *others: Tensor) -> zip:
    """The images in parts whose transformed tiles fit into the cache."""
    per_image = x[0].numel() * IN**2 // OUT**2
    return zip(*(tensor.split(max(1, CHUNK // per_image)) for tensor in (x, *others)), strict=True)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """x `[N, C]` times the transpose of weight `[K, C]`: `[N, K]`."""
    assert ONEDNN_LINEAR is not None
    product: Tensor = ONEDNN_LINEAR(x, weight, None, "none", [], "")
    return product


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    """`[B, K, H, W]`, channels last, of x `[B, C, H, W]` and weight `[K, C, 3, 3]`."""
    (B, C, H, W), K = x.shape, len(weight)
    rows, columns = -(-H // OUT), -(-W // OUT)
    x = x.contiguous(memory_format=torch.channels_last)
    filters = _linear(G, weight.permute(2, 3, 0, 1).reshape(FILTER**2, -1).T).view(-1, K, C)  # [36, K, C]
    out = x.new_empty(B, rows, OUT, columns, OUT, K)
    for part, out_part in _chunks(x, out):
        inputs = _linear(B_T, _tiles(part, IN).T).view(IN**2, -1, C)  # [36, tiles, C]
        products = torch.stack([_linear(*place) for place in zip(inputs, filters, strict=True)])  # [36, tiles, K]
        outputs = _linear(A_T, products.flatten(1).T).view(OUT, OUT, len(part), rows, columns, K)
        out_part.copy_(outputs.permute(2, 3, 0, 4, 1, 5))
    return out.view(B, rows * OUT, columns * OUT, K)[:, :H, :W].permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """`[K, C, 3, 3]` of input x `[B, C, H, W]` and the output's gradient `[B, K, H, W]`."""
    C, K = x.shape[1], grad.shape[1]
    x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    filters = x.new_zeros(IN**2, K, C)
    for part, grad_part in _chunks(x, grad):
        inputs = _linear(B_T, _tiles(part, IN).T).view(IN**2, -1, C)  # [36, tiles, C]
        products = _linear(A_T.T, _tiles(grad_part, OUT).T).view(IN**2, -1, K)  # [36, tiles, K]
        for place in range(IN**2):
            filters[place] += _linear(products[place].T, inputs[place].T)
    return (G.T @ filters.flatten(1)).view(FILTER, FILTER, K, C).permute(2, 3, 0, 1)
