"""``gru_fast.optim.AdamW``: torch's where there is nothing to rectify, and what it promises of the update."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adamw_oracle import Oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gru_fast import RetainEMA, RetainGradient, rectify_
from gru_fast.core import adamw_step
from gru_fast.core import update as update_module
from gru_fast.core.adamw_step import AdamWStep, settle_gradient
from gru_fast.core.backends.adamw import AdamWArgs, AdamWRows
from gru_fast.core.backends.native import NativeAdamW
from gru_fast.core.backends.reference_adamw import ReferenceAdamW
from gru_fast.core.load import core
from gru_fast.optim import AdamW, measure_update
from gru_fast.rules import GRU, MGDA, PCGrad, Rule, Subspace

SIZES = (1, 7, 64, 1000, 70_001)  # below a block, whole blocks, tails, more than a rounding tile


def parameters(sizes: Sequence[int] = SIZES, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def give(params: Sequence[Tensor], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = (torch.randn(param.shape, generator=generator) * scale).to(param.dtype)


def take_step(optimizer: AdamW, g: Sequence[Tensor | None], r: Sequence[Tensor | None] | None) -> None:
    """One step from gradients that are there already."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if r is not None and optimizer.ema is not None:
        with optimizer.ema.collect():
            for param, value in zip(params, r, strict=True):
                param.grad = None if value is None else value.clone()
    for param, value in zip(params, g, strict=True):
        param.grad = None if value is None else value.clone()
    optimizer.step()


def flat(tensors: Sequence[Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors]).numpy()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch's pieces of a tensor, and so its last elements, go by the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- torch's AdamW ---------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("betas", "decay"), [((0.9, 0.999), 0.1), ((0.3, 0.5), 0.0), ((0.0, 0.99), 0.01)])
def test_fifty_steps_are_those_of_torch_bit_for_bit(
    betas: tuple[float, float], decay: float, maximize: bool, one_thread: None
) -> None:
    ours, theirs = parameters(), parameters()
    options: dict[str, Any] = {"lr": 3e-3, "betas": betas, "weight_decay": decay, "maximize": maximize}
    mine, torchs = AdamW(ours, **options), torch.optim.AdamW(theirs, fused=True, **options)
    for step in range(50):
        for params, optimizer in ((ours, mine), (theirs, torchs)):
            give(params, step, 10.0 ** (step % 5 - 2))
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        whole = len(a) // 16 * 16 if torch.backends.cpu.get_cpu_capability() != "DEFAULT" else 0
        pairs = [(mine.state[a][name], torchs.state[b][name]) for name in ("exp_avg", "exp_avg_sq")]
        for left, right in [(a, b), *pairs]:
            assert torch.equal(left[:whole], right[:whole])
            assert torch.allclose(left, right, rtol=1e-5, atol=1e-8)  # torch rounds a tensor's last elements otherwise


def test_a_rectified_gradient_gives_what_rectifying_and_torch_give() -> None:
    ours, theirs = parameters(), parameters()
    mine = AdamW(ours, lr=1e-2, ema=RetainEMA(ours), gamma=0.5, tau=1.0)
    torchs, ema = torch.optim.AdamW(theirs, lr=1e-2, fused=True), RetainEMA(theirs)
    conflicts = 0
    for step in range(20):
        give(theirs, 100 + step)
        r = [param.grad.clone() for param in theirs]  # type: ignore[union-attr]
        give(theirs, 200 + step)
        g = [param.grad - 0.5 * other for param, other in zip(theirs, r, strict=True)]  # type: ignore[operator]
        take_step(mine, g, r)
        with ema.collect():
            for param, value in zip(theirs, r, strict=True):
                param.grad = value.clone()
        for param, value in zip(theirs, g, strict=True):
            param.grad = value.clone()
        expected = rectify_(theirs, ema, 0.5, 1.0)
        torchs.step()
        assert mine.last_step is not None
        assert mine.last_step.dot == expected.dot
        assert mine.last_step.norm_after == pytest.approx(expected.norm_after, rel=1e-6)
        conflicts += expected.conflict
        assert all(torch.equal(param.grad, value) for param, value in zip(ours, g, strict=True))  # type: ignore[arg-type]
    assert conflicts > 5
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b) or torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_write_grad_leaves_the_rectified_gradient() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        params = [nn.Parameter(torch.zeros(2, dtype=dtype))]
        optimizer = AdamW(params, ema=RetainEMA(params), gamma=1.0, write_grad=True)
        take_step(optimizer, [torch.tensor([1.0, -1.0], dtype=dtype)], [torch.tensor([0.0, 2.0], dtype=dtype)])
        assert torch.equal(params[0].grad, torch.tensor([1.0, 0.0], dtype=dtype))  # type: ignore[arg-type]


def test_states_are_exchanged_with_torch_both_ways() -> None:
    params, others = parameters(), parameters()
    first, second = AdamW(params, lr=1e-2), torch.optim.AdamW(others, lr=1e-3, fused=True)
    for step in range(3):
        give(params, step)
        first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0]["lr"] == 1e-2
    with torch.no_grad():
        for a, b in zip(params, others, strict=True):
            b.copy_(a)
    third_params = [nn.Parameter(param.detach().clone()) for param in params]
    third = AdamW(third_params, lr=1e-4)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    for step in range(3, 6):
        for group, optimizer in ((params, first), (others, second), (third_params, third)):
            give(group, step)
            optimizer.step()
    assert all(map(torch.equal, params, third_params))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(params, others, strict=True))
    assert set(first.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_schedulers_closures_and_groups_work() -> None:
    a, b = parameters((5,)), parameters((6,))
    theirs = [nn.Parameter(param.detach().clone()) for param in (*a, *b)]

    def groups(first: list[Any], second: list[Any]) -> list[dict[str, Any]]:
        return [{"params": first, "lr": 1e-2}, {"params": second, "weight_decay": 0.5, "betas": (0.5, 0.9)}]

    mine = AdamW(groups(a, b), lr=1e-3)
    torchs = torch.optim.AdamW(groups(theirs[:1], theirs[1:]), lr=1e-3, fused=True)
    for optimizer, params in ((mine, [*a, *b]), (torchs, theirs)):
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)

        def closure(params: list[Any] = params, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = sum((param**2).sum() for param in params)  # type: ignore[assignment]
            loss.backward()
            return loss.detach()

        losses = []
        for _ in range(4):
            losses.append(float(optimizer.step(closure)))
            schedule.step()
        assert losses == sorted(losses, reverse=True)
    assert all(torch.equal(x, y) for x, y in zip([*a, *b], theirs, strict=True))


# ---- the update ------------------------------------------------------------------------------------------------------


def test_an_update_is_rectified_by_hand() -> None:
    # b1 = b2 = 0: U = g / (|g| + eps) = (-1, 1, -1) + decay theta (0.5, 0, 0). e = (1, 0, 2): <U, e> = -0.5 - 2 = -2.5.
    # W = 1: Z = U + (2.5 / 5) e = (0, 1, 0); theta - 0.1 Z = (1, -0.1, 0).
    params = [nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))]
    optimizer = AdamW(
        params, lr=0.1, betas=(0.0, 0.0), eps=0.0, weight_decay=0.5, ema=RetainEMA(params), gamma=1.0, rectify="update"
    )
    take_step(optimizer, [torch.tensor([-3.0, 4.0, -5.0])], [torch.tensor([1.0, 0.0, 2.0])])
    assert torch.allclose(params[0], torch.tensor([1.0, -0.1, 0.0]), atol=1e-7)
    step = optimizer.last_step
    assert step is not None
    assert step.update_conflict
    assert step.update_dot == pytest.approx(-0.25)
    assert step.update_cos == pytest.approx(-2.5 / math.sqrt(2.25 * 5))
    assert step.update_cos_after == 0.0
    assert step.update_change == pytest.approx(0.1 * 0.5 * math.sqrt(5))
    assert step.update_largest == pytest.approx(1.0)
    assert step.as_dict()["update_norm"] == pytest.approx(0.15)


def test_the_floor_keeps_elements_without_a_history_where_they_are() -> None:
    # M^ = (-1, 0), V^ = (1, 1e-16), eps 1e-8, e = (1, 0.001): with W = D element 2 would move by 980 |U|.
    params = [nn.Parameter(torch.zeros(2))]
    optimizer = AdamW(
        params, lr=1.0, betas=(0.0, 0.0), eps=1e-8, weight_decay=0.0, ema=RetainEMA(params), gamma=1.0,
        rectify="update", metric="adam",
    )  # fmt: skip
    take_step(optimizer, [torch.tensor([-1.0, 0.0])], [torch.tensor([1.0, 0.001])])
    step = optimizer.last_step
    assert step is not None
    assert step.update_largest < 1.01
    assert abs(float(params[0].detach()[1])) < 0.01
    assert abs(float(params[0].detach() @ torch.tensor([1.0, 0.001]))) < 1e-6


def test_a_first_step_whose_squares_overflow_leaves_the_floor_to_the_next() -> None:
    """V is infinite, and D with it; once the state has been mended a step is as a first one."""
    g, e = torch.tensor([-1.0, -0.1, 0.0]), torch.tensor([1.0, 1.0, 0.01])

    def made(params: list[nn.Parameter]) -> AdamW:
        return AdamW(params, lr=0.1, ema=RetainEMA(params), gamma=1.0, rectify="update", metric="adam")

    params = parameters((3,))
    optimizer = made(params)
    take_step(optimizer, [1e20 * g], [e])
    assert "rms_denominator" not in optimizer.state_dict()["param_groups"][0]
    for tensor in optimizer.state[params[0]].values():
        tensor.zero_()
    others = [nn.Parameter(params[0].detach().clone())]
    first = made(others)
    for each in (optimizer, first):
        take_step(each, [g], [e])
    assert first.last_step is not None
    assert first.last_step.update_conflict
    assert torch.equal(params[0], others[0])
    floors = [each.state_dict()["param_groups"][0]["rms_denominator"] for each in (optimizer, first)]
    assert floors[0] == floors[1]


def test_learning_rates_of_groups_count() -> None:
    # U = (-1, 1), e = (1, 1): <U, e> = 0, but with lr (0.3, 0.1) the step's is -0.3 + 0.1 = -0.2, and K = 0.4:
    # Z = U + 0.5 e = (-0.5, 1.5), lr Z = (-0.15, 0.15).
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))]
    groups = [{"params": [param], "lr": lr} for param, lr in zip(params, (0.3, 0.1, 0.0), strict=True)]
    optimizer = AdamW(
        groups, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0, ema=RetainEMA(params), gamma=1.0, rectify="update"
    )
    ones = [torch.ones(1)] * 3
    take_step(optimizer, [-2 * ones[0], 5 * ones[0], ones[0]], ones)
    assert [float(param.detach()) for param in params] == pytest.approx(
        [0.15, -0.15, 1.0]
    )  # a learning rate of 0 is a parameter at rest


OPTIONS = [
    {"rectify": "gradient"},
    {"rectify": "gradient", "tau": 0.5},
    {"rectify": "update"},
    {"rectify": "update", "tau": 0.5},
    {"rectify": "both"},
    {"rectify": "both", "metric": "adam"},
    {"rectify": "update", "metric": "adam", "feed_back": True},
    {"rectify": "both", "feed_back": True},
]


@pytest.mark.core
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(map(str, o.values())))
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_steps_are_those_of_float64(backend: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "reference":
        monkeypatch.setattr(adamw_step, "NativeAdamW", ReferenceAdamW)
    params = parameters((3, 40, 1001))
    optimizer = AdamW(
        [{"params": params[:2], "lr": 2e-2, "weight_decay": 0.0}, {"params": params[2:]}],
        lr=1e-2, weight_decay=0.1, ema=RetainEMA(params), gamma=0.4, **options,
    )  # fmt: skip
    oracle = Oracle(
        flat(params),
        lr=np.repeat([2e-2, 1e-2], [43, 1001]),
        decay=np.repeat([0.0, 0.1], [43, 1001]),
        gamma=0.4,
        tau=options.get("tau", np.inf),
        gradient=options["rectify"] != "update",
        update=options["rectify"] != "gradient",
        adam=options.get("metric") == "adam",
        feed_back=options.get("feed_back", False),
    )
    fired = 0
    for step in range(12):
        give(params, 2 * step)
        r = [param.grad.clone() for param in params]  # type: ignore[union-attr]
        give(params, 2 * step + 1)
        g = [param.grad - 0.3 * other for param, other in zip(params, r, strict=True)]  # type: ignore[operator]
        take_step(optimizer, g, r)
        q = oracle.step(flat(g), flat(r))
        assert np.abs(flat(params) - oracle.theta).max() < 2e-5
        if oracle.update:
            assert optimizer.last_step is not None
            assert optimizer.last_step.update_dot == pytest.approx(q, rel=1e-3, abs=1e-4)
            fired += q < 0
    assert not oracle.update or fired > 3


vectors = st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6)


@given(vectors, vectors, vectors, st.sampled_from(["euclidean", "adam"]), st.sampled_from(["update", "both"]))
@settings(deadline=None, max_examples=80)
def test_no_step_raises_the_retain_loss(
    theta: list[float], g: list[float], r: list[float], metric: str, what: str
) -> None:
    params = [nn.Parameter(torch.tensor(theta[:4])), nn.Parameter(torch.tensor(theta[4:]))]
    optimizer = AdamW(
        [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "lr": 0.1}],
        weight_decay=0.1, eps=1e-3, ema=RetainEMA(params), gamma=0.7, rectify=what, metric=metric,
    )  # fmt: skip
    for turn in range(3):
        before = flat(params)
        grads = [torch.tensor(g[:4]) * (-1.0) ** turn, torch.tensor(g[4:])]
        take_step(optimizer, grads, [torch.tensor(r[:4]), torch.tensor(r[4:])])
        moved = before - flat(params)
        e = flat(optimizer.ema.tensors)  # type: ignore[union-attr]
        assert moved @ e >= -3e-6 * (np.linalg.norm(moved) + np.linalg.norm(before)) * np.linalg.norm(e)


def test_an_update_without_conflict_is_left_to_the_bit() -> None:
    params, others = parameters(), parameters()
    both = AdamW(params, lr=1e-2, weight_decay=0.0, ema=RetainEMA(params), gamma=1.0, rectify="both")
    plain = AdamW(others, lr=1e-2, weight_decay=0.0)
    for step in range(4):
        give(others, 7)
        g = [param.grad.clone() for param in others]  # type: ignore[union-attr]
        take_step(both, g, g)
        assert both.last_step is not None
        assert not both.last_step.update_conflict, step
        plain.step()
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_small_or_large_e_is_as_good(scale: float) -> None:
    def run(factor: float) -> list[nn.Parameter]:
        params = parameters((100,))
        optimizer = AdamW(params, lr=1e-2, ema=RetainEMA(params), gamma=1.0, rectify="update")
        for step in range(3):
            give(params, step)
            r = params[0].grad.clone() * factor  # type: ignore[union-attr]
            give(params, step + 50)
            take_step(optimizer, [params[0].grad.clone() - r / factor], [r])  # type: ignore[union-attr]
            assert optimizer.last_step is not None
            assert optimizer.last_step.update_conflict
        return params

    assert torch.allclose(run(1.0)[0], run(scale)[0], rtol=1e-5, atol=1e-6)


def test_the_step_of_torchs_optimizer_is_told_beforehand() -> None:
    params = parameters((40, 300))
    ema = RetainEMA(params)
    optimizer = torch.optim.AdamW(
        [{"params": params[:1], "lr": 0.05}, {"params": params[1:], "weight_decay": 0.0}], lr=0.02, weight_decay=0.3
    )
    signs = set()
    for turn in range(6):
        give(params, turn)
        r = [param.grad.clone() for param in params]  # type: ignore[union-attr]
        give(params, turn + 30)
        g = [param.grad - 0.2 * other for param, other in zip(params, r, strict=True)]  # type: ignore[operator]
        with ema.collect():
            for param, value in zip(params, r, strict=True):
                param.grad = value
        for param, value in zip(params, g, strict=True):
            param.grad = value
        step = rectify_(params, ema, 0.5)
        assert math.isnan(step.update_dot)
        measure_update(optimizer, ema, step)
        before = flat(params)
        optimizer.step()
        moved, e = before - flat(params), flat(ema.tensors)
        assert step.update_dot == pytest.approx(moved @ e, rel=2e-3, abs=1e-5)
        assert step.update_norm == pytest.approx(np.linalg.norm(moved), rel=1e-3)
        assert step.update_cos_after == step.update_cos
        assert step.update_change == 0.0
        signs.add(step.update_conflict)
    assert signs == {True, False}
    with pytest.raises(TypeError, match="whose step can be told beforehand, got SGD"):
        measure_update(torch.optim.SGD(params), ema, step)


# ---- 16 bits ---------------------------------------------------------------------------------------------------------


def random_rows(
    param: torch.dtype, moment: torch.dtype, ema: torch.dtype, sizes: Sequence[int] = (5, 66_000)
) -> AdamWRows:
    generator = torch.Generator().manual_seed(1)

    def draw(size: int, scale: float, dtype: torch.dtype) -> Tensor:
        return (torch.randn(size, generator=generator) * scale).to(dtype)

    return AdamWRows(
        params=[draw(size, 1.0, param) for size in sizes],
        grads=[draw(size, 0.1, param) for size in sizes],
        exp_avg=[draw(size, 0.05, moment) for size in sizes],
        exp_avg_sq=[draw(size, 0.01, moment).abs() for size in sizes],
        ema=[draw(size, 0.2, ema) for size in sizes],
        rounding_keys=[3, 1],
    )


def run_all(passes: Any, rows: AdamWRows, adam: bool, all_or_nothing: bool) -> Tensor:
    """A step with its update rectified, in either way; after the one that writes M and V first, a plain one."""
    scalars = torch.tensor([[1e-2, 0.9, 0.99, 1e-8, 0.1, 0.3, 0.4, 5.0], [1e-3, 0.8, 0.9, 1e-8, 0.0, 0.5, 0.2, 9.0]])
    update = torch.zeros(update_module.NUM_UPDATE_STATS, dtype=torch.float64)
    numel = sum(param.numel() for param in rows.params)
    stats = torch.zeros(16, dtype=torch.float64)
    stats[1] = sum(float(e.double().square().sum()) for e in rows.ema or () if e is not None)
    stats[6], stats[7], stats[8] = 0.9, -0.5, 1.0  # alpha, beta, rescale
    floor = torch.tensor([0.05], dtype=torch.float64) if adam else None
    args = AdamWArgs(scalars.double(), stats, update, floor, 17, numel, feed_back=adam, write_grad=True)
    for which in ("sums", "step") if all_or_nothing else ("sums", "moments", "update"):
        passes(rows).run(which, args)
    if not all_or_nothing:
        args.update = None
        passes(rows).run("step", args)
    return update


BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
KINDS = [
    (F32, F32, F32), (BF16, F32, F32), (BF16, F32, BF16), (BF16, BF16, F32), (BF16, BF16, BF16), (F16, F32, F32),
    (F16, F32, F16),
]  # fmt: skip


@pytest.mark.core
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("level", core.build_info()["available_levels"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join(str(t).removeprefix("torch.") for t in kind))
@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_kernels_and_reference_agree(
    all_or_nothing: bool, kind: tuple[torch.dtype, ...], level: str, adam: bool
) -> None:
    ours, theirs = random_rows(*kind), random_rows(*kind)
    core.use_vector_level(level)
    try:
        found = run_all(NativeAdamW, ours, adam, all_or_nothing)
    finally:
        core.use_vector_level(core.build_info()["available_levels"][0])
    expected = run_all(ReferenceAdamW, theirs, adam, all_or_nothing)
    assert torch.allclose(found, expected, rtol=3e-5)
    for name in ("params", "grads", "exp_avg", "exp_avg_sq"):
        for a, b in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            if a.dtype == F32:
                assert torch.allclose(a, b, rtol=2e-5, atol=2e-6), name
            else:  # the same rounding bits: only what lies beside a border may fall to the other side
                assert float((a != b).float().mean()) < 2e-3, name
                place = 2**-7 if a.dtype == BF16 else 2**-9
                apart = (a.float() - b.float()).abs()
                # M is written up to three times: one that fell to the other side when it was larger is further off now.
                assert float((apart > place * b.float().abs() + 1e-6).float().mean()) < 1e-4, name
                assert float(apart.max()) <= place * float(b.float().abs().max()), name


@pytest.mark.core
@pytest.mark.skipif(not hasattr(core, "emulation"), reason="the host settles on the CPU; .ci/emulate runs this")
@pytest.mark.parametrize("rule", [GRU(), None, PCGrad(form="sum"), MGDA()], ids=repr)
@pytest.mark.parametrize("tau", [math.inf, 0.3])
@pytest.mark.parametrize("turn", [0.5, -0.5, -0.999999, -1.0, -1e38, math.nan])
def test_the_device_settles_as_the_host_does(turn: float, tau: float, rule: Rule | None) -> None:
    """``turn``: g is so much of e and, unless it is opposite, as much again of something else."""
    rows = random_rows(F32, F32, F32)
    sums = [0.0, 0.0, 0.0]
    for grad, ema in zip(rows.grads, rows.ema or [], strict=True):
        assert grad is not None
        assert ema is not None
        if turn == -1e38:  # coefficients beyond float32
            ema.mul_(1e-37)
            grad.sub_(ema)
        elif turn == -1.0:
            grad.copy_(-ema)
        else:
            grad.copy_(turn * ema + math.sqrt(1 - min(turn**2, 1.0)) * grad)
        sums = [
            total + float((a.double() * b.double()).sum())
            for total, a, b in zip(sums, (grad, ema, grad), (ema, ema, grad), strict=True)
        ]
    stats = torch.zeros(16, dtype=torch.float64)
    stats[:3] = torch.tensor(sums)
    stats[6] = stats[8] = 1.0  # alpha, rescale
    expected = stats.clone()
    held = [
        adamw_step.Row(param, g, {}, {}, e) for param, g, e in zip(rows.params, rows.grads, rows.ema or [], strict=True)
    ]
    adamw_step.settle_gradient(expected, tau, lambda: held, None, rule=rule)
    NativeAdamW(rows).settle(AdamWArgs(torch.zeros(2, 8), stats), tau, rule)
    if abs(float(expected[7])) > 1e37:
        assert stats[4] == 1.0  # vetoed
    else:
        assert torch.allclose(stats, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_plain_bfloat16_loses_steps_that_are_made_here() -> None:
    def moved(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> tuple[float, float]:
        params = parameters((50_000,), BF16)
        before = params[0].detach().clone()
        optimizer = make(params)
        for _ in range(20):
            params[0].grad = torch.ones_like(params[0])
            optimizer.step()
        far = (before.float() - params[0].detach().float()).mean() / (20 * 1e-5)  # of what float32 would have moved
        return float((params[0] != before).float().mean()), float(far)

    ours = moved(lambda params: AdamW(params, lr=1e-5, weight_decay=0.0))
    theirs = moved(lambda params: torch.optim.AdamW(params, lr=1e-5, weight_decay=0.0, fused=True))
    assert theirs[0] < 0.05
    assert theirs[1] < 0.1
    assert ours[0] > 0.05
    assert ours[1] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("moment_dtype", [None, torch.float32])
def test_ten_or_fourteen_bytes_a_parameter(moment_dtype: torch.dtype | None) -> None:
    params = parameters((1000,), BF16)
    ema = RetainEMA(params, torch.bfloat16)
    optimizer = AdamW(params, ema=ema, gamma=0.5, rectify="both", moment_dtype=moment_dtype)
    give(params, 0)
    r = [param.grad.clone() for param in params]  # type: ignore[union-attr]
    take_step(optimizer, [-value for value in r], r)
    tensors = [*params, *(param.grad for param in params), *ema.tensors]
    tensors += [optimizer.state[param][name] for param in params for name in ("exp_avg", "exp_avg_sq")]
    assert sum(t.numel() * t.element_size() for t in tensors) == 1000 * (10 if moment_dtype is None else 14)  # type: ignore[union-attr]


@pytest.mark.parametrize("moment_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_a_resumed_run_goes_on_bit_for_bit(
    dtype: torch.dtype, moment_dtype: torch.dtype | None, tmp_path: Path
) -> None:
    def made(params: list[nn.Parameter]) -> AdamW:
        ema = RetainEMA(params, dtype)
        options: dict[str, Any] = {"moment_dtype": moment_dtype, "metric": "adam", "feed_back": True, "seed": 3}
        return AdamW(params, lr=1e-2, ema=ema, gamma=0.5, rectify="both", **options)

    def train(params: list[nn.Parameter], optimizer: AdamW, steps: range) -> None:
        for step in steps:
            give(params, step, 0.1)
            r = [param.grad.clone() for param in params]  # type: ignore[union-attr]
            give(params, step + 100, 0.1)
            take_step(optimizer, [param.grad - other for param, other in zip(params, r, strict=True)], r)  # type: ignore[operator]

    whole = parameters((9, 300), dtype)
    optimizer = made(whole)
    train(whole, optimizer, range(3))
    torch.save([whole, optimizer.state_dict(), optimizer.ema.state_dict()], tmp_path / "saved")  # type: ignore[union-attr]
    train(whole, optimizer, range(3, 6))

    params, state, ema_state = torch.load(tmp_path / "saved", weights_only=False)
    resumed = made(params)
    resumed.load_state_dict(state)
    resumed.ema.load_state_dict(ema_state)  # type: ignore[union-attr]
    train(params, resumed, range(3, 6))
    for a, b in zip(whole, params, strict=True):
        assert torch.equal(a, b)
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[a][name], resumed.state[b][name])
            assert resumed.state[b][name].dtype == (dtype if dtype == BF16 and moment_dtype is None else F32)


def test_threads_and_levels_change_no_bit() -> None:
    def run(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        params = parameters((200_001,), BF16)
        optimizer = AdamW(params, lr=1e-2, ema=RetainEMA(params, BF16), gamma=0.5, rectify="both", metric="adam")
        for step in range(2):
            give(params, step)
            r = [param.grad.clone() for param in params]  # type: ignore[union-attr]
            take_step(optimizer, [-0.5 * value for value in r], r)
        return params[0].detach()

    threads = torch.get_num_threads()
    try:
        assert torch.equal(run(1), run(3))
    finally:
        torch.set_num_threads(threads)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rectify", ["gradient", "update", "both"])
def test_a_step_with_nan_changes_nothing(rectify: str) -> None:
    params = parameters((40, 7))
    optimizer = AdamW(params, ema=RetainEMA(params), gamma=0.5, rectify=rectify)
    good = [torch.ones(40), torch.ones(7)]
    take_step(optimizer, good, good)
    before = copy.deepcopy([params, optimizer.state_dict()])
    bad = [torch.ones(40), torch.ones(7)]
    bad[1][3] = math.nan
    take_step(optimizer, bad, good)
    assert optimizer.last_step is not None
    assert optimizer.last_step.skipped
    assert all(map(torch.equal, params, before[0]))
    for index, entry in before[1]["state"].items():  # type: ignore[index,call-overload]
        assert all(torch.equal(value, optimizer.state_dict()["state"][index][name]) for name, value in entry.items())
    take_step(optimizer, good, bad)  # in r: kept out of e
    assert not optimizer.last_step.skipped
    assert optimizer.last_step.retain_nonfinite
    assert all(bool(param.isfinite().all()) for param in params)


def test_nan_can_be_an_error() -> None:
    params = parameters((4,))
    optimizer = AdamW(params, ema=RetainEMA([("w", params[0])]), gamma=0.5, error_if_nonfinite=True)
    with pytest.raises(RuntimeError, match=r'grads\[0\] "w": 1 of 4 elements are NaN or Inf; nothing was changed'):
        take_step(optimizer, [torch.tensor([1.0, math.inf, 0.0, 0.0])], [torch.ones(4)])
    assert not optimizer.state
    take_step(optimizer, [torch.ones(4)], [torch.ones(4)])
    assert optimizer.state


def test_moments_that_are_no_numbers_leave_the_weights() -> None:
    params = parameters((4,))
    optimizer = AdamW(params, ema=RetainEMA(params), gamma=0.5, rectify="both")
    ones = [torch.ones(4)]
    take_step(optimizer, ones, ones)
    optimizer.state[params[0]]["exp_avg"][0] = math.nan
    before = params[0].detach().clone()
    take_step(optimizer, ones, ones)
    assert optimizer.last_step is not None
    assert optimizer.last_step.update_nonfinite
    assert torch.equal(params[0], before)


def all_of(optimizer: AdamW) -> list[Tensor]:
    """Weights, moments and counts."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    states = [tensor for param in params for tensor in optimizer.state[param].values()]
    return [tensor.detach().clone() for tensor in (*params, *states)]


@pytest.mark.parametrize("options", [{}, {"metric": "adam"}, {"feed_back": True, "metric": "adam"}], ids=str)
def test_an_update_that_is_no_number_can_be_an_error_that_changes_nothing(options: dict[str, Any]) -> None:
    params = parameters((40, 3))
    optimizer = AdamW(params, ema=RetainEMA(params), gamma=0.5, rectify="both", error_if_nonfinite=True, **options)
    g, e = [torch.ones(40), -torch.ones(3)], [-torch.ones(40), torch.ones(3)]
    for _ in range(2):
        take_step(optimizer, g, e)
    whole = optimizer.state[params[1]]["exp_avg"].clone()
    optimizer.state[params[1]]["exp_avg"][0] = math.nan
    before, floor = all_of(optimizer), optimizer.state_dict()["param_groups"][0].get("rms_denominator")
    with pytest.raises(RuntimeError, match=r"^the update holds NaN or Inf although g and r do not: .* e was\. Lower"):
        take_step(optimizer, g, e)
    for now, then in zip(all_of(optimizer), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0.0, atol=0.0, equal_nan=True)
    assert optimizer.state_dict()["param_groups"][0].get("rms_denominator") == floor
    optimizer.state[params[1]]["exp_avg"].copy_(whole)
    take_step(optimizer, g, e)
    assert float(optimizer.state[params[0]]["step"]) == 3.0
    assert not torch.equal(params[0], before[0])


@pytest.mark.core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS[2:], ids=str)
def test_a_step_that_is_all_or_nothing_has_the_bits_of_one_that_is_not(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    """M and V first and theta after them, or U looked at and then all three."""
    made = []
    for all_or_nothing in (False, True):
        params = parameters((70_001, 13), dtype)
        optimizer = AdamW(
            params, ema=RetainEMA(params), gamma=1.0, error_if_nonfinite=all_or_nothing, lr=0.01, **options
        )
        generator = torch.Generator().manual_seed(4)
        conflicts = []
        for step in range(3):  # r turns, and momentum goes on
            r = [(1.0 - step) + torch.randn(param.shape, generator=generator) for param in params]
            g = [x if step == 0 else 0.1 * torch.randn(x.shape, generator=generator) for x in r]
            take_step(optimizer, [x.to(dtype) for x in g], [x.to(dtype) for x in r])
            assert optimizer.last_step is not None
            conflicts.append(optimizer.last_step.update_conflict)
        made.append((all_of(optimizer), conflicts))
    (expected, conflicts), (found, same_conflicts) = made
    assert same_conflicts == conflicts
    assert any(conflicts)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_that_are_missing() -> None:
    # No gradient, no e: as in torch the parameter rests. With an e, GRU's projection gives it one: g' = -(d/m) e.
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    optimizer = AdamW(params, lr=0.1, ema=RetainEMA(params), gamma=1.0)
    e = torch.tensor([1.0, 0.0])
    take_step(optimizer, [-e, None, None], [e, e, None])
    # d = -1, m = 2: g' = (-1, 0) + 0.5 (1, 0) in the first, 0.5 (1, 0) in the second.
    assert optimizer.state[params[0]]["exp_avg"].tolist() == pytest.approx([-0.05, 0.0])
    assert optimizer.state[params[1]]["exp_avg"].tolist() == pytest.approx([0.05, 0.0])
    assert params[2] not in optimizer.state
    take_step(optimizer, [e, None, None], [e, e, None])  # no conflict
    assert float(optimizer.state[params[1]]["step"]) == 1.0


def test_opposite_gradients_leave_nothing_to_apply() -> None:
    params = parameters((50,))
    optimizer = AdamW(params, ema=RetainEMA(params), gamma=1.0)
    give(params, 0)
    r = [params[0].grad.clone()]  # type: ignore[union-attr]
    take_step(optimizer, [-3.0 * r[0]], r)
    assert optimizer.last_step is not None
    assert optimizer.last_step.degenerate
    assert not optimizer.state[params[0]]["exp_avg"].any()


@pytest.mark.parametrize("write_grad", [False, True])
def test_coefficients_that_float32_cannot_hold(write_grad: bool) -> None:
    params = [nn.Parameter(torch.zeros(2))]
    optimizer = AdamW(params, betas=(0.0, 0.0), ema=RetainEMA(params), gamma=1.0, write_grad=write_grad)
    take_step(optimizer, [torch.tensor([-1e6, 1.0])], [torch.tensor([1e-35, 0.0])])
    assert optimizer.state[params[0]]["exp_avg"].tolist() == pytest.approx([0.0, 1.0], abs=1e-9)
    assert params[0].grad.tolist() == pytest.approx([0.0, 1.0] if write_grad else [-1e6, 1.0], abs=1e-9)  # type: ignore[union-attr]


@pytest.mark.parametrize("rectify", ["gradient", "both"])
def test_a_loss_scaler_is_all_or_nothing(rectify: str) -> None:
    params, others = parameters((30,)), parameters((30,))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = AdamW(params, lr=1e-2, ema=RetainEMA(params), gamma=0.5, rectify=rectify)
    plain = AdamW(others, lr=1e-2, ema=RetainEMA(others), gamma=0.5, rectify=rectify)
    x, y = torch.randn(30, generator=torch.Generator().manual_seed(3)), torch.ones(30)
    for step in range(4):
        with optimizer.ema.collect(scaler):  # type: ignore[union-attr]
            scaler.scale((params[0] * x).sum()).backward()
        scaler.scale((params[0] * (y - x)).sum()).backward()
        if step == 1:
            before, e = params[0].detach().clone(), optimizer.ema.tensors[0].clone()  # type: ignore[union-attr]
            params[0].grad[3] = math.inf  # type: ignore[index]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step == 1:
            assert torch.equal(params[0], before)
            assert torch.equal(optimizer.ema.tensors[0], e)  # type: ignore[union-attr]
            assert scaler.get_scale() == 4.0
        else:
            take_step(plain, [y - x], [x])
    assert torch.allclose(params[0], others[0], rtol=1e-6, atol=1e-7)


def test_the_half_that_looks() -> None:
    params = parameters((4,))
    optimizer = AdamW(params, ema=RetainEMA(params), gamma=1.0)
    e = torch.tensor([1.0, 0.0, 0.0, 0.0])
    with optimizer.ema.collect():  # type: ignore[union-attr]
        params[0].grad = e.clone()
    params[0].grad = -e + 1.0
    before = params[0].detach().clone()
    found = optimizer.prepare()
    assert not found.conflict
    assert torch.equal(params[0], before)
    optimizer.step()
    assert not torch.equal(params[0], before)
    with pytest.raises(RuntimeError, match="expected an optimizer with an ema"):
        AdamW(params).prepare()


def test_another_steps_gradients_are_looked_at_anew() -> None:
    params, others = parameters((4,)), parameters((4,))
    optimizer, plain = (AdamW(p, betas=(0.0, 0.0), ema=RetainEMA(p), gamma=1.0) for p in (params, others))
    e, g = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([-2.0, 1.0, 0.0, 0.0])
    with optimizer.ema.collect():  # type: ignore[union-attr]
        params[0].grad = e.clone()
    params[0].grad = e.clone()
    assert not optimizer.prepare().conflict
    optimizer.zero_grad()  # the caller thinks better of it
    for each in (optimizer, plain):
        take_step(each, [g], [e])
    assert optimizer.last_step is not None
    assert optimizer.last_step.conflict
    assert optimizer.ema.step == 2  # type: ignore[union-attr]
    assert torch.equal(params[0], others[0])


@pytest.mark.parametrize("rule", [PCGrad(), PCGrad(form="mean"), MGDA(), Subspace(w_r=0.5)], ids=repr)
@pytest.mark.parametrize("tau", [None, 0.7])
def test_another_rule_is_that_rule_before_a_plain_step(rule: Rule, tau: float | None) -> None:
    """Against rectify_, whose rules have tests of their own, and the same optimizer without an e."""
    ours, theirs = parameters((15, 7)), parameters((15, 7))
    inside = AdamW(ours, ema=RetainEMA(ours), gamma=0.4, tau=tau, rule=rule, lr=0.01)
    plain, ema = AdamW(theirs, lr=0.01), RetainEMA(theirs)
    generator = torch.Generator().manual_seed(6)
    for step in range(3):
        r = [torch.randn(p.shape, generator=generator) for p in ours]
        noise = [0.3 * torch.randn(p.shape, generator=generator) for p in ours]
        g = [a - 0.5 * (1 - step) * x for a, x in zip(noise, r, strict=True)]
        take_step(inside, g, r)
        rectified = rectify_(put(theirs, g), ema, 0.4, tau, retain_grads=r, rule=rule)
        plain.step()
        assert inside.last_step is not None
        assert inside.last_step.rule == rule
        assert inside.last_step.norm_after == pytest.approx(rectified.norm_after, rel=1e-5)
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-5, atol=2e-7)


def put(params: list[nn.Parameter], gradients: list[Tensor]) -> list[nn.Parameter]:
    for param, g in zip(params, gradients, strict=True):
        param.grad = g.clone()
    return params


def test_a_rule_that_adds_e_needs_all_of_r() -> None:
    for rule, moves in ((GRU(), True), (PCGrad(), False)):
        params = parameters((4,))
        before = params[0].detach().clone()
        optimizer = AdamW(params, ema=RetainEMA(params), gamma=1.0, rule=rule)
        take_step(optimizer, [torch.ones(4)], [torch.tensor([1.0, math.nan, 0.0, 0.0])])
        assert torch.equal(params[0], before) == (not moves)


@pytest.mark.parametrize("skipped", [0, 1, 2])
def test_a_skipped_first_step_leaves_the_metric_to_the_next(skipped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """rms(D) is that of the first step that is made, also where only the device knows which that is."""

    def made(stays_on_device: bool) -> tuple[Tensor, AdamW]:
        params = parameters((5,))
        optimizer = AdamW(params, ema=RetainEMA(params), gamma=1.0, rectify="update", metric="adam", lr=0.1)
        generator = torch.Generator().manual_seed(2)
        with monkeypatch.context() as patch:
            patch.setattr(optimizer._params, "stays_on_device", stays_on_device)
            for step in range(4):
                e = torch.randn(5, generator=generator)
                g = 0.1 * torch.randn(5, generator=generator) - torch.tensor([0.0, 1e-3, 0.1, 1.0, 5.0]) * e
                g[2] = math.nan if step < skipped else g[2]
                take_step(optimizer, [g], [e])
                if step < skipped:
                    assert "rms_denominator" not in optimizer.state_dict()["param_groups"][0]
        return params[0].detach(), optimizer

    def settled_on_host(self: AdamWStep, tau: float, rule: Rule | None) -> None:
        assert self.stats is not None
        settle_gradient(self.stats, tau, lambda: self.rows, self.shards, rule=rule)

    monkeypatch.setattr(AdamWStep, "settle", settled_on_host)
    (expected, known), (found, optimizer) = made(False), made(True)
    assert optimizer.last_step is not None
    assert optimizer.last_step.update_conflict
    assert torch.equal(found, expected)
    floors = [each.state_dict()["param_groups"][0]["rms_denominator"] for each in (known, optimizer)]
    assert floors[0] == floors[1]


@pytest.mark.parametrize("stays_on_device", [False, True])
def test_a_step_that_is_given_up_touches_nothing(stays_on_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters((4,))
    optimizer = AdamW(params, ema=RetainEMA(params), gamma=1.0)
    before = params[0].detach().clone()
    with optimizer.ema.collect():  # type: ignore[union-attr]
        params[0].grad = torch.ones(4)
    params[0].grad = torch.ones(4)
    optimizer.prepare()
    optimizer.give_up()
    with monkeypatch.context() as patch:
        patch.setattr(optimizer._params, "stays_on_device", stays_on_device)
        optimizer.step()
    assert torch.equal(params[0], before)
    assert not optimizer.state  # no count either: on CUDA it lies on another device than what the host knows
    take_step(optimizer, [torch.ones(4)], [torch.ones(4)])  # that one alone
    assert float(optimizer.state[params[0]]["step"]) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.5}, "gamma: expected an ema beside it"),
        ({"rectify": "both"}, "rectify: expected an ema beside it"),
        ({"rule": "pcgrad"}, "rule: expected an ema beside it"),
        ({"metric": "adam"}, "metric: expected an ema beside it"),
        ({"feed_back": True}, "feed_back: expected an ema beside it"),
        ({"ema": True}, "gamma: expected a number in .0, 1. beside an ema"),
        ({"ema": True, "gamma": 0.5, "rectify": "all"}, "rectify: expected one of gradient, update, both, got 'all'"),
        ({"ema": True, "gamma": 0.5, "rule": "sago"}, "rule: expected one that goes by sums, got sago"),
        (
            {"ema": True, "gamma": 0.5, "rule": "pcgrad", "rectify": "update"},
            'rule: expected rectify="gradient" or "both" beside pcgrad, got "update"',
        ),
        ({"ema": True, "gamma": 0.5, "metric": "adam"}, 'metric: expected rectify="update" or "both"'),
        ({"ema": True, "gamma": 0.5, "feed_back": True}, 'feed_back: expected rectify="update" or "both"'),
        ({"ema": True, "gamma": 0.5, "maximize": True}, "maximize: expected False with an ema"),
        ({"ema": True, "gamma": 0.5, "tau": -1.0}, "tau: expected a number above 0"),
        ({"amsgrad": True}, "amsgrad: expected False, got True; only torch.optim.AdamW offers it"),
        ({"differentiable": True}, "differentiable: expected False"),
        ({"lr": -1.0}, r"param_groups\[0\]: lr: expected a number of at least 0, got -1.0"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]: expected a number in \[0, 1\), got 1.0"),
        ({"moment_dtype": torch.float16}, "moment_dtype: expected None, torch.float32 or torch.bfloat16"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    params = parameters((3,))
    if options.get("ema"):
        options = {**options, "ema": RetainEMA(params)}
    with pytest.raises((TypeError, ValueError), match=message):
        AdamW(params, **options)


def test_the_ema_follows_what_moves() -> None:
    params = parameters((3, 4))
    with pytest.raises(ValueError, match="but the RetainEMA does not follow it"):
        AdamW(params, ema=RetainEMA(params[:1]), gamma=0.5)
    with pytest.raises(ValueError, match="expected all 2 parameters the RetainEMA follows, but 1 are missing"):
        AdamW(params[:1], ema=RetainEMA(params), gamma=0.5)
    with pytest.raises(TypeError, match=r"params\[0\]: expected float32, bfloat16 or float16, got torch.float64"):
        AdamW([nn.Parameter(torch.zeros(2, dtype=torch.float64))])


def test_states_that_do_not_fit_change_nothing() -> None:
    params = parameters((3,))
    optimizer = AdamW(params)
    give(params, 0)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    bad = copy.deepcopy(state)
    bad["state"][0]["exp_avg_sq"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"parameter 0: exp_avg_sq: expected shape \(3,\), got \(4,\)"):
        optimizer.load_state_dict(bad)
    amsgrad = copy.deepcopy(state)
    amsgrad["param_groups"][0]["amsgrad"] = True
    with pytest.raises(ValueError, match="expected one without amsgrad"):
        optimizer.load_state_dict(amsgrad)
    ascending = copy.deepcopy(state)
    ascending["param_groups"][0]["maximize"] = True
    rectifying = AdamW(params, ema=RetainEMA(params), gamma=0.5)
    with pytest.raises(ValueError, match=r"state_dict: param_groups\[0\]: maximize: expected False with an ema"):
        rectifying.load_state_dict(ascending)
    assert rectifying.param_groups[0]["maximize"] is False
    optimizer.load_state_dict(copy.deepcopy(ascending))
    optimizer.load_state_dict(copy.deepcopy(state))
    del bad["state"][0]["exp_avg_sq"]
    with pytest.raises(ValueError, match="expected step, exp_avg and exp_avg_sq, missing"):
        optimizer.load_state_dict(bad)
    assert torch.equal(optimizer.state[params[0]]["exp_avg"], state["state"][0]["exp_avg"])


def test_tied_weights_move_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    ema = RetainEMA(model.named_parameters())
    optimizer = AdamW(model.parameters(), ema=ema, gamma=0.5, rectify="both")
    with ema.collect():
        model["b"](model["a"](torch.ones(1, 3))).sum().backward()
    model["a"](torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 1


def test_layouts_that_differ_are_worked_on_in_copies() -> None:
    param = nn.Parameter(torch.randn(4, 6).t())
    other = nn.Parameter(param.detach().clone().contiguous())
    for weights in (param, other):
        optimizer = AdamW([weights], lr=0.1)
        for step in range(2):
            weights.grad = torch.arange(24.0).reshape(6, 4) - step
            optimizer.step()
    assert torch.equal(param, other)


def test_nothing_to_measure_is_zero_and_r_alone_is_refused() -> None:
    params = parameters((3,))
    optimizer, ema = torch.optim.AdamW(params), RetainEMA(params)
    step = measure_update(optimizer, ema, rectify_(params, ema, gamma=0.5))
    assert (step.update_dot, step.update_norm, step.update_conflict) == (0.0, 0.0, False)
    with pytest.raises(TypeError, match="ema: expected a RetainEMA, whose e is still there after the step, got Retain"):
        measure_update(optimizer, RetainGradient(params), step)  # type: ignore[arg-type]
