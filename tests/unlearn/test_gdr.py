"""GDR: worked by hand, its promise, its statistics, and as a switch of the trainer."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gru_fast.core.ema import RetainEMA
from gru_fast.unlearn import GRUOptions, UnlearnTrainer
from gru_fast.unlearn.gdr import DirectionRectification, gdr_

if TYPE_CHECKING:
    from pathlib import Path


def step(g: list[float], r: list[float], tau: float | None = None, stream: bool = False) -> tuple[Tensor, Any]:
    """gdr_ over two parameters, the first of one element."""
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(len(g) - 1))]
    ema = RetainEMA(params)
    for param, part in zip(params, torch.tensor(g).split([1, len(g) - 1]), strict=True):
        param.grad = part.clone()
    loss = sum((part * param).sum() for part, param in zip(torch.tensor(r).split([1, len(r) - 1]), params, strict=True))
    with ema.stream(1.0) if stream else ema.collect():
        loss.backward()  # type: ignore[union-attr]
    found = gdr_(params, ema, tau)
    return torch.cat([param.grad for param in params if param.grad is not None]), found


@pytest.mark.parametrize("stream", [False, True])
def test_by_hand(stream: bool) -> None:
    # <g, r> = -2, <g, g> = 5, <r, r> = 4: g' = g + (2 / 4) r = (2, 0), r' = r + (2 / 5) g = (0.8, 1.6).
    g, found = step([2.0, -1.0], [0.0, 2.0], stream=stream)
    torch.testing.assert_close(g, torch.tensor([2.0, 0.0]) + torch.tensor([0.8, 1.6]))
    assert found.conflict
    assert (found.alpha, found.beta) == pytest.approx((1 + 2 / 5, 1 + 2 / 4))
    # The published code would take the second projection along g' instead: r' = (0.8, 2).
    assert g[1] == pytest.approx(1.6)


def test_without_a_conflict_both_are_added() -> None:
    g, found = step([1.0, 2.0], [3.0, 0.5])
    assert g.tolist() == [4.0, 2.5]
    assert not found.conflict
    assert (found.alpha, found.beta) == (1.0, 1.0)


def test_it_is_the_angle_over_all_parameters_that_counts() -> None:
    # The first parameter's conflict alone would be projected by the published code, tensor by tensor.
    g, found = step([-1.0, 4.0], [1.0, 4.0])
    assert not found.conflict
    assert g.tolist() == [0.0, 8.0]


vectors = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3)


@given(vectors, vectors, st.one_of(st.none(), st.floats(0.01, 100.0)))
@settings(deadline=None)
def test_neither_loss_rises_and_the_statistics_are_those_of_the_result(
    g: list[float], r: list[float], tau: float | None
) -> None:
    u, v = torch.tensor(g, dtype=torch.float64), torch.tensor(r, dtype=torch.float64)
    size = float(u.norm() * v.norm())
    if size < 1e-3 or float(u @ v) < -0.999 * size:
        return
    after, found = step(g, r, tau)
    after = after.double()
    expected = u + v
    if u @ v < 0:
        expected = (u - (u @ v) / (v @ v) * v) + (v - (u @ v) / (u @ u) * u)
    if tau is not None and expected.norm() > tau:
        expected = expected * tau / expected.norm()
    slack = 1e-4 * float(after.norm()) + 1e-5
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)
    assert float(after @ u) >= -slack * float(u.norm())
    assert float(after @ v) >= -slack * float(v.norm())
    assert found.norm_after == pytest.approx(float(after.norm()), rel=1e-3, abs=1e-4)
    if after.norm() > 1e-2:
        assert found.cos_after == pytest.approx(float(F.cosine_similarity(after, v, dim=0)), abs=2e-3)
        assert found.angle_after <= 90.1
    assert found.cos == pytest.approx(float(F.cosine_similarity(u, v, dim=0)), abs=1e-5)


def test_opposite_gradients_leave_nothing() -> None:
    g, found = step([1.0, -3.0], [-0.5, 1.5])
    assert found.degenerate
    assert g.tolist() == [0.0, 0.0]
    assert found.norm_after == 0.0
    assert math.isnan(found.cos_after)
    g, found = step([0.0, 0.0], [0.0, 0.0])
    assert not found.degenerate
    assert g.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", ["g", "r"])
def test_nan_leaves_g_untouched(bad: str) -> None:
    g, found = step([math.nan if bad == "g" else 1.0, 2.0], [-1.0, math.nan if bad == "r" else -1.0])
    assert found.nonfinite
    assert g[1] == 2.0
    assert not found.clipped
    assert not found.degenerate


def test_a_parameter_that_only_r_reaches() -> None:
    param = nn.Parameter(torch.zeros(2))
    ema = RetainEMA([param])
    with ema.collect():
        (param * torch.tensor([1.0, 2.0])).sum().backward()
    gdr_([param], ema)
    assert param.grad is not None
    assert param.grad.tolist() == [1.0, 2.0]


def test_wrong_tau() -> None:
    param = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="tau"):
        gdr_([param], RetainEMA([param]), 0.0)


# ---- in the trainer --------------------------------------------------------------------------------------------------


def nll(model: Any, part: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten(), ignore_index=-100)


def flat_gradient(loss: Tensor, model: Any) -> Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("stream", [False, True])
def test_training_is_what_a_loop_by_hand_does(stream: bool, tmp_path: Path) -> None:
    model = tiny.llama()
    ours = copy.deepcopy(model)
    recorder = tiny.Recorder()
    options = {"optim": "sgd", "learning_rate": 0.05, "weight_decay": 0.0, "rectify": True, "stream": stream}
    # gamma, which it ignores, would show from the second step on.
    config = tiny.config(tmp_path, method="ga", rectifier="gdr", gamma=0.1, tau=2.0, **options)
    trainer = UnlearnTrainer(model, config, recorder, tiny.dataset())
    trainer.train()
    for pair in zip(recorder.batches[::2], recorder.batches[1::2], strict=True):
        g = sum(flat_gradient(-nll(ours, batch["forget"]), ours) for batch in pair) / 2
        r = sum(flat_gradient(nll(ours, batch["retain"]), ours) for batch in pair) / 2
        dot = g @ r
        if dot < 0:
            g, r = g - dot / (r @ r) * r, r - dot / (g @ g) * g
        both = g + r
        both = both * min(1.0, 2.0 / float(both.norm()))
        with torch.no_grad():
            for param, part in zip(ours.parameters(), both.split([p.numel() for p in ours.parameters()]), strict=True):
                param.sub_(0.05 * part.view_as(param))
    for a, b, start in zip(model.parameters(), ours.parameters(), tiny.llama().parameters(), strict=True):
        moved = float((b - start).detach().norm())
        assert float((a - b).detach().norm()) < 1e-4 * moved + 1e-8
    entries = [entry for entry in trainer.state.log_history if "cos_after" in entry]
    assert len(entries) == 3
    assert all(entry["cos_after"] >= 0 for entry in entries)
    assert isinstance(trainer._last_step, DirectionRectification)


def test_the_switch_is_checked() -> None:
    with pytest.raises(ValueError, match=r"^rectifier: expected one of gru, gdr, .*, sago, gem, subspace, got 'best'$"):
        GRUOptions(rectifier="best")
    assert GRUOptions(rectifier="gdr", gamma=0.3).ema_gamma == 1.0
    assert GRUOptions(gamma=0.3).ema_gamma == 0.3
