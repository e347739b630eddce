"""The torch.library ops: schemas, fake implementations, compilation; and steps over several devices' backends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import gru_fast
from gru_fast.core.backends import choice, library, native, parts, passes_for
from gru_fast.core.backends.parts import Part, Work, run_step
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.vectors import accumulate_task_vector_


def problem(seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients that conflict with the EMA: a few shapes, float32."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 7), (64,), (), (33, 3)]
    retain = [torch.randn(shape, generator=generator) for shape in shapes]
    grads = [0.3 * torch.randn(shape, generator=generator) - r for shape, r in zip(shapes, retain, strict=True)]
    return grads, retain, [torch.zeros(shape) for shape in shapes]


def rectified_by_hand(grads: list[Tensor], ema: list[Tensor], tau: float) -> Tensor:
    flat_g = torch.cat([g.reshape(-1) for g in grads]).double()
    flat_e = torch.cat([e.reshape(-1) for e in ema]).double()
    return gru_fast.reference.rectified_gradient(flat_g, flat_e, tau)


@pytest.mark.parametrize("rounding", [False, True])
def test_opcheck(rounding: bool) -> None:
    grads, retain, ema = problem()
    counter = torch.zeros(1, dtype=torch.int64) if rounding else None
    torch.library.opcheck(torch.ops.gru_fast.rectify_.default, (grads, retain, ema, 0.5, 1.0, 1.0, 0, counter))
    torch.library.opcheck(torch.ops.gru_fast.reduce_.default, (grads, retain, ema, 0.5, 1.0, 0, counter))
    stats = torch.ops.gru_fast.reduce_(grads, retain, ema, 0.5)
    torch.library.opcheck(torch.ops.gru_fast.apply_.default, (grads, ema, stats, 1.0))


def test_compiled_function_matches_eager() -> None:
    def two_steps(grads: list[Tensor], retain: list[Tensor], ema: list[Tensor]) -> Tensor:
        halved = [r * 0.5 for r in retain]
        torch.ops.gru_fast.rectify_(grads, halved, ema, 0.5, 1.0)
        stats = torch.ops.gru_fast.reduce_(grads, halved, ema, 0.25)
        torch.ops.gru_fast.apply_(grads, ema, stats, 0.5)
        return sum(g.sum() for g in grads) + stats[0]

    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    eager_tensors, compiled_tensors = problem(), problem()
    assert float(two_steps(*eager_tensors)) == pytest.approx(float(compiled(*compiled_tensors)), rel=1e-12)
    for ours, theirs in zip(eager_tensors, compiled_tensors, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself, while inductor loads
def test_compiled_with_inductor() -> None:
    grads, retain, ema = problem(3)
    expected_ema = [0.5 * r for r in retain]
    expected = rectified_by_hand(grads, expected_ema, 1.0)

    @torch.compile(fullgraph=True)
    def step(grads: list[Tensor], retain: list[Tensor], ema: list[Tensor]) -> Tensor:
        return torch.ops.gru_fast.rectify_(grads, retain, ema, 0.5, 1.0)

    stats = step(grads, retain, ema)
    assert gru_fast.Rectification(stats).conflict
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in grads]).double(), expected, rtol=1e-5, atol=1e-7)


def test_staged_ops_equal_the_fused_one() -> None:
    grads, retain, ema = problem(1)
    staged_grads, staged_ema = [g.clone() for g in grads], [e.clone() for e in ema]
    fused = torch.ops.gru_fast.rectify_(grads, retain, ema, 0.3, 0.7)
    staged = torch.ops.gru_fast.reduce_(staged_grads, retain, staged_ema, 0.3)
    torch.ops.gru_fast.apply_(staged_grads, staged_ema, staged, 0.7)
    assert torch.equal(fused[:14], staged[:14])
    for a, b in zip(grads + ema, staged_grads + staged_ema, strict=True):
        assert torch.equal(a, b)


def test_loss_scale_of_the_op_divides_retain_gradients() -> None:
    grads, retain, ema = problem(2)
    torch.ops.gru_fast.reduce_(grads, [r * 1024 for r in retain], ema, 0.5, 1024.0)
    for r, e in zip(retain, ema, strict=True):
        torch.testing.assert_close(e, 0.5 * r)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.5, "tau": 1.0}, "gamma: expected a number in"),
        ({"gamma": 0.5, "tau": -1.0}, "tau: expected a number above 0"),
        ({"gamma": 0.5, "tau": math.nan}, "tau: expected a number above 0"),
        ({"gamma": 0.5, "tau": 1.0, "loss_scale": 0.0}, "loss_scale: expected a finite number above 0"),
    ],
)
def test_bad_scalars_are_refused_before_anything_is_written(arguments: dict[str, float], message: str) -> None:
    grads, retain, ema = problem()
    before = [t.clone() for t in grads + ema]
    with pytest.raises(ValueError, match=message):
        torch.ops.gru_fast.rectify_(grads, retain, ema, **arguments)
    assert all(map(torch.equal, grads + ema, before))


def test_sixteen_bit_ema_needs_a_rounding_step() -> None:
    grads, retain, ema = ([t.bfloat16() for t in tensors] for tensors in problem())
    with pytest.raises(ValueError, match="rounding_step: expected an int64 tensor"):
        torch.ops.gru_fast.rectify_(grads, retain, ema, 0.5, 1.0)
    torch.ops.gru_fast.rectify_(grads, retain, ema, 0.5, 1.0, rounding_step=torch.zeros(1, dtype=torch.int64))
    assert all(e.any() for e in ema)


@pytest.mark.parametrize("name", ["reduce_", "rectify_"])
def test_a_rounding_step_counts_on_its_own_device_alone(name: str) -> None:
    """Elsewhere e would be rounded by step 0 for ever. Refused before anything is written."""
    grads, retain, ema = ([t.bfloat16() for t in tensors] for tensors in problem())
    before = [t.clone() for t in grads]
    ema[1] = ema[1].to("meta")
    step = torch.zeros(1, dtype=torch.int64)
    tau = [1.0] if name == "rectify_" else []
    op = {"reduce_": library._reduce_op, "rectify_": library._rectify_op}[name]  # torch itself would call the fake
    with pytest.raises(ValueError, match=r"ema\[1\]: expected torch.bfloat16 on cpu, where .* got it on meta"):
        op(grads, retain, ema, 0.5, *tau, rounding_step=step)
    assert all(map(torch.equal, grads, before))
    assert not any(e.any() for row, e in enumerate(ema) if row != 1)
    assert step.item() == 0


def test_empty_lists() -> None:
    step = gru_fast.Rectification(torch.ops.gru_fast.rectify_([], [], [], 0.5, 1.0))
    assert (step.norm_before, step.conflict, step.clipped, step.alpha) == (0.0, False, False, 1.0)
    assert math.isnan(step.cos)


def test_fake_tensors_give_statistics_of_the_right_kind() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        grads = [torch.empty(3, 4), torch.empty(5)]
        stats = torch.ops.gru_fast.rectify_(grads, grads, grads, 0.5, 1.0)
        assert (stats.shape, stats.dtype) == ((native.NUM_STATS,), torch.float64)


def cut(monkeypatch: pytest.MonkeyPatch, *chosen: list[int]) -> None:
    """One machine has one kind of device: a stand-in that cuts the rows into the parts that several would make."""

    def in_parts(work: Work) -> list[Part]:
        rows = [work.rows.select(some) for some in chosen]
        return [Part(some, passes_for(torch.device("cpu"), some), torch.device("cpu")) for some in rows]

    monkeypatch.setattr(parts, "_cut", in_parts)


def step_in_parts(grads: list[Tensor], retain: list[Tensor], ema: list[Tensor], **settings: Any) -> Tensor:
    rounding = {torch.device("cpu"): torch.zeros(1, dtype=torch.int64)}
    devices = [torch.device("cpu"), torch.device("cpu", 1)]
    work = Work(Rows(list(grads), list(retain), list(ema)), devices, rounding)
    return run_step(work, StepArgs(0.5, 0.5, 1.0, **settings))


@pytest.mark.parametrize("all_or_nothing", [False, True])
def test_sums_meet_over_devices(all_or_nothing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several devices share one projection."""
    cut(monkeypatch, [0, 2], [1, 3])
    grads, retain, ema = problem(4)
    expected = rectified_by_hand(grads, [0.5 * r for r in retain], 1.0)
    stats = step_in_parts(grads, retain, ema, all_or_nothing=all_or_nothing)
    found = torch.cat([g.reshape(-1) for g in grads]).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert gru_fast.Rectification(stats).norm_after == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("which", ["grads", "retain"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_one_device_keeps_all_from_writing(which: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All or nothing holds over devices too: no e is written where another device's gradient is not finite."""
    cut(monkeypatch, [0, 2], [1, 3])
    monkeypatch.setattr(native, "serves", lambda device: backend == "native")
    monkeypatch.setattr(choice, "_warned_devices", {"cpu"})
    grads, retain, ema = problem(4)
    {"grads": grads, "retain": retain}[which][1].reshape(-1)[-1] = math.inf
    before = [t.clone() for t in (*grads, *retain, *ema)]
    step = gru_fast.Rectification(step_in_parts(grads, retain, ema, all_or_nothing=True))
    assert step.skipped
    assert all(map(torch.equal, (*grads, *retain, *ema), before))


def test_warns_once_where_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "serves", lambda device: False)
    monkeypatch.setattr(choice, "_warned_devices", set())
    grads, retain, ema = problem(5)
    expected = rectified_by_hand(grads, [0.5 * r for r in retain], 1.0)
    with pytest.warns(RuntimeWarning, match="no compiled kernels for cpu"):
        torch.ops.gru_fast.rectify_(grads, retain, ema, 0.5, 1.0)
    torch.ops.gru_fast.reduce_(grads, retain, ema, 0.5)  # warnings are errors in this suite: no second one
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in grads]).double(), expected, rtol=1e-5, atol=1e-7)


def test_kernels_that_cannot_run_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built with CUDA 13, say, beside a torch with CUDA 12 on a driver that knows no more: torch's path, and why."""
    reason = "the driver knows CUDA up to 12.6, the kernels are of 13.0"
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(native, "core", SimpleNamespace(HAS_CUDA=True, CUDA_ARCHITECTURES="90"))
    monkeypatch.setattr(native, "HAS_CUDA", True)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(native, "cuda_problem", lambda: "")
    assert native.serves(cuda)
    monkeypatch.setattr(native, "cuda_problem", lambda: reason)
    monkeypatch.setattr(choice, "_warned_devices", set())
    assert not native.serves(cuda)
    with pytest.warns(RuntimeWarning, match=f"no compiled kernels for cuda .*they cannot run here: {reason}; for"):
        choice.warn_of_fallback(cuda)


def test_how_to_build_kernels_for_the_cuda_of_torch() -> None:
    """nvidia-cuda-nvcc-cu12 12.9.86, the last of its line on PyPI, has ptxas and no nvcc."""
    assert choice.mend_cuda("13.0").startswith("GRU_FAST_CUDA=pip pip install")
    assert choice.mend_cuda(None).startswith("GRU_FAST_CUDA=pip pip install")
    assert choice.mend_cuda("12.6").startswith("CUDACXX=/usr/local/cuda-12.6/bin/nvcc GRU_FAST_CUDA=on pip install")


# ---- what waits for the device ---------------------------------------------------------------------------------------


class HostTraffic(TorchFunctionMode):
    """Refuses what brings values from a tensor to the host or back: on CUDA each of these waits for the device."""

    NAMES: ClassVar = {
        *("tensor", "as_tensor", "new_tensor", "item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__"),
        *("equal", "allclose", "nonzero", "masked_select", "unique", "is_nonzero"),
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            raise AssertionError(f"{name}: on CUDA this waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Inside, whatever waits for the device raises; on the CPU, whatever would."""
    on_cuda = device.type == "cuda"
    try:
        if on_cuda:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        with HostTraffic():
            yield
    finally:
        if on_cuda:
            torch.cuda.set_sync_debug_mode("default")


def step_of(how: str, device: torch.device) -> Callable[[], object]:
    """A step with conflict and clipping, or a unit of TRU."""
    grads, retain, ema = ([t.to(device) for t in tensors] for tensors in problem())
    params = [nn.Parameter(torch.ones_like(g)) for g in grads]
    origin = [torch.zeros_like(g) for g in grads]
    averages = gru_fast.RetainEMA(params)

    def with_backward() -> object:
        with averages.stream(0.5, share=0.5) if how == "stream" else averages.collect(2.0, share=0.5):
            torch.stack([(p * r).sum() for p, r in zip(params, retain, strict=True)]).sum().backward()
        return gru_fast.rectify_(params, averages, 0.5, 1.0)

    def run() -> object:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        if how == "rectify_":
            return gru_fast.rectify_(params, ema, 0.5, 1.0, retain_grads=retain)
        if how == "measure":
            return gru_fast.measure(params, ema, 0.5, retain_grads=retain)
        if how == "task vector":
            return accumulate_task_vector_([p.detach() for p in params], origin, ema, total=retain, own=grads)
        return with_backward()

    return run


@pytest.mark.parametrize("how", ["rectify_", "measure", "collect", "stream", "task vector"])
def test_a_step_does_not_wait_for_the_device(how: str, device: torch.device) -> None:
    if not native.serves(device):
        pytest.skip(f"this build has no kernels for {device.type}")
    run = step_of(how, device)
    run()  # what is asked of the driver once
    with no_waiting(device):
        run()


def test_no_waiting_sees_what_waits(device: torch.device) -> None:
    for wait in (lambda t: t.item(), lambda t: t.new_tensor([1.0]), lambda t: bool(t > 0.0)):
        with pytest.raises(AssertionError, match="on CUDA this waits for the device"), no_waiting(device):
            wait(torch.ones((), device=device))
