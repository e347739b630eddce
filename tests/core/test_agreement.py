"""cos(e, r) before e takes r in: by hand, and without a trace."""

from __future__ import annotations

import math

import pytest
import torch

from gru_fast import RetainEMA, rectify_
from gru_fast.core.agreement import agreement


def pair(dtype: torch.dtype = torch.float32) -> tuple[list[torch.nn.Parameter], RetainEMA]:
    params = [torch.nn.Parameter(torch.zeros(3, dtype=dtype)), torch.nn.Parameter(torch.zeros(2, 2, dtype=dtype))]
    return params, RetainEMA(params, None if dtype == torch.float32 else dtype)


def collect(params: list[torch.nn.Parameter], ema: RetainEMA, *values: list[float] | None) -> None:
    with ema.collect():
        for param, value in zip(params, values, strict=True):
            if value is not None:
                (param.flatten() @ torch.tensor(value, dtype=param.dtype)).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_hand_over_all_parameters_as_one_vector(dtype: torch.dtype) -> None:
    params, ema = pair(dtype)
    collect(params, ema, [2.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0])
    first = agreement(ema)
    assert math.isnan(first.cos)  # no average yet
    assert first.norm_before == pytest.approx(math.sqrt(8.0))
    rectify_(params, ema, gamma=0.5)  # e = (1, 0, 0), (0, 1, 0, 0)
    before = [e.clone() for e in ema.tensors]
    collect(params, ema, [3.0, 0.0, 0.0], None)  # <r, e> = 3, |r| = 3, |e| = sqrt 2
    found = agreement(ema)
    assert found.dot == pytest.approx(3.0)
    assert found.cos == pytest.approx(1.0 / math.sqrt(2.0), rel=1e-6)
    assert found.norm_ema == pytest.approx(math.sqrt(2.0))
    assert all(torch.equal(a, b) for a, b in zip(before, ema.tensors, strict=True))
    step = rectify_(params, ema, gamma=0.5)  # the step goes on as if nobody had looked
    assert step.norm_ema == pytest.approx(math.sqrt(2.0**2 + 0.5**2))
    assert ema.step == 2


def test_nan_is_seen_and_nothing_is_written() -> None:
    params, ema = pair()
    collect(params, ema, [1.0, 0.0, 0.0], None)
    rectify_(params, ema, gamma=1.0)
    collect(params, ema, [math.nan, 0.0, 0.0], None)
    assert math.isnan(agreement(ema).cos)
    assert ema.tensors[0].tolist() == [1.0, 0.0, 0.0]


def test_it_wants_collected_gradients_and_says_so() -> None:
    params, ema = pair()
    with pytest.raises(RuntimeError, match=r"agreement: expected retain gradients in collect\(\) before it"):
        agreement(ema)
    with ema.stream(0.5):
        params[0].sum().backward()
    with pytest.raises(RuntimeError, match="agreement: expected retain gradients"):
        agreement(ema)
    ema.discard()
    with ema.collect(), pytest.raises(RuntimeError, match=r"agreement inside collect\(\)"):
        agreement(ema)
