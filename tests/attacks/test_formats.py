"""Number formats: bit for bit what the libraries make of a weight, and what a rounding must do whatever the weight."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gru_fast.attacks.parts import formats

LLAMA_CPP = {"q8_0": GgmlType.Q8_0, "q4_0": GgmlType.Q4_0}
BLOCKS = {"int4-g64": 64, "int4-g128": 128, "q8_0": 32, "q4_0": 32, "q4_k": 32}  # along a row

# Of `counted()`: hashes of what bitsandbytes 0.50.2 and torchao 0.18.0 make of it on a CPU, values as float32, levels
# as int16: quantize_4bit(blocksize=64, quant_type="nf4"); int8_vectorwise_quant; choose_qparams_affine(ASYMMETRIC,
# (1, group), int32, 0, 15) with quantize_affine. And the first four values, to see by how much it is another.
LIBRARIES: dict[str, dict[str, Any]] = {
    "nf4": {
        "values": "37131861834f97d6f7c9aef44fa1943c",
        "first": [-0.05000000074505806, -0.014222069643437862, 0.016895761713385582, -0.05000000074505806],
    },
    "int8": {
        "values": "b136b6b5168d9dcf7dc8e342fc3e0400",
        "levels": "ce3ab7466336fa17e4e86488cef1d3a9",
        "first": [-0.05000000074505806, -0.016141731292009354, 0.017716534435749054, -0.04842519760131836],
    },
    "int4-g64": {
        "values": "5e58c909bcedfdd05fab72aa69707a73",
        "levels": "a2076ab0249821610b1a38d1bf0f3cab",
        "first": [-0.052106667309999466, -0.013026666827499866, 0.019540000706911087, -0.04559333249926567],
    },
    "int4-g128": {
        "values": "70ccd4071e4689cd0288d94c62c87562",
        "levels": "f9119357c4855aacac7a85a1190b4d8a",
        "first": [-0.052906665951013565, -0.013226666487753391, 0.019840000197291374, -0.04629333317279816],
    },
}


def counted() -> Tensor:
    """(6, 256) float32 in -0.05 to 0.05, by whole numbers: the same everywhere."""
    i, j = np.indices((6, 256))
    return torch.from_numpy(((((i * 7919 + j * 104729 + i * j * 31) % 2001) - 1000) / 20000).astype(np.float32))


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Weights as a layer has them, with a block of zeros and one of a single sign."""
    weight = 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0, :32] = 0
    weight[-1, -32:] = weight[-1, -32:].abs()
    return weight


def hashed(values: Tensor) -> str:
    # + 0: there are zeros with a sign, which is no difference.
    return hashlib.blake2b(np.ascontiguousarray(values.numpy() + 0).tobytes(), digest_size=16).hexdigest()


@pytest.mark.parametrize("name", LIBRARIES)
def test_bitsandbytes_and_torchao(name: str) -> None:
    found, expected = formats.get(name).rounded(counted()), LIBRARIES[name]
    assert found.values[0, :4].tolist() == expected["first"]
    assert hashed(found.values) == expected["values"]
    if "levels" in expected:
        assert hashed(found.levels) == expected["levels"]


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_llama_cpp(name: str) -> None:
    for weight in (normal(16, 512), counted(), torch.full((1, 32), -0.5), torch.zeros(2, 64)):
        packed = gguf.quants.quantize(weight.numpy(), LLAMA_CPP[name])
        expected = torch.from_numpy(gguf.quants.dequantize(packed, LLAMA_CPP[name]))
        assert torch.equal(formats.get(name).rounded(weight).values, expected)


def test_rows_that_q4_k_cannot_take_are_q5_0() -> None:
    weight = normal(4, 288)
    packed = gguf.quants.quantize(weight.numpy(), GgmlType.Q5_0)
    expected = torch.from_numpy(gguf.quants.dequantize(packed, GgmlType.Q5_0))
    assert torch.equal(formats.get("q4_k").rounded(weight).values, expected)


def test_q4_k_by_a_slow_reading_of_its_description() -> None:
    """And through llama.cpp's bytes: gguf unpacks what the slow reading packs to the same values."""
    weight = torch.cat([normal(3, 512), counted()[:2, :].repeat(1, 2)])
    found = formats.get("q4_k").rounded(weight)
    rows = weight.reshape(-1, 256).numpy()
    slow = [slow_q4_k(row) for row in rows]
    levels = np.stack([one[0] for one in slow]).reshape(weight.shape)
    # A sum in another order may turn one of 20 fits that are as good as each other.
    assert (found.levels.numpy() == levels).mean() > 0.995
    packed = np.stack([pack_q4_k(*one) for one in slow])
    values = gguf.quants.dequantize(packed, GgmlType.Q4_K).reshape(weight.shape)
    same = found.levels.numpy() == levels
    blocks = same.reshape(-1, 256).all(axis=1)
    assert blocks.mean() > 0.8
    assert np.allclose(
        found.values.numpy().reshape(-1, 256)[blocks], values.reshape(-1, 256)[blocks], rtol=0, atol=1e-6
    )
    for error in (found.values.numpy() - weight.numpy(), values - weight.numpy()):
        assert np.abs(error).max() < 0.01  # of weights up to 0.08


@given(
    st.sampled_from(formats.names()), st.integers(1, 5), st.integers(1, 300), st.floats(0.05, 1e3), st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_what_any_rounding_does(name: str, rows: int, columns: int, scale: float, seed: int) -> None:
    weight = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    form = formats.get(name)
    found = form.rounded(weight)
    assert found.values.shape == found.levels.shape == weight.shape
    assert found.values.dtype == torch.float32
    # A block has so many levels, and no element is further off than a bin of its row's (for nf4: the whole) range.
    count = 32 if name == "q4_k" and columns % 256 else 2**form.bits
    size = BLOCKS.get(name, columns)
    for block in found.levels.split(size, dim=1):
        assert all(len(row.unique()) <= count for row in block)
    widest = 0.16 if name == "nf4" else 1.1 / (2**form.bits - 1)
    reach = weight.max().clamp(min=0) - weight.min().clamp(max=0) if name != "int8" else 2 * weight.abs().max()
    reach = max(reach, 2 * weight.abs().max()) if name in {"q8_0", "q4_0", "nf4", "q4_k"} else reach
    assert float((found.values - weight).abs().max()) <= widest * float(reach)
    # Zero stays where zero is a level.
    assert torch.equal(form.rounded(torch.zeros_like(weight)).values, torch.zeros_like(weight))


@pytest.mark.parametrize("name", formats.names())
def test_of_any_dtype_and_shape(name: str) -> None:
    weight = normal(6, 256).bfloat16()
    assert torch.equal(formats.get(name).rounded(weight).values, formats.get(name).rounded(weight.float()).values)
    stacked = weight.reshape(2, 3, 256)
    assert torch.equal(
        formats.get(name).rounded(stacked).values.reshape(6, 256), formats.get(name).rounded(weight).values
    )


def test_more_bits_are_nearer() -> None:
    weight = normal(32, 512)
    errors = {name: float((formats.get(name).rounded(weight).values - weight).norm()) for name in formats.names()}
    assert max(errors["int8"], errors["q8_0"]) < 0.2 * min(
        errors[name] for name in errors if formats.get(name).bits == 4
    )
    assert errors["q4_k"] < errors["q4_0"]  # fitted, not by the greatest
    assert errors["int4-g64"] < errors["int4-g128"]


def test_unknown_formats_are_named() -> None:
    with pytest.raises(ValueError, match=r'expected some of int8, .*, got "int4_g64", did you mean "int4-g64"\?'):
        formats.get("int4_g64")


# ---- Q4_K, an element at a time --------------------------------------------------------------------------------------


def slow_q4_k(row: np.ndarray) -> tuple[np.ndarray, float, float, list[int], list[int]]:
    """Levels (256,), d, dmin, 8 scales and 8 offsets of 6 bits, of a row of 256 floats: Python's float64 throughout."""
    fits = [slow_fit([float(x) for x in row[32 * j : 32 * j + 32]]) for j in range(8)]
    most = max(scale for scale, _ in fits), max(offset for _, offset in fits)
    d, dmin = (float(np.float16(each / 63)) for each in most)
    scales, offsets = (
        [min(63, round(63 / top * fit[of])) if top > 0 else 0 for fit in fits] for of, top in enumerate(most)
    )
    levels = np.zeros(256, dtype=np.int16)
    for j in range(8):
        for i in range(32):
            if d * scales[j]:
                at = (float(row[32 * j + i]) + dmin * offsets[j]) / (d * scales[j])
                levels[32 * j + i] = min(15, max(0, round(at)))
    return levels, d, dmin, scales, offsets


def slow_fit(x: list[float]) -> tuple[float, float]:
    typical = math.sqrt(sum(v * v for v in x) / len(x))
    w = [typical + abs(v) for v in x]
    low, high = min(0.0, *x), max(x)
    if high == low:
        return 0.0, -low

    def levels_of(steps: float) -> list[int]:
        return [min(15, max(0, round(steps / (high - low) * (v - low)))) for v in x]

    def error(scale: float, least: float, levels: list[int]) -> float:
        return sum(b * (scale * n + least - v) ** 2 for b, n, v in zip(w, levels, x, strict=True))

    best = (high - low) / 15, low
    least_error = error(*best, levels_of(15))
    for attempt in range(21):
        levels = levels_of(14 + 0.1 * attempt)
        of = np.array([levels, np.ones(32)], dtype=np.float64)  # the two columns of the least squares
        a, b = (of * w) @ of.T, (of * w) @ np.array(x)
        if np.linalg.det(a) <= 0:
            continue
        scale, least = np.linalg.solve(a, b)
        if least > 0:
            scale, least = b[0] / a[0, 0], 0.0
        if error(scale, least, levels) < least_error:
            least_error, best = error(scale, least, levels), (float(scale), float(least))
    return best[0], -best[1]


def pack_q4_k(levels: np.ndarray, d: float, dmin: float, scales: list[int], offsets: list[int]) -> np.ndarray:
    """144 bytes of llama.cpp's block: d, dmin, 12 bytes of 6-bit numbers, 128 of nibbles."""
    packed = bytearray(np.array([d, dmin], dtype=np.float16).tobytes())
    low = [scales[j] | (scales[j + 4] >> 4) << 6 for j in range(4)]
    middle = [offsets[j] | (offsets[j + 4] >> 4) << 6 for j in range(4)]
    high = [(scales[j + 4] & 15) | (offsets[j + 4] & 15) << 4 for j in range(4)]
    packed += bytes([*low, *middle, *high])
    for j in range(0, 8, 2):
        first, second = levels[32 * j : 32 * j + 32], levels[32 * j + 32 : 32 * j + 64]
        packed += bytes(int(a) | int(b) << 4 for a, b in zip(first, second, strict=True))
    return np.frombuffer(bytes(packed), dtype=np.uint8)


def test_the_packing_is_llama_cpps() -> None:
    """The helper above by itself: bytes that gguf unpacks to d * scale * level - dmin * offset."""
    levels = np.arange(256, dtype=np.int16) % 16
    scales, offsets = [1, 5, 17, 63, 33, 2, 40, 8], [0, 63, 3, 20, 50, 16, 7, 1]
    found = gguf.quants.dequantize(pack_q4_k(levels, 0.5, 0.25, scales, offsets)[None], GgmlType.Q4_K)[0]
    expected = [0.5 * scales[i // 32] * levels[i] - 0.25 * offsets[i // 32] for i in range(256)]
    assert found.tolist() == expected


def test_the_module_says_what_each_format_is() -> None:
    text = Path(formats.__file__).read_text(encoding="utf-8").split('"""')[1]
    assert all(name in text for name in formats.names())
