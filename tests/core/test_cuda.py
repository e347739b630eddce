"""What only a CUDA device can show. The other tests run on it too, through the `device` fixture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gru_fast
from gru_fast.core.backends import native
from gru_fast.core.backends.passes import Groups, Rows, StepArgs

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and not native.serves(torch.device("cuda")),
        reason="this build has no CUDA kernels (GRU_FAST_CUDA)",
    ),
]
GAMMA, TAU = 0.5, 1.0
KINDS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
]


def problem(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, ema_dtype: torch.dtype, device: str = "cuda", seed: int = 0
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients that conflict with their EMA."""
    generator = torch.Generator().manual_seed(seed)
    retain = [torch.randn(shape, generator=generator) for shape in shapes]
    grads = [0.5 * torch.randn(shape, generator=generator) - r for shape, r in zip(shapes, retain, strict=True)]
    ema = [r + 0.1 for r in retain]
    return (
        [g.to(device, dtype) for g in grads],
        [r.to(device, dtype) for r in retain],
        [e.to(device, ema_dtype) for e in ema],
    )


def params_of(grads: list[Tensor]) -> list[Tensor]:
    params = [torch.zeros_like(g) for g in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return params


SHAPES: list[tuple[int, ...]] = [(300, 257), (0,), (7,), (), (65537,), (1000, 33)]


@pytest.mark.parametrize(("dtype", "ema_dtype"), KINDS)
def test_cuda_equals_cpu(dtype: torch.dtype, ema_dtype: torch.dtype) -> None:
    """The kernels share their arithmetic and their rounding bits with the CPU's."""
    results = []
    for device in ("cpu", "cuda"):
        grads, retain, ema = problem(SHAPES, dtype, ema_dtype, device)
        counter = torch.full((1,), 5, dtype=torch.int64, device=device)
        passes = native.NativePasses(Rows(grads, retain, ema))
        passes.step(StepArgs(1 - GAMMA, GAMMA, TAU, seed=7), counter)
        assert int(counter) == 6
        results.append(([t.cpu().double() for t in grads + ema], passes.stats.cpu()))
    (cpu, cpu_stats), (cuda, cuda_stats) = results
    torch.testing.assert_close(cuda_stats[:14], cpu_stats[:14], rtol=1e-5, atol=1e-7)
    for row, (ours, theirs) in enumerate(zip(cuda, cpu, strict=True)):
        if ours.numel():
            differing = float((ours != theirs).double().mean())
            largest = float((ours - theirs).abs().max()) / float(theirs.abs().max())
            assert differing < 0.01 or largest < 1e-6, f"tensor {row}: {differing:.2%} differ, by up to {largest:.2e}"
            assert largest < 2 * torch.finfo(dtype).eps, f"tensor {row}: off by {largest:.2e} of its largest entry"


def test_graph_capture_and_replay() -> None:
    grads, retain, ema = problem(SHAPES, torch.bfloat16, torch.bfloat16)
    start = [t.clone() for t in grads + ema]
    averages = gru_fast.RetainEMA([torch.nn.Parameter(torch.zeros_like(g)) for g in grads], dtype=torch.bfloat16)
    params = averages.params
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad

    def load() -> None:
        for tensor, value in zip(grads + averages.tensors, start, strict=True):
            tensor.copy_(value)

    load()
    gru_fast.rectify_(params, averages, GAMMA, TAU, retain_grads=retain)  # warm-up: occupancy is asked once
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step = gru_fast.rectify_(params, averages, GAMMA, TAU, retain_grads=retain)
    found = []
    for _ in range(3):
        load()
        graph.replay()
        torch.cuda.synchronize()
        found.append([t.clone() for t in grads + averages.tensors])
    assert gru_fast.Rectification(step.stats).conflict
    assert gru_fast.Rectification(step.stats).norm_after <= TAU * 1.001
    averages_differ = [not torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True)]
    assert any(averages_differ), "every replay rounds the 16-bit EMA with the same bits"
    for a, b in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=2e-2)


def test_groups_on_cuda_are_those_of_the_cpu() -> None:
    """The embedding's rows lie in many blocks, the small ones several in one."""
    shapes = [(3000, 257), (7,), (), (65537,), (1000, 33), (0,), (64, 64)]
    results = []
    for device in ("cpu", "cuda"):
        grads, retain, ema = problem(shapes, torch.float32, torch.float32, device)
        grads[1].mul_(-1.0)  # no conflict here
        grads[4].mul_(1e-24)  # whose squares float32 cannot hold
        of_row = [0, 1, 2, 3, 2, 5, 0]
        passes = native.NativePasses(Rows(grads, retain, ema, groups=of_row, num_groups=6))
        groups = Groups(of_row, 6, device)
        args = StepArgs(1 - GAMMA, GAMMA, TAU)
        passes.reduce(args, None)
        passes.reduce_groups(groups)
        passes.apply_groups(args, groups)
        passes.finish_groups(args, groups)
        results.append((groups.stats.cpu(), passes.stats.cpu(), [g.cpu() for g in grads]))
    (expected, whole, grads), (found, whole_found, grads_found) = results
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(whole_found[:14], whole[:14], rtol=1e-5, atol=1e-7, equal_nan=True)
    for ours, theirs in zip(grads_found, grads, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()) if theirs.numel() else 0
        )


def test_groups_in_a_graph() -> None:
    grads, retain, _ = problem(SHAPES, torch.float32, torch.float32)
    params = params_of(grads)
    start = [g.clone() for g in grads]

    def load() -> None:
        for grad, value in zip(grads, start, strict=True):
            grad.copy_(value)

    def step() -> gru_fast.Rectification:
        return gru_fast.rectify_(params, None, tau=TAU, rule="gru", retain_grads=retain, granularity="tensor")

    eager = step()
    expected = [g.clone() for g in grads]
    load()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        load()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    assert gru_fast.Rectification(captured.stats).norm_after == eager.norm_after
    assert {group.conflict for group in eager.groups().values()} == {True, False}  # the empty tensor has none


def test_measure_in_a_graph() -> None:
    grads, retain, ema = problem(SHAPES, torch.float32, torch.float32)
    params = params_of(grads)
    expected = gru_fast.measure(params, [e.clone() for e in ema], GAMMA, retain_grads=retain)
    assert expected.conflict
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gru_fast.measure(params, ema, GAMMA, retain_grads=retain)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found.stats[:14], expected.stats[:14])


def test_current_stream_is_used() -> None:
    grads, retain, ema = problem([(1 << 22,)], torch.float32, torch.float32)
    expected = gru_fast.reference.rectified_gradient(
        grads[0].double(), (1 - GAMMA) * ema[0].double() + GAMMA * retain[0].double(), TAU
    )
    params = params_of(grads)
    side = torch.cuda.Stream()
    ready = retain[0].clone()
    retain[0].zero_()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # the step must wait for what its stream has queued
        retain[0].copy_(ready)
        gru_fast.rectify_(params, ema, GAMMA, TAU, retain_grads=retain)
    side.synchronize()
    torch.testing.assert_close(grads[0].double(), expected, rtol=1e-4, atol=1e-9)


def test_two_thousand_tensors_take_few_launches() -> None:
    shapes: list[tuple[int, ...]] = [(17,)] * 2000
    grads, retain, ema = problem(shapes, torch.float32, torch.float32)
    flat = [torch.cat(tensors).double() for tensors in (grads, retain, ema)]
    expected = gru_fast.reference.rectified_gradient(flat[0], (1 - GAMMA) * flat[2] + GAMMA * flat[1], TAU)
    passes = native.NativePasses(Rows(grads, retain, ema))
    assert passes._table.num_launches == 3
    passes.step(StepArgs(1 - GAMMA, GAMMA, TAU, seed=0), None)
    torch.testing.assert_close(torch.cat(grads).double(), expected, rtol=1e-4, atol=1e-8)


def test_same_bits_over_a_hundred_runs() -> None:
    start = problem(SHAPES, torch.bfloat16, torch.bfloat16)
    first: list[Tensor] = []
    for _ in range(100):
        grads, retain, ema = ([t.clone() for t in tensors] for tensors in start)
        passes = native.NativePasses(Rows(grads, retain, ema))
        passes.step(StepArgs(1 - GAMMA, GAMMA, TAU, seed=3), torch.zeros(1, dtype=torch.int64, device="cuda"))
        found = [*grads, *ema, passes.stats[:14]]
        first = first or found
        assert all(map(torch.equal, found, first))


@pytest.mark.slow
def test_beyond_two_to_the_31_elements() -> None:
    numel = (1 << 31) + 12345
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free device memory")
    grad = torch.full((numel,), -1.0, dtype=torch.bfloat16, device="cuda")
    grad[-1] = 2.0
    ema, retain = torch.zeros_like(grad), torch.full_like(grad, 2.0)
    passes = native.NativePasses(Rows([grad], [retain], [ema]))
    passes.step(StepArgs(0.5, 0.5), torch.zeros(1, dtype=torch.int64, device="cuda"))
    step = gru_fast.Rectification(passes.stats)
    assert step.norm_ema**2 == pytest.approx(numel, rel=1e-6)
    assert step.dot == pytest.approx(-(numel - 1) + 2.0, rel=1e-6)
    assert bool((ema == 1.0).all())
    assert float(grad[-1]) == pytest.approx(3.0, rel=1e-2)
    assert float(grad[0].abs()) < 1e-6


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_parameters_on_two_devices() -> None:
    grads, retain, ema = problem(SHAPES, torch.float32, torch.float32)
    flat = [torch.cat([t.reshape(-1) for t in tensors]).double() for tensors in (grads, retain, ema)]
    expected = gru_fast.reference.rectified_gradient(flat[0], (1 - GAMMA) * flat[2] + GAMMA * flat[1], TAU)
    split = [[t.to(f"cuda:{row % 2}") for row, t in enumerate(tensors)] for tensors in (grads, retain, ema)]
    params = params_of(split[0])
    assert gru_fast.rectify_(params, split[2], GAMMA, TAU, retain_grads=split[1]).conflict
    found = torch.cat([param.grad.reshape(-1).to("cuda:0") for param in params if param.grad is not None])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-8)


# ---- AdamW -----------------------------------------------------------------------------------------------------------


def stepped(device: str, dtype: torch.dtype, rectify: str, metric: str, steps: int = 3) -> list[Tensor]:
    """The weights after some steps of gru_fast's AdamW, on the CPU."""
    grads, retain, _ = problem(SHAPES, dtype, torch.float32, device)
    params = [torch.nn.Parameter(torch.ones_like(g)) for g in grads]
    ema = gru_fast.RetainEMA(params, dtype)
    options = {"metric": metric} if rectify != "gradient" else {}
    optimizer = gru_fast.optim.AdamW(params, lr=1e-2, ema=ema, gamma=GAMMA, tau=TAU, rectify=rectify, **options)
    for step in range(steps):
        with ema.collect():
            for param, r in zip(params, retain, strict=True):
                param.grad = r.clone()
        for param, g in zip(params, grads, strict=True):
            param.grad = g.clone()
        if step == steps - 1 and device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return [param.detach().cpu() for param in params]


@pytest.mark.parametrize(("rectify", "metric"), [("gradient", "euclidean"), ("both", "euclidean"), ("both", "adam")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adamw_on_cuda_is_that_of_the_cpu_and_asks_the_host_for_nothing(
    dtype: torch.dtype, rectify: str, metric: str
) -> None:
    found, expected = (stepped(device, dtype, rectify, metric) for device in ("cuda", "cpu"))
    for a, b in zip(found, expected, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        else:
            assert a.numel() == 0 or float((a != b).float().mean()) < 2e-2


def test_adamw_gives_its_first_step_up() -> None:
    param = torch.nn.Parameter(torch.ones(100, device="cuda"))
    optimizer = gru_fast.optim.AdamW([param], ema=gru_fast.RetainEMA([param]), gamma=1.0)
    param.grad = torch.ones_like(param)
    optimizer.prepare()
    optimizer.give_up()
    optimizer.step()
    assert torch.equal(param, torch.ones_like(param))


def test_adamw_is_captured_in_a_graph() -> None:
    param = torch.nn.Parameter(torch.ones(1000, device="cuda"))
    other = torch.nn.Parameter(param.detach().clone())
    grad = torch.randn(1000, device="cuda")
    optimizer, eager = (gru_fast.optim.AdamW([p], lr=1e-2, capturable=True) for p in (param, other))
    for _ in range(5):
        other.grad = grad.clone()
        eager.step()
    param.grad = grad.clone()
    optimizer.step()  # makes the states
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(4):
        graph.replay()
    torch.testing.assert_close(param, other)
