"""Number formats that models are served in, as rounding: a weight and what is left of it, on any device.

Each is what a library does to a weight, to the bit in float32 (the tests hold them against the libraries):

int8        one scale a row (a module's output), 127 / max|w|: bitsandbytes, LLM.int8() without its outliers
int4-g128   groups of 128 along a row, 16 levels between their least and their greatest: torchao, asymmetric
int4-g64    the same in groups of 64
nf4         blocks of 64 of the whole weight, the 16 quantiles of a normal distribution: bitsandbytes, QLoRA
q8_0        blocks of 32, 8 bits, a float16 scale: llama.cpp
q4_0        blocks of 32, 16 levels, a float16 scale by the greatest of them: llama.cpp
q4_k        blocks of 32, 16 levels, scale and least one fitted, themselves of 6 bits in blocks of 256: llama.cpp. Rows
            that are no multiple of 256 are Q5_0 (blocks of 32, 32 levels), as there

Weights alone are rounded. What a kernel does to activations is not seen here, nor that llama.cpp's mixtures (Q4_K_M)
keep some weights in more bits. A row that does not fill its last block has a shorter one; the libraries leave such a
weight as it is, or refuse it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gru_fast.runs.messages import nearest

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_OF_127 = 7.874015718698502e-3  # 1/127, as bitsandbytes has it
_CHUNK = 2**20  # weights at a time in the fit of q4_k, whose tries are kept side by side


@dataclass(frozen=True)
class Rounded:
    """A weight in a format.

    Args:
        values: float32, of the weight's shape: what a model computes with.
        levels: int16, of the weight's shape: which of its block's levels each element is on.
    """

    values: Tensor
    levels: Tensor


@dataclass(frozen=True)
class Format:
    """A registered format.

    Args:
        name: in ``--formats``.
        bits: of a weight, without scales.
        rounded: a weight (..., columns) of any floating dtype -> what is left of it.
    """

    name: str
    bits: int
    rounded: Callable[[Tensor], Rounded]


_formats: dict[str, Format] = {}


def names() -> list[str]:
    """All formats, from the finest to the coarsest."""
    return list(_formats)


def get(name: str) -> Format:
    """The format called ``name``. Unknown names: ValueError that lists the known and the nearest."""
    if name not in _formats:
        raise ValueError(f'formats: expected some of {", ".join(names())}, got "{name}"{nearest(name, _formats)}')
    return _formats[name]


Rounding = Callable[[Tensor], Rounded]


def _format(name: str, bits: int) -> Callable[[Rounding], Rounding]:
    def add(rounded: Rounding) -> Rounding:
        def of_weight(weight: Tensor) -> Rounded:
            found = rounded(weight.detach().reshape(-1, weight.shape[-1]).float())
            return Rounded(found.values.reshape(weight.shape), found.levels.reshape(weight.shape))

        _formats[name] = Format(name, bits, of_weight)
        return rounded

    return add


# ---- bitsandbytes, torchao -------------------------------------------------------------------------------------------


@_format("int8", 8)
def _int8(weight: Tensor) -> Rounded:
    greatest = weight.abs().amax(dim=1, keepdim=True)
    levels = torch.round(weight * torch.where(greatest > 0, 127.0 / greatest, 0.0))
    return Rounded(levels * greatest * _OF_127, levels.to(torch.int16))


@_format("q8_0", 8)
def _q8_0(weight: Tensor) -> Rounded:
    blocks, whole = padded(weight, 32)
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127.0
    levels = _half_away(blocks * _inverse(scale))
    return whole(levels * _half(scale), levels)


@_format("int4-g64", 4)
def _int4_g64(weight: Tensor) -> Rounded:
    return _int4(weight, 64)


@_format("int4-g128", 4)
def _int4_g128(weight: Tensor) -> Rounded:
    return _int4(weight, 128)


def _int4(weight: Tensor, group: int) -> Rounded:
    """Levels 0 to 15 from min(w, 0) to max(w, 0), so that 0 is one of them."""
    blocks, whole = padded(weight, group)
    least, greatest = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True).clamp(min=0)
    scale = ((greatest - least) / 15.0).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-torch.round(least / scale)).clamp(0, 15)
    levels = (torch.round(blocks * (1.0 / scale)) + zero).clamp(0, 15)
    return whole((levels - zero) * scale, levels)


@_format("nf4", 4)
def _nf4(weight: Tensor) -> Rounded:
    blocks, whole = padded(weight.reshape(1, -1), 64)
    greatest = blocks.abs().amax(dim=-1, keepdim=True)
    points = torch.tensor(_NF4, dtype=torch.float32, device=weight.device)
    borders = (points[1:] + points[:-1]) / 2
    levels = torch.bucketize(blocks * _inverse(greatest), borders)
    found = whole(points[levels] * greatest, levels)
    return Rounded(found.values.reshape(weight.shape), found.levels.reshape(weight.shape))


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


@_format("q4_0", 4)
def _q4_0(weight: Tensor) -> Rounded:
    return _signed(weight, bits=4)


def _q5_0(weight: Tensor) -> Rounded:
    return _signed(weight, bits=5)


def _signed(weight: Tensor, bits: int) -> Rounded:
    """The element of the greatest magnitude is the lowest level, -2^(bits-1) with the scale's sign."""
    half = 2 ** (bits - 1)
    blocks, whole = padded(weight, 32)
    greatest = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
    scale = greatest / -half
    levels = torch.trunc(blocks * _inverse(scale) + (half + 0.5)).clamp(0, 2 * half - 1)
    return whole((levels - half) * _half(scale), levels)


@_format("q4_k", 4)
def _q4_k(weight: Tensor) -> Rounded:
    if weight.shape[1] % 256:
        return _q5_0(weight)
    blocks = weight.reshape(-1, 8, 32)
    parts = [_superblocks(some) for some in blocks.split(max(1, _CHUNK // 256))]
    values, levels = (torch.cat(found).reshape(weight.shape) for found in zip(*parts, strict=True))
    return Rounded(values, levels.to(torch.int16))


def _superblocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Values and levels of (N, 8, 32): each block's scale and offset are fitted, then rounded to 6 bits over the 8."""
    scale, offset = _fitted(blocks)
    of_scale, of_offset = (found.amax(dim=1, keepdim=True) for found in (scale, offset))
    scale = _half(of_scale / 63.0) * torch.round(scale * _inverse(of_scale, 63.0)).clamp(0, 63)
    offset = _half(of_offset / 63.0) * torch.round(offset * _inverse(of_offset, 63.0)).clamp(0, 63)
    levels = torch.where(scale > 0, torch.round((blocks + offset) / scale), 0.0).clamp(0, 15)
    return levels * scale - offset, levels


def _fitted(blocks: Tensor, tries: int = 20) -> tuple[Tensor, Tensor]:
    """Scale and offset, both (N, 8, 1) and at least 0, of x = scale * level - offset, level 0 to 15.

    Levels by a spread a little finer or coarser than the block's, 21 of them; for each the least squares in scale and
    offset, weighted by sqrt(mean x^2) + |x|. The best of them, or what the spread itself gives.
    """
    weights = blocks.square().mean(dim=-1, keepdim=True).sqrt() + blocks.abs()
    least, greatest = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True)
    spread = greatest - least
    sum_w, sum_x = weights.sum(-1, keepdim=True), (weights * blocks).sum(-1, keepdim=True)

    def levels_of(steps: float) -> Tensor:
        return torch.round(_inverse(spread, steps) * (blocks - least)).clamp(0, 15)

    def error(scale: Tensor, least: Tensor, levels: Tensor) -> Tensor:
        return (weights * (scale * levels + least - blocks).square()).sum(-1, keepdim=True)

    scale, offset = spread / 15.0, least
    best = error(scale, offset, levels_of(15.0))
    for index in range(tries + 1):
        levels = levels_of(-1.0 + 0.1 * index + 15.0)
        sum_l, sum_l2 = (weights * levels).sum(-1, keepdim=True), (weights * levels.square()).sum(-1, keepdim=True)
        sum_xl = (weights * levels * blocks).sum(-1, keepdim=True)
        determinant = sum_w * sum_l2 - sum_l.square()
        fitted = (sum_w * sum_xl - sum_x * sum_l) / determinant
        its_least = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        fitted = torch.where(its_least > 0, sum_xl / sum_l2, fitted)
        its_least = its_least.clamp(max=0)
        its_error = error(fitted, its_least, levels)
        better = (determinant > 0) & (its_error < best)
        best = torch.where(better, its_error, best)
        scale, offset = torch.where(better, fitted, scale), torch.where(better, its_least, offset)
    flat = spread == 0
    return torch.where(flat, 0.0, scale), -torch.where(flat, least, offset)


# ---- blocks ----------------------------------------------------------------------------------------------------------


def padded(weight: Tensor, size: int) -> tuple[Tensor, Callable[[Tensor, Tensor], Rounded]]:
    """(rows, columns) as (rows, blocks, size), and what puts values and levels of these together again.

    A last block that is not full is filled up with zeros, which move neither its greatest magnitude nor a range that
    holds 0.
    """
    rows, columns = weight.shape
    blocks = torch.nn.functional.pad(weight, (0, -columns % size)).reshape(rows, -1, size)

    def whole(values: Tensor, levels: Tensor) -> Rounded:
        values, levels = (found.reshape(rows, -1)[:, :columns] for found in (values, levels))
        return Rounded(values.contiguous(), levels.to(torch.int16).contiguous())

    return blocks, whole


def _inverse(scale: Tensor, numerator: float = 1.0) -> Tensor:
    """numerator / scale; 0 of 0."""
    return torch.where(scale == 0, 0.0, numerator / scale)


def _half(scale: Tensor) -> Tensor:
    """A scale as float16 keeps it."""
    return scale.half().float()


def _half_away(values: Tensor) -> Tensor:
    """Rounded to whole numbers, halves away from 0, as C's roundf."""
    whole = torch.trunc(values)
    return whole + torch.sign(values) * ((values - whole).abs() >= 0.5)
