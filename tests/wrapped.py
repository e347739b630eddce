"""A small model under DistributedDataParallel, FSDP2 and HSDP, and loops that unlearn with it; for test_wrapped.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from layouts import whole
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

import gru_fast

GAMMA, TAU, ROWS = 0.3, 0.5, 12


def network() -> nn.Module:
    """Its layers divide unevenly; the last bias is empty in all processes but one."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5, bias=False), nn.Tanh(), nn.Linear(5, 1))


def wrapped(how: str | None) -> nn.Module:
    model = network()
    if how is None:
        return model
    if how.startswith("ddp"):
        return DistributedDataParallel(model, gradient_as_bucket_view="view" in how, static_graph="static" in how)
    world = dist.get_world_size()
    shape = (2, world // 2) if how == "hsdp" else (world,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards")[-len(shape) :])
    more: dict[str, Any] = {"mesh": mesh}
    if how == "fsdp with plain":  # the first layer stays whole in every process; its gradients are averaged by hand
        more["ignored_params"] = set(model[0].parameters())
    if how == "fsdp offloaded":
        more["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    for layer in (model[2], model[4]):
        fully_shard(layer, **more)
    return fully_shard(model, **more)


def batches(steps: int, micro: int) -> list[list[tuple[Tensor, Tensor]]]:
    """By step and micro-batch: rows to forget and to keep, of all processes."""
    generator = torch.Generator().manual_seed(3)
    made = [[torch.randn(2, ROWS, 6, generator=generator) for _ in range(micro)] for _ in range(steps)]
    return [[(b[0], b[0] * 0.5 + b[1]) for b in step] for step in made]


def mine(rows: Tensor) -> Tensor:
    """The rows of this process."""
    if not dist.is_initialized():
        return rows
    return rows.chunk(dist.get_world_size())[dist.get_rank()]


def loss(model: nn.Module, rows: Tensor) -> Tensor:
    return (model(rows) - rows.sum(1, keepdim=True)).square().mean()


@contextmanager
def synced(model: nn.Module, sync: bool) -> Iterator[None]:
    """Whether backward exchanges gradients; FSDP2 always does, as the trainer has it."""
    context = model.no_sync() if isinstance(model, DistributedDataParallel) and not sync else nullcontext()
    with context:
        yield


def average_plain(model: nn.Module) -> None:
    """What FSDP2 leaves to the user: gradients of parameters that it ignores."""
    for param in model.parameters():
        if isinstance(model, FSDPModule) and type(param) is nn.Parameter and param.grad is not None:
            dist.all_reduce(param.grad)
            param.grad /= dist.get_world_size()


def unlearned(
    how: str | None, collector: str = "collect", *, micro: int = 1, share: float = 0.0, forget_first: bool = False
) -> tuple[list[list[float]], list[Tensor], list[Tensor]]:
    """Four steps of gradient ascent with GRU: statistics, weights and e."""
    model = wrapped(how)
    ema = gru_fast.RetainEMA(model.parameters(), seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    stats = []
    for step in batches(4, micro):
        for i, (forget, keep) in enumerate(step):
            with synced(model, sync=i == micro - 1):

                def unlearn(rows: Tensor = forget) -> None:
                    (-loss(model, mine(rows)) / micro).backward()

                if forget_first:
                    unlearn()
                with ema.stream(GAMMA, share=share) if collector == "stream" else ema.collect(share=share):
                    (loss(model, mine(keep)) / micro).backward()
                    if i == micro - 1:
                        average_plain(model)
                if not forget_first:
                    unlearn()
        average_plain(model)
        stats.append(gru_fast.rectify_(model.parameters(), ema, GAMMA, TAU).stats[:14].tolist())
        optimizer.step()
        optimizer.zero_grad()
    shapes = list(network().parameters())
    weights = [whole(p.detach(), q) for p, q in zip(model.parameters(), shapes, strict=True)]
    return stats, weights, [whole(e, q) for e, q in zip(ema.tensors, shapes, strict=True)]


def said_by(action: Callable[[], Any]) -> str:
    try:
        action()
    except RuntimeError as error:
        return str(error)
    return ""


def streamed_under_ddp() -> str:
    return said_by(lambda: unlearned("ddp", "stream"))


def without_sync(collector: str) -> str:
    """FSDP2 that keeps gradients inside the module."""
    model = wrapped("fsdp")
    ema = gru_fast.RetainEMA(model.parameters())
    model.set_requires_gradient_sync(False)

    def keep() -> None:
        with ema.stream(GAMMA) if collector == "stream" else ema.collect():
            loss(model, mine(batches(1, 1)[0][0][1])).backward()

    return said_by(keep)


def kept_gradients_are_their_own() -> bool:
    """Under DDP with bucket views: no memory is shared between the kept retain gradients, g and DDP's buckets."""
    model = wrapped("ddp view")
    ema = gru_fast.RetainEMA(model.parameters())
    forget, keep = batches(1, 1)[0][0]
    for _ in range(2):  # after the first pass DDP makes its buckets anew
        model.zero_grad()
        (-loss(model, mine(forget))).backward()
    buckets = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    before = [p.grad.clone() for p in model.parameters()]
    with ema.collect():
        loss(model, mine(keep)).backward()
        assert {p.grad.untyped_storage().data_ptr() for p in model.parameters()} == buckets, "a bucket view no more?"
    retain = {r.untyped_storage().data_ptr() for r in ema.pending.retain}
    same = all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))
    return same and not retain & buckets


def scores_of_a_llama(how: str) -> list[float]:
    """How far label scores in blocks of the vocabulary are from those of whole logits, and the gradients likewise.

    ``how``: of the model that gives the first, "ddp" or "fsdp", its head in a group of its own ("fsdp head") or not.
    """
    import tiny

    from gru_fast.data.sequences import SequenceCollator
    from gru_fast.models import head
    from gru_fast.models.forward import logits_of
    from gru_fast.models.scores import label_scores

    part = dict(SequenceCollator(0)(tiny.rows(3, seed=0)))
    plain = tiny.llama().double()
    expected = label_scores(logits_of(plain, part), part["labels"])
    (-expected.mean_nll).backward()
    model = tiny.llama().double()
    if how == "ddp":
        model = DistributedDataParallel(model)
    else:
        for layer in [*model.model.layers, *([model.lm_head] if how == "fsdp head" else [])]:
            fully_shard(layer)
        fully_shard(model)
    usual, head.SMALL_LOGITS = head.SMALL_LOGITS, 0
    try:
        found = head.label_scores_of(model, part)
    finally:
        head.SMALL_LOGITS = usual
    (-found.mean_nll).backward()
    assert head._found[head._unwrapped(model)] is not None
    apart = [found.log_probs - expected.log_probs]
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        apart.append(whole(ours.grad, theirs) - theirs.grad)
    return [float(difference.detach().abs().max()) for difference in apart]
