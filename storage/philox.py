"""Random numbers that are a function of where they are used, not of when.

A counter-based generator (Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns
(seed, stream, position, element) into a random word without any state. Therefore a resumed run draws what an
uninterrupted one draws, two processes draw what one draws, and an image does not depend on its neighbours in the batch.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_COUNTERS_PER_CHUNK = 1 << 15  # the working set of one chunk stays in the processor's cache
Word = TypeVar("Word", Tensor, int)


class Stream(IntEnum):
    """Purposes of random numbers. Numbers of different streams are independent; a published value never changes."""

    SIGMA = 1
    NOISE = 2
    AUGMENT_UNIFORM = 3
    AUGMENT_NORMAL = 4
    LABEL_DROPOUT = 5
    NETWORK_DROPOUT = 6
    LATENTS = 7
    CHURN = 8
    LABELS = 9
    ORDER = 10
    NEIGHBOURS = 11
    MEASURED_NOISE = 12


def philox4x32(counter: Sequence[Word], key: tuple[int, int]) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10: four 32-bit words from a counter of four 32-bit words and a key of two.

    Words are whole numbers, or int64 tensors with values in [0, 2³²) whose shapes broadcast. A product of two words may
    pass 2⁶³: int64 wraps around, and the masks recover the two halves.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = (product1 >> 32 & _MASK_32) ^ c1 ^ k0
        c2 = (product0 >> 32 & _MASK_32) ^ c3 ^ k1
        c1 = product1 & _MASK_32
        c3 = product0 & _MASK_32
        k0 = (k0 + _WEYL_INCREMENTS[0]) & _MASK_32
        k1 = (k1 + _WEYL_INCREMENTS[1]) & _MASK_32
    return c0, c1, c2, c3


def _words(seed: int, stream: int, positions: Tensor, num_blocks: int) -> Tensor:
    """Random words [4, B, num_blocks] (int64, in [0, 2³²)); block j of a position holds four words."""
    device = positions.device
    blocks = torch.arange(num_blocks, dtype=torch.int64, device=device).unsqueeze(0)  # [1, num_blocks]
    rows = positions.to(torch.int64).unsqueeze(1)  # [B, 1]
    in_chunks = device.type == "cpu" and not torch.compiler.is_compiling()  # compiled, nothing goes through memory
    rows_per_chunk = max(1, _COUNTERS_PER_CHUNK // num_blocks if in_chunks else len(rows))
    words = torch.empty(4, len(rows), num_blocks, dtype=torch.int64, device=device)
    for start in range(0, len(rows), rows_per_chunk):
        chunk = rows[start : start + rows_per_chunk]
        counter = (blocks, torch.full_like(blocks, int(stream)), chunk & _MASK_32, (chunk >> 32) & _MASK_32)
        for word, drawn in zip(words[:, start : start + rows_per_chunk], philox4x32(counter, _key(seed)), strict=True):
            word.copy_(drawn)
    return words


def uniform(
    seed: int, stream: int, positions: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in [0, 1), `[B, *shape]`, on the device of `positions` (int64 `[B]`).

    Each depends on (seed, stream, its position, its index in `shape`) alone. Resolution 2⁻³² in float64, 2⁻²⁴ else.
    """
    num_elements = math.prod(shape)
    words = _words(seed, stream, positions, num_blocks=-(-num_elements // 4))
    words = words.permute(1, 2, 0).flatten(1)[:, :num_elements]  # [B, elements]
    numbers = words.to(dtype) * 2.0**-32 if dtype == torch.float64 else (words >> 8).to(torch.float32) * 2.0**-24
    return numbers.to(dtype).reshape(len(positions), *shape)


def normal(
    seed: int, stream: int, positions: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers `[B, *shape]` on the device of `positions` (int64 `[B]`), by Box and Muller (1958).

    Each depends on (seed, stream, its position, its index in `shape`) alone. They are computed in float64 and rounded
    once: float32 kernels differ in the last bit between vector widths, hence between batches.
    """
    if positions.device.type == "mps":  # has no float64
        return normal(seed, stream, positions.cpu(), shape, dtype).to(positions.device)
    num_elements = math.prod(shape)
    words = _words(seed, stream, positions, num_blocks=-(-num_elements // 4))
    radius = words[0::2].to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()  # [2, B, blocks]
    angle = words[1::2].to(torch.float64).mul_(2.0 * math.pi * 2.0**-32)
    numbers = torch.cat([radius * angle.cos(), radius * angle.sin()]).to(dtype)  # [4, B, blocks]
    return numbers.permute(1, 2, 0).flatten(1)[:, :num_elements].reshape(len(positions), *shape)


def integers(seed: int, stream: int, positions: Tensor, upper: int) -> Tensor:
    """A uniform whole number in 0…upper−1 for each position (int64 `[B]`), upper up to 2³¹: int64 `[B]`."""
    return _words(seed, stream, positions, num_blocks=1)[0, :, 0] * upper >> 32


def permutation(seed: int, stream: int, position: int, length: int) -> Tensor:
    """A random order of 0…length−1, int64 `[length]`, that depends on (seed, stream, position, length) alone."""
    high, low = _words(seed, stream, torch.tensor([position]), num_blocks=-(-length // 2)).view(2, 2, -1)
    return (high << 31 ^ low).flatten()[:length].argsort(stable=True)


def torch_seed(seed: int, rank: int, step: int) -> int:
    """A seed in [0, 2⁶³) for PyTorch's global generator (network dropout) at one step of one rank."""
    words = (rank & _MASK_32, int(Stream.NETWORK_DROPOUT), step & _MASK_32, (step >> 32) & _MASK_32)
    low, high, _, _ = philox4x32(words, _key(seed))
    return (high << 32 | low) & (2**63 - 1)


def _key(seed: int) -> tuple[int, int]:
    return seed & _MASK_32, (seed >> 32) & _MASK_32
