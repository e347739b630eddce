"""What stream() folds together: how many calls it takes, that no bit depends on it, and what an error leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensors import bits_of
from torch import Tensor

import gru_fast
from gru_fast.core import folding

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def made(count: int, numel: int = 5, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.nn.Parameter(torch.randn(numel, generator=generator).to(dtype)) for _ in range(count)]


def loss(params: list[Tensor]) -> Tensor:
    return torch.stack([(p.float() * (1.1 + row)).square().sum() for row, p in enumerate(params)]).sum()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of a fold."""
    found: list[int] = []
    make = folding.passes_for

    def counted(device: torch.device, rows: Any) -> Any:
        found.append(len(rows))
        return make(device, rows)

    monkeypatch.setattr(folding, "passes_for", counted)
    return found


def streamed(params: list[Tensor], dtype: torch.dtype, blocks: int = 1, backwards: int = 1) -> gru_fast.RetainEMA:
    ema = gru_fast.RetainEMA(params, dtype, seed=5)
    for _ in range(blocks):
        with ema.stream(0.3):
            for _ in range(backwards):
                loss(params).backward()
    return ema


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES)
def test_leaves_the_bits_of_collect(dtype: torch.dtype) -> None:
    """One fold of all, or a bucket after the other: e is rounded with the same bits."""
    params = made(2 * folding.MOST_ROWS + 3, dtype=dtype)
    collected = gru_fast.RetainEMA(params, dtype, seed=5)
    with collected.collect():
        loss(params).backward()
    gru_fast.rectify_(params, collected, 0.3)
    ema = streamed(params, dtype)
    gru_fast.rectify_(params, ema, 0.3)
    assert [bits_of(e) for e in ema.tensors] == [bits_of(e) for e in collected.tensors]
    if dtype != torch.float32:
        assert collected.state_dict()["rounding_steps"] == [1]
        assert ema.state_dict()["rounding_steps"] == [2]  # one for the block, one for rectify_


@pytest.mark.core
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_waits_together_does_not_matter(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    found = []
    for rows in (1, 7, 64):
        monkeypatch.setattr(folding, "MOST_ROWS", rows)
        ema = streamed(made(20, dtype=dtype), dtype, blocks=2, backwards=2)
        found.append([bits_of(e) for e in ema.tensors])
    assert found[0] == found[1] == found[2]


@pytest.mark.core
def test_rounds_every_gradient_anew() -> None:
    """Two backward passes in a block, then another block: three roundings of e, none with the bits of another. Each is
    up with a chance of a half, so the sum of those that are independent has a binomial spread.
    """
    numel = 1 << 14
    param = torch.nn.Parameter(torch.zeros(numel, dtype=torch.bfloat16))
    ema = gru_fast.RetainEMA([param], torch.bfloat16, seed=5)
    ema.tensors[0].fill_(1.0)
    half = 2.0**-8  # of the distance to the next bfloat16 above 1; gamma is all but 0, so that e does not decay

    def backward() -> None:
        (param.sum() * (half / 2.0**-30)).backward()

    with ema.stream(2.0**-30):
        backward()
        backward()
    with ema.stream(2.0**-30):
        backward()
    gru_fast.rectify_([param], ema, 2.0**-30)
    assert ema.state_dict()["rounding_steps"] == [4]  # with rectify_'s own
    ups = (ema.tensors[0].float() - 1.0) / (2 * half)
    counts = torch.bincount(ups.round().long(), minlength=4) / numel
    torch.testing.assert_close(counts, torch.tensor([1, 3, 3, 1]) / 8, atol=0.02, rtol=0)


@pytest.mark.core
def test_takes_few_calls(calls: list[int]) -> None:
    streamed(made(2 * folding.MOST_ROWS + 3), torch.float32)
    assert calls == [folding.MOST_ROWS, folding.MOST_ROWS, 3]


@pytest.mark.core
def test_large_gradients_do_not_wait(calls: list[int]) -> None:
    numel = folding.MOST_BYTES["cpu"] // 4
    params = [*made(2), *made(1, numel), *made(3)]
    with gru_fast.RetainEMA(params).stream(0.3):
        params[2].sum().backward()
        assert calls == [1]
        (params[0].sum() + params[4].sum()).backward()
        assert calls == [1]
    assert calls == [1, 2]


@pytest.mark.core
def test_a_second_gradient_does_not_wait_beside_the_first(calls: list[int]) -> None:
    """They need another weight of the old e: 0.7 for the first, 1 for what is added to it."""
    param = torch.nn.Parameter(torch.ones(2))
    ema = gru_fast.RetainEMA([param])
    ema.tensors[0].fill_(10.0)
    with ema.stream(0.25):
        (2 * param.sum()).backward()
        (4 * param.sum()).backward()
    assert ema.tensors[0].tolist() == [0.75 * 10 + 0.25 * 2 + 0.25 * 4] * 2
    assert calls == [1, 1]


@pytest.mark.core
def test_after_an_error_what_waits_is_dropped() -> None:
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    ema = gru_fast.RetainEMA(params)

    def fail() -> None:
        with ema.stream(0.5):
            params[0].sum().backward()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert ema.tensors[0].tolist() == [0.0, 0.0]
    assert params[0].grad is None
    with ema.stream(0.5):
        (3 * params[0].sum()).backward()
    assert ema.tensors[0].tolist() == [1.5, 1.5]


@pytest.mark.core
def test_refused_elements_are_counted_over_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MOST_ROWS", 1)
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    ema = gru_fast.RetainEMA(params)
    with ema.stream(0.5):
        (params[0].sum() * float("nan") + params[1].sum() + params[2].sum() * float("inf")).backward()
    for param in params:
        param.grad = torch.ones(2)
    assert gru_fast.rectify_(params, ema, 0.5).retain_nonfinite
    assert [e.tolist() for e in ema.tensors] == [[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
