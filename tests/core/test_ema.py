"""RetainEMA: collecting, streaming, accumulation, subsets, loss scaling, saving and resuming."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gru_fast
from gru_fast.core.backends import native

GAMMA, TAU = 0.3, 0.5


def make_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16, bias=False), nn.Tanh(), nn.Linear(16, 1))
    return model.to(dtype)


def batches(count: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 6, generator=generator).to(dtype) for _ in range(count)]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x).float() - x.float().sum(1, keepdim=True)).square().mean()


def gradients(model: nn.Module, x: Tensor, sign: float = 1.0) -> list[Tensor]:
    return list(torch.autograd.grad(sign * loss(model, x), list(model.parameters())))


def ema_by_hand(history: list[list[Tensor]], gamma: float) -> list[Tensor]:
    ema = [torch.zeros_like(r, dtype=torch.float64) for r in history[0]]
    for retain in history:
        ema = [(1 - gamma) * e + gamma * r.double() for e, r in zip(ema, retain, strict=True)]
    return ema


def assert_all_close(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-6) -> None:
    for row, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = float((a.double() - b.double()).norm())
        assert error <= rtol * float(b.double().norm()) + 1e-12, f"tensor {row}: off by {error:.3g}"


Collector = Callable[[gru_fast.RetainEMA], Any]
COLLECTORS: dict[str, Collector] = {
    "collect": lambda ema: ema.collect(),
    "stream": lambda ema: ema.stream(GAMMA),
}


@pytest.fixture(params=sorted(COLLECTORS))
def collector(request: pytest.FixtureRequest) -> Collector:
    return COLLECTORS[request.param]


@pytest.mark.parametrize("forget_first", [False, True])
def test_ema_follows_the_formula_and_grads_stay(collector: Collector, forget_first: bool) -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    history = []
    for forget, retain in zip(batches(3, 1), batches(3, 2), strict=True):
        history.append(gradients(model, retain))
        expected_grads = gradients(model, forget, -1.0)
        if forget_first:
            (-loss(model, forget)).backward()
        with collector(ema):
            loss(model, retain).backward()
        if not forget_first:
            assert all(p.grad is None for p in model.parameters())
            (-loss(model, forget)).backward()
        assert_all_close([p.grad for p in model.parameters()], expected_grads)
        gru_fast.rectify_(model.parameters(), ema, GAMMA, TAU)
        assert_all_close(ema.tensors, ema_by_hand(history, GAMMA))
        model.zero_grad()
    assert ema.step == 3


def test_collect_swaps_gradients_without_a_copy() -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    (-loss(model, batches(1, 1)[0])).backward()
    held = [p.grad for p in model.parameters()]
    with ema.collect():
        assert all(p.grad is None for p in model.parameters())
        loss(model, batches(1, 2)[0]).backward()
        retain = [p.grad for p in model.parameters()]
    assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True))
    assert ema.pending_nbytes == sum(p.numel() * 4 for p in model.parameters())
    with ema.collect():
        assert all(p.grad is r for p, r in zip(model.parameters(), retain, strict=True))
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    assert ema.pending_nbytes == 0


def test_micro_batches_equal_one_batch(collector: Collector) -> None:
    """Gradient accumulation: e decays once a step, however many micro-batches there are."""
    whole, split = make_model(), make_model()
    one, many = gru_fast.RetainEMA(whole.parameters()), gru_fast.RetainEMA(split.parameters())
    for retain in batches(3, 2):
        with collector(one):
            loss(whole, retain).backward()
        for part in retain.chunk(4):
            with collector(many):
                (loss(split, part) / 4).backward()
        for model, ema in ((whole, one), (split, many)):
            (-loss(model, retain.flip(0))).backward()
            gru_fast.rectify_(model.parameters(), ema, GAMMA)
            model.zero_grad()
    assert_all_close(many.tensors, one.tensors, rtol=1e-5)


def test_stream_frees_each_gradient_at_once(device: torch.device) -> None:
    model = make_model().to(device)
    ema = gru_fast.RetainEMA(model.parameters())
    alive = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    with ema.stream(GAMMA):
        loss(model, batches(1, 2)[0].to(device)).backward()
    assert max(alive) == 1, f"retain gradients alive at a time: {alive}"
    assert ema.pending_nbytes == 0
    gru_fast.rectify_(model.parameters(), ema, GAMMA)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_on_every_device(device: torch.device, dtype: torch.dtype) -> None:
    """Collected, streamed and by torch.ops: the same e and g. On CUDA stream()'s hooks run in autograd's threads."""
    model = make_model(dtype).to(device)
    params = list(model.parameters())
    emas = {how: gru_fast.RetainEMA(params) for how in (*COLLECTORS, "torch.ops")}
    plain = [torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for p in params]
    history = []
    for pair in zip(batches(3, 1, dtype), batches(3, 2, dtype), strict=True):
        forget, retain = (x.to(device) for x in pair)
        history.append(gradients(model, retain))
        flat_e = torch.cat([e.reshape(-1) for e in ema_by_hand(history, GAMMA)])
        flat_g = torch.cat([g.reshape(-1) for g in gradients(model, forget, -1.0)]).double()
        expected = gru_fast.reference.rectified_gradient(flat_g, flat_e, TAU)
        for how, ema in emas.items():
            model.zero_grad()
            with COLLECTORS.get(how, COLLECTORS["collect"])(ema):
                loss(model, retain).backward()
                collected = [p.grad for p in params]
            (-loss(model, forget)).backward()
            if how == "torch.ops":
                ema.discard()
                torch.ops.gru_fast.rectify_([p.grad for p in params], collected, plain, GAMMA, TAU)
            else:
                assert gru_fast.rectify_(params, ema, GAMMA, TAU).conflict
            assert_all_close(plain if how == "torch.ops" else ema.tensors, ema_by_hand(history, GAMMA))
            found = torch.cat([p.grad.reshape(-1) for p in params])
            assert_all_close([found], [expected], rtol=1e-5 if dtype == torch.float32 else 1e-2)


def test_stream_takes_no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads the sums of a fold, and float64 ones cost more than all the rest of it."""
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    with monkeypatch.context() as patched, ema.stream(GAMMA):
        patched.setattr(native.NativePasses, "reduce", None)
        loss(model, batches(1, 2)[0]).backward()
    assert all(e.any() for e in ema.tensors)


def test_parameters_without_retain_gradient_decay(collector: Collector) -> None:
    model = make_model()
    head = model[4]
    ema = gru_fast.RetainEMA(model.named_parameters())
    for x in batches(2, 2):
        with collector(ema):
            loss(model, x).backward()
        gru_fast.rectify_(model.parameters(), ema, GAMMA)
    before = [e.clone() for e in ema.tensors]
    with collector(ema):  # only the head is used
        head(torch.ones(2, 16)).mean().backward()
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    expected = [(1 - GAMMA) * e for e in before[:3]]
    assert_all_close(ema.tensors[:3], expected)
    assert not torch.equal(ema.tensors[3], (1 - GAMMA) * before[3])


def test_nothing_collected_leaves_e_as_it_is() -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    with ema.collect():
        loss(model, batches(1, 2)[0]).backward()
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    before = [e.clone() for e in ema.tensors]
    (-loss(model, batches(1, 2)[0])).backward()
    assert gru_fast.rectify_(model.parameters(), ema, GAMMA).conflict
    assert all(torch.equal(a, b) for a, b in zip(ema.tensors, before, strict=True))


def test_missing_gradient_is_made_only_if_the_projection_gives_it_a_value() -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    first, last = model[0].weight, model[4].weight
    with ema.collect():
        loss(model, batches(1, 2)[0]).backward()
    gru_fast.rectify_(model.parameters(), ema, 1.0)
    assert all(p.grad is None for p in model.parameters())
    last.grad = ema.tensors[3].clone()
    assert not gru_fast.rectify_(model.parameters(), ema, 1.0).conflict
    assert first.grad is None
    last.grad = -ema.tensors[3]
    step = gru_fast.rectify_(model.parameters(), ema, 1.0)
    norm_sq = sum(float(e.double().square().sum()) for e in ema.tensors)
    coefficient = float(ema.tensors[3].double().square().sum()) / norm_sq
    assert step.conflict
    assert_all_close([first.grad], [coefficient * ema.tensors[0]])


def test_parameters_that_no_loss_uses_stay_without_gradient() -> None:
    model = make_model()
    unused = nn.Parameter(torch.ones(3))
    params = [*model.parameters(), unused]
    ema = gru_fast.RetainEMA(params)
    x = batches(1, 2)[0]
    with ema.collect():
        loss(model, x).backward()
    (-loss(model, x)).backward()
    assert gru_fast.rectify_(params, ema, GAMMA).conflict
    assert unused.grad is None


def test_frozen_parameters_are_left_out() -> None:
    model = make_model()
    model[0].requires_grad_(False)
    ema = gru_fast.RetainEMA(model.named_parameters())
    assert ema.names == ["2.weight", "4.weight", "4.bias"]
    x = batches(1, 2)[0]
    with ema.collect():
        loss(model, x).backward()
    (-loss(model, x)).backward()
    gru_fast.rectify_(model.parameters(), ema, GAMMA)  # all of them, frozen ones included
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"params\[0\] of shape \(16, 6\): is trainable, but the RetainEMA does not"):
        gru_fast.rectify_(model.parameters(), ema, GAMMA)


def test_low_rank_subset_matches_projection_over_the_subset() -> None:
    """LoRA-style: only the adapters train, and the step is over them alone."""
    torch.manual_seed(0)
    base, a, b = nn.Linear(6, 6), nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))
    base.requires_grad_(False)
    ema = gru_fast.RetainEMA([*base.parameters(), a, b])
    x = batches(1, 3)[0]
    with ema.collect():
        (base(x) + x @ a.T @ b.T).square().mean().backward()
    (-(base(x) + x @ a.T @ b.T).square().mean() + a.square().sum()).backward()
    flat_g = torch.cat([a.grad.reshape(-1), b.grad.reshape(-1)]).double()
    gru_fast.rectify_([*base.parameters(), a, b], ema, 1.0)
    flat_e = torch.cat([e.reshape(-1) for e in ema.tensors]).double()
    expected = gru_fast.reference.rectified_gradient(flat_g, flat_e)
    assert_all_close([torch.cat([a.grad.reshape(-1), b.grad.reshape(-1)])], [expected])


def test_parameter_groups_are_one_vector() -> None:
    model = make_model()
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2:].parameters()}], lr=0.1)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    ema = gru_fast.RetainEMA(params)
    x = batches(1, 2)[0]
    with ema.collect():
        loss(model, x).backward()
    (-loss(model, x)).backward()
    with pytest.raises(ValueError, match=r"expected all 5 parameters .* but 3 are missing, first number 2"):
        gru_fast.rectify_(params[:2], ema, GAMMA)
    assert gru_fast.rectify_(reversed(params), ema, GAMMA).conflict  # any order: the EMA knows its own


def test_tied_weights_count_once() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(10, 4)
    head = nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    ema = gru_fast.RetainEMA([embedding.weight, head.weight])
    assert len(ema) == 1
    with ema.collect():
        head(embedding(torch.arange(10))).square().mean().backward()
    (-head(embedding(torch.arange(10))).square().mean()).backward()
    grad = embedding.weight.grad.clone()
    step = gru_fast.rectify_([embedding.weight, head.weight], ema, 1.0)
    assert step.norm_before == pytest.approx(float(grad.double().norm()), rel=1e-6)


# ---- loss scaling ----------------------------------------------------------------------------------------------------


def test_e_holds_unscaled_gradients(collector: Collector) -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    expected = [GAMMA * g for g in gradients(model, batches(1, 2)[0])]
    how = ema.collect(scale=1024.0) if collector is COLLECTORS["collect"] else ema.stream(GAMMA, scale=1024.0)
    with how:
        (1024.0 * loss(model, batches(1, 2)[0])).backward()
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    assert_all_close(ema.tensors, expected)


@pytest.mark.parametrize("where", ["retain", "forget"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_overflow_under_a_scaler_changes_nothing(where: str, dtype: torch.dtype | None) -> None:
    model = make_model(torch.float16)
    ema = gru_fast.RetainEMA(model.parameters(), dtype=dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    overflow: list[bool] = [False, True, False]
    clean = copy.deepcopy(model)
    clean_ema = gru_fast.RetainEMA(clean.parameters(), dtype=dtype)
    data = list(zip(batches(3, 1, torch.float16), batches(3, 2, torch.float16), strict=True))
    for spoil, (forget, retain) in zip(overflow, data, strict=True):
        with ema.collect(scale=scaler):
            (64.0 * loss(model, retain)).backward()
            if spoil and where == "retain":
                model[2].weight.grad[3, 3] = float("inf")
        (-loss(model, forget)).backward()
        if spoil and where == "forget":
            model[2].weight.grad[3, 3] = float("nan")
        grads = [p.grad.clone() for p in model.parameters()]
        step = gru_fast.rectify_(model.parameters(), ema, GAMMA, TAU)
        assert (step.skipped, step.nonfinite) == (spoil, spoil)
        if spoil:
            for p, g in zip(model.parameters(), grads, strict=True):
                torch.testing.assert_close(p.grad, g, rtol=0, atol=0, equal_nan=True)
        model.zero_grad()
    for spoil, (forget, retain) in zip(overflow, data, strict=True):  # the same run without the spoilt step
        if spoil:
            continue
        with clean_ema.collect(scale=64.0):
            (64.0 * loss(clean, retain)).backward()
        (-loss(clean, forget)).backward()
        gru_fast.rectify_(clean.parameters(), clean_ema, GAMMA, TAU)
        clean.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ema.tensors, clean_ema.tensors, strict=True))


def test_stream_refuses_nonfinite_elements_and_says_so() -> None:
    weight = nn.Parameter(torch.ones(4))
    ema = gru_fast.RetainEMA([weight])
    with ema.stream(0.5):
        (weight * torch.tensor([1.0, float("inf"), 2.0, float("nan")])).sum().backward()
    step = gru_fast.rectify_([weight], ema, 0.5)
    assert torch.equal(ema.tensors[0], torch.tensor([0.5, 0.0, 1.0, 0.0]))
    assert (step.retain_nonfinite, step.nonfinite, step.grad_nonfinite) == (True, True, False)


# ---- saving ----------------------------------------------------------------------------------------------------------


def run_steps(
    model: nn.Module, ema: gru_fast.RetainEMA, optimizer: torch.optim.Optimizer, data: list[Any], collector: Collector
) -> None:
    for forget, retain in data:
        with collector(ema):
            loss(model, retain).backward()
        (-loss(model, forget)).backward()
        gru_fast.rectify_(model.parameters(), ema, GAMMA, TAU)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("dtype", "ema_dtype"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)],
)
def test_resumed_trajectory_is_bit_identical(
    dtype: torch.dtype, ema_dtype: torch.dtype | None, collector: Collector
) -> None:
    data = list(zip(batches(6, 1, dtype), batches(6, 2, dtype), strict=True))

    def start() -> tuple[nn.Module, gru_fast.RetainEMA, torch.optim.Optimizer]:
        model = make_model(dtype)
        ema = gru_fast.RetainEMA(model.named_parameters(), dtype=ema_dtype, seed=7)
        return model, ema, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    unbroken = start()
    run_steps(*unbroken, data, collector)
    first = start()
    run_steps(*first, data[:3], collector)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = start()
    for part, state in zip(second, torch.load(file), strict=True):
        part.load_state_dict(state)
    run_steps(*second, data[3:], collector)
    for a, b in zip(unbroken[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(unbroken[1].tensors, second[1].tensors, strict=True):
        assert torch.equal(a, b)
    assert second[1].step == 6


def test_load_checks_everything_first() -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.named_parameters())
    with ema.collect():
        loss(model, batches(1, 2)[0]).backward()
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    state, before = ema.state_dict(), [e.clone() for e in ema.tensors]
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({k: v for k, v in state.items() if k != "seed"}, ValueError, r"missing \['seed'\]"),
        (state | {"ema": state["ema"][:2]}, ValueError, "expected 5 parameters, got 2"),
        (state | {"names": ["x", *state["names"][1:]]}, ValueError, 'parameter 0 to be "0.weight", got "x"'),
        (
            state | {"ema": [*state["ema"][:-1], torch.ones(7)]},
            ValueError,
            r'ema\[4\] "4.bias": expected shape \(1,\), got \(7,\)',
        ),
        (
            state | {"ema": [torch.ones(16, 6), *(e.to(torch.bfloat16) for e in state["ema"][1:])]},
            TypeError,
            r'ema\[1\] "0.bias": expected torch.float32, got torch.bfloat16',
        ),
        (state | {"format": 99}, ValueError, "expected format 2 at most, got 99"),
    ]
    for bad, error, message in wrong:
        with pytest.raises(error, match=message):
            ema.load_state_dict(bad)
        assert all(torch.equal(a, b) for a, b in zip(ema.tensors, before, strict=True))


def test_reset_forgets_and_to_keeps() -> None:
    model = make_model(torch.bfloat16)
    ema = gru_fast.RetainEMA(model.parameters(), dtype=torch.bfloat16)
    with ema.collect():
        loss(model, batches(1, 2, torch.bfloat16)[0]).backward()
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    before = [e.clone() for e in ema.tensors]
    assert ema.to("cpu") is ema
    assert all(torch.equal(a, b) for a, b in zip(ema.tensors, before, strict=True))
    assert ema.state_dict()["rounding_steps"] == [1]
    ema.reset()
    assert ema.step == 0
    assert all(not e.any() for e in ema.tensors)
    assert ema.state_dict()["rounding_steps"] == [0]


def test_memory_use() -> None:
    model = make_model(torch.bfloat16)
    numel = sum(p.numel() for p in model.parameters())
    assert gru_fast.RetainEMA(model.parameters()).nbytes == 4 * numel
    assert gru_fast.RetainEMA(model.parameters(), dtype=torch.bfloat16).nbytes == 2 * numel
    model[4].float()
    mixed = gru_fast.RetainEMA(model.parameters(), dtype=torch.bfloat16)
    assert [e.dtype for e in mixed.tensors] == [p.dtype for p in model.parameters()]


def test_e_shares_the_memory_layout_of_its_parameter() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
    ema = gru_fast.RetainEMA([weight])
    assert ema.tensors[0].stride() == weight.stride()
    with ema.collect():
        weight.square().sum().backward()
    (-weight.square().sum()).backward()
    weight.grad = weight.grad.contiguous()  # another layout than e's
    assert weight.grad.stride() != ema.tensors[0].stride()
    step = gru_fast.rectify_([weight], ema, 1.0)
    torch.testing.assert_close(ema.tensors[0], 2 * weight.detach())
    assert step.degenerate
    assert not weight.grad.any()


# ---- misuse ----------------------------------------------------------------------------------------------------------


def test_misuse_is_refused() -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    x = batches(1, 2)[0]
    with ema.collect():
        loss(model, x).backward()
        with pytest.raises(RuntimeError, match=r"rectify_ inside collect\(\): call it after the block"):
            gru_fast.rectify_(model.parameters(), ema, GAMMA)
        with pytest.raises(RuntimeError, match=r"stream\(\) inside collect\(\)"), ema.stream(GAMMA):
            pass
    with pytest.raises(RuntimeError, match=r"stream\(\) after collect\(\) in one step"), ema.stream(GAMMA):
        pass
    with pytest.raises(RuntimeError, match="state_dict: this step's retain gradients are still pending"):
        ema.state_dict()
    with pytest.raises(ValueError, match="retain_grads: expected None"):
        gru_fast.rectify_(model.parameters(), ema, GAMMA, retain_grads=[None] * 5)
    with pytest.raises(ValueError, match=r"scale: expected 1\.0 as in the earlier micro-batches"), ema.collect(2.0):
        pass
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    with ema.stream(GAMMA):
        loss(model, x).backward()
    with pytest.raises(ValueError, match=r"gamma: expected 0\.3 as given to stream\(\), got 0.5"):
        gru_fast.rectify_(model.parameters(), ema, 0.5)
    with pytest.raises(ValueError, match=r"gamma: expected 0.3 as earlier in this step, got 0.4"), ema.stream(0.4):
        pass
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    with pytest.raises(ValueError, match=r"scale: expected a finite number above 0, got 0\.0"), ema.collect(scale=0):
        pass


def test_exception_inside_collect_discards_and_restores() -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    (-loss(model, batches(1, 1)[0])).backward()
    held = [p.grad for p in model.parameters()]

    def out_of_memory() -> None:
        with ema.collect():
            loss(model, batches(1, 2)[0]).backward()
            raise MemoryError

    with pytest.raises(MemoryError):
        out_of_memory()
    assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True))
    assert ema.pending_nbytes == 0
    before = [e.clone() for e in ema.tensors]
    gru_fast.rectify_(model.parameters(), ema, GAMMA)  # nothing was collected: e stays as it is
    assert all(map(torch.equal, ema.tensors, before))
    with ema.collect():  # and it can go on
        loss(model, batches(1, 2)[0]).backward()
    assert gru_fast.rectify_(model.parameters(), ema, GAMMA).norm_ema > 0


def test_copying_is_refused() -> None:
    with pytest.raises(TypeError, match=r"cannot be copied or pickled.*save state_dict\(\)"):
        copy.deepcopy(gru_fast.RetainEMA(make_model().parameters()))


def test_nonfinite_stream_raises_before_g_is_touched() -> None:
    weight = nn.Parameter(torch.ones(2))
    ema = gru_fast.RetainEMA([weight])
    with ema.stream(0.5):
        (weight * torch.tensor([float("nan"), 1.0])).sum().backward()
    weight.grad = torch.tensor([1.0, -1.0])
    with pytest.raises(RuntimeError, match=r"folded in by stream\(\)"):
        gru_fast.rectify_([weight], ema, 0.5, error_if_nonfinite=True)
    assert torch.equal(weight.grad, torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize(
    ("params", "dtype", "error", "message"),
    [
        ([], None, ValueError, "expected at least one parameter"),
        (torch.ones(3), None, TypeError, "got a tensor; pass"),
        ([{"params": []}], None, TypeError, r"params\[0\]: expected a torch.Tensor, got dict; pass one flat list"),
        ([nn.Parameter(torch.ones(2, dtype=torch.float64))], None, TypeError, "got torch.float64"),
        ([torch.ones(2)], None, ValueError, "all 1 have requires_grad=False"),
        ([nn.Parameter(torch.ones(2))], torch.bfloat16, TypeError, "torch.bfloat16 for parameters of torch.float32"),
        ([nn.Parameter(torch.ones(2))], torch.int8, ValueError, "got torch.int8"),
    ],
)
def test_bad_parameters_are_refused(params: Any, dtype: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gru_fast.RetainEMA(params, dtype=dtype)


# ---- share: the retain term of an objective, taken from r ------------------------------------------------------------


def with_share(how: str, ema: gru_fast.RetainEMA, share: float) -> Any:
    return ema.collect(share=share) if how == "collect" else ema.stream(GAMMA, share=share)


@pytest.mark.parametrize("how", sorted(COLLECTORS))
@pytest.mark.parametrize("forget_first", [False, True])
def test_a_share_of_the_retain_gradient_equals_a_second_backward_pass(how: str, forget_first: bool) -> None:
    once, twice = make_model(), make_model()
    shared, plain = gru_fast.RetainEMA(once.parameters()), gru_fast.RetainEMA(twice.parameters())
    for forget, retain in zip(batches(3, 1), batches(3, 2), strict=True):
        for part_f, part_r in zip(forget.chunk(2), retain.chunk(2), strict=True):
            if forget_first:
                (-loss(once, part_f)).backward()
            with with_share(how, shared, 0.7):
                loss(once, part_r).backward()
            if not forget_first:
                (-loss(once, part_f)).backward()
            with COLLECTORS[how](plain):
                loss(twice, part_r).backward()
            (0.7 * loss(twice, part_r) - loss(twice, part_f)).backward()
        steps = [
            gru_fast.rectify_(model.parameters(), ema, GAMMA, TAU) for model, ema in ((once, shared), (twice, plain))
        ]
        assert steps[0].norm_before == pytest.approx(steps[1].norm_before, rel=1e-5)
        assert_all_close([p.grad for p in once.parameters()], [p.grad for p in twice.parameters()], rtol=1e-5)
        assert_all_close(shared.tensors, plain.tensors)
        once.zero_grad()
        twice.zero_grad()


@pytest.mark.parametrize("how", sorted(COLLECTORS))
def test_a_share_makes_gradients_that_are_missing(how: str) -> None:
    model = make_model()
    expected = [0.5 * r for r in gradients(model, batches(1, 2)[0])]
    ema = gru_fast.RetainEMA(model.parameters())
    with with_share(how, ema, 0.5):
        loss(model, batches(1, 2)[0]).backward()
    step = gru_fast.rectify_(model.parameters(), ema, GAMMA)
    assert step.cos == pytest.approx(1.0, abs=1e-6)
    assert_all_close([p.grad for p in model.parameters()], expected)


def test_a_share_may_differ_between_micro_batches_of_stream() -> None:
    model = make_model()
    first, second = batches(2, 2)
    expected = [0.5 * a - 2.0 * b for a, b in zip(gradients(model, first), gradients(model, second), strict=True)]
    ema = gru_fast.RetainEMA(model.parameters())
    for x, share in ((first, 0.5), (second, -2.0)):
        with ema.stream(GAMMA, share=share):
            loss(model, x).backward()
    assert_all_close([p.grad for p in model.parameters()], expected, rtol=1e-5)


def test_collect_refuses_another_share_and_bad_ones() -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    with ema.collect(share=1.0):
        loss(model, batches(1, 2)[0]).backward()
    with (
        pytest.raises(ValueError, match=r"share: expected 1.0 as in the earlier micro-batches"),
        ema.collect(share=0.5),
    ):
        pass
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    with ema.collect(share=0.5):  # a new step
        pass
    with pytest.raises(ValueError, match="share: expected a finite number"), ema.stream(GAMMA, share=float("nan")):
        pass
    with pytest.raises(TypeError, match="share: expected a number"), ema.collect(share="1"):  # type: ignore[arg-type]
        pass


def test_a_share_of_scaled_retain_gradients_is_unscaled() -> None:
    model = make_model()
    retain, forget = batches(1, 2)[0], batches(1, 1)[0]
    expected = [g + r for g, r in zip(gradients(model, forget, -1.0), gradients(model, retain), strict=True)]
    ema = gru_fast.RetainEMA(model.parameters())
    with ema.collect(scale=1024.0, share=1.0):
        (1024.0 * loss(model, retain)).backward()
    (-loss(model, forget)).backward()  # g as after GradScaler.unscale_
    gru_fast.rectify_(model.parameters(), ema, 0.0)  # gamma 0: e stays 0, g is left alone
    assert_all_close([p.grad for p in model.parameters()], expected, rtol=1e-5)


def test_a_share_is_added_once_even_if_the_step_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    retain = batches(1, 2)[0]
    expected = gradients(model, retain)
    ema = gru_fast.RetainEMA(model.parameters())
    with ema.collect(share=1.0):
        loss(model, retain).backward()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("gru_fast.core.rectify.run_step", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            gru_fast.rectify_(model.parameters(), ema, GAMMA)
    gru_fast.rectify_(model.parameters(), ema, GAMMA)
    assert_all_close([p.grad for p in model.parameters()], expected)


# ---- giving a step up ------------------------------------------------------------------------------------------------


def test_what_was_streamed_stays_in_e_and_counts_although_the_step_was_given_up() -> None:
    """A parameter that has an e and no gradient is projected, too."""
    first, second = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    ema = gru_fast.RetainEMA([first, second])
    with ema.stream(1.0):
        (first.sum() + second.sum()).backward()
    ema.discard()
    first.grad = torch.tensor([-1.0, -1.0])
    step = gru_fast.rectify_([first, second], ema, 0.5)
    assert step.conflict
    assert first.grad.tolist() == [-0.5, -0.5]
    assert second.grad is not None
    assert second.grad.tolist() == [0.5, 0.5]


def test_discard_drops_the_step_in_progress(collector: Collector) -> None:
    model = make_model()
    ema = gru_fast.RetainEMA(model.parameters())
    for x in batches(2, 2):
        with collector(ema):
            loss(model, x).backward()
        ema.discard()
        assert ema.pending_nbytes == 0
        assert ema.step == 0
        ema.state_dict()  # which is for between steps
    if collector is COLLECTORS["collect"]:
        assert all(not bool(e.any()) for e in ema.tensors)
    with pytest.raises(RuntimeError, match=r"discard inside"), collector(ema):
        ema.discard()


@pytest.mark.parametrize("bad", ["g", "r"])
def test_an_overflow_halves_the_scale_once(bad: str) -> None:
    """The recipe of collect()."""
    param = nn.Parameter(torch.zeros(2))
    optimizer, scaler = torch.optim.SGD([param], lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
    ema = gru_fast.RetainEMA([param])
    with ema.collect(scaler):
        scaler.scale(param.sum() * (float("inf") if bad == "r" else 1.0)).backward()
    scaler.scale(param.sum() * (float("inf") if bad == "g" else 1.0)).backward()
    scaler.unscale_(optimizer)
    step = gru_fast.rectify_([param], ema, gamma=0.5)
    scaler.step(optimizer)
    before = scaler.get_scale()
    scaler.update()
    if step.skipped and scaler.get_scale() >= before:
        scaler.update(before / 2)
    assert step.skipped
    assert scaler.get_scale() == 4.0
