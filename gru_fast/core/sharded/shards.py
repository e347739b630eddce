"""Sharded parameters (DTensor): what of them lies here, and how the few sums of a step come together over processes.

FSDP2, HSDP and tensor parallelism leave each process a shard of every parameter, its gradient and its e. The passes
work on those; only their sums cross the network. Over the processes every element counts once: a replicated one in the
first of the processes that hold it, a sharded one where it is. One all-reduce brings the sums together and gives every
process the same bits, so that all take the same decision::

    layout          counted                                                    all-reduce over
    FSDP2           every shard                                                the mesh
    HSDP            the shards of the first replica                            the mesh
    tensor parallel shards everywhere, replicated parameters in one process    the mesh
    plain tensors   in one process, beside any of these                        (with the others)

What a mesh does not name is taken to be copies. Meshes over different sets of processes (experts beside dense layers)
meet one after the other, smaller sets first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

_PLAIN = frozenset({Tensor, nn.Parameter})
_NO_SHARD = "FSDP2 (torch.distributed.fsdp.fully_shard) keeps a DTensor in each parameter, which works"


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor: spread over the processes of a mesh by its placements."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def check_params(
    params: Sequence[Tensor], rows: Sequence[int] | None = None, names: Sequence[str] | None = None
) -> None:
    """:func:`check_param` of each. ``rows``: what messages call them, where that is not their place."""
    for at, param in enumerate(params):
        if type(param) in _PLAIN and not param.__dict__:  # whoever shards it leaves a mark there
            continue
        name = "" if names is None else f' "{names[at]}"'
        check_param(param, f"params[{at if rows is None else rows[at]}]{name}")


def check_param(tensor: Tensor, label: str) -> None:
    """Refuses parameters whose elements or gradients are kept out of reach by those who sharded them."""
    if getattr(tensor, "_is_flat_param", False):
        raise TypeError(f"{label}: expected one parameter, got FSDP's FlatParameter of many; {_NO_SHARD}")
    if type(tensor) is nn.Parameter or type(tensor) is Tensor:
        if hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping"):
            raise TypeError(
                f"{label}: expected a parameter with its gradient in .grad, got one of DeepSpeed ZeRO; {_NO_SHARD}, "
                "and gru_fast.unlearn's trainers work with ZeRO"
            )
        return
    if is_sharded(tensor):
        _check_placements(tensor, label)
    elif hasattr(tensor, "to_local") or hasattr(tensor, "local_shards"):
        raise TypeError(f"{label}: expected a plain tensor or a DTensor, got {type(tensor).__name__}; {_NO_SHARD}")


def _check_placements(param: DTensor, label: str) -> None:
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"{label}: expected a DTensor that is sharded or replicated, got placements {tuple(param.placements)}; a "
            "partial one is a sum still to be taken, so that no process knows its elements: redistribute() it first"
        )
    if param.device_mesh.get_coordinate() is None:
        raise ValueError(
            f"{label}: expected a DTensor on a mesh that this process is part of, got {param.device_mesh}; call it in "
            "the processes of the mesh alone"
        )


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """The part of it that lies in this process: the memory itself. A plain tensor is its own part."""
    return part_of(tensor) if is_sharded(tensor) else tensor


def part_of(tensor: DTensor) -> Tensor:
    """The same of a DTensor, with gradients off: outside of ``torch.no_grad`` it would be a part of the graph."""
    shard: Any = tensor.to_local()  # a promise of one where a collective is under way
    return shard.wait() if type(shard) is not Tensor and hasattr(shard, "wait") else shard


def whole(tensor: Tensor) -> Tensor:
    """All of it. Of a DTensor it is put together out of all processes' parts, and all of them must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def global_like(param: DTensor, shard: Tensor) -> DTensor:
    """``shard`` as this process' part of a DTensor laid out like ``param``; shares its memory."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )


@torch.no_grad()
def placed_like(tensor: Tensor, param: DTensor, label: str) -> DTensor:
    """``tensor``, a DTensor of the shape of ``param``, with its placements: partial sums are taken, shards moved.

    Gradients come as autograd left them: a replicated parameter's may be a sum over the mesh that nobody has taken yet.
    """
    if not is_sharded(tensor):
        raise TypeError(f"{label}: expected a DTensor as its parameter, got a plain tensor of {tuple(tensor.shape)}")
    if tensor.device_mesh != param.device_mesh:
        raise ValueError(f"{label}: expected its parameter's mesh, {param.device_mesh}, got {tensor.device_mesh}")
    return tensor if tensor.placements == param.placements else tensor.redistribute(placements=param.placements)


@torch.no_grad()
def take_over(ours: Tensor, theirs: Tensor, param: Tensor) -> None:
    """Copies ``theirs``, laid out in any way, into ``ours``, this process' part of a tensor laid out like ``param``."""
    if is_sharded(param):
        from torch.distributed.tensor import distribute_tensor

        if is_sharded(theirs):
            theirs = placed_like(theirs, param, "ema")
        else:
            theirs = distribute_tensor(theirs.to(ours.device), param.device_mesh, param.placements, src_data_rank=None)
        ours.copy_(local(theirs))
    else:
        ours.copy_(theirs.full_tensor() if is_sharded(theirs) else theirs)


def rounding_key(param: Tensor, row: int, count: int) -> int:
    """Names the stream of rounding bits of a 16-bit e: another one for each shard, the same for all its copies.

    Below 2^31: where a model has more shards than that, some of different parameters share their bits.
    """
    if not is_sharded(param):
        return row
    shard, spread = 0, 1
    for dim, (at, placement) in enumerate(zip(_coordinate(param), param.placements, strict=True)):
        if not placement.is_replicate():
            shard += at * spread
            spread *= param.device_mesh.size(dim)
    return (row + count * shard) % 2**31


class Meeting:
    """The processes of a mesh, where they add up what each of them brings."""

    def __init__(self, mesh: DeviceMesh) -> None:
        import torch.distributed as dist

        self.device_type: str = mesh.device_type
        self.is_first = not any(mesh.get_coordinate() or ())
        if mesh.ndim > 1 and mesh.size() == dist.get_world_size():
            self._groups: list[Any] = [dist.group.WORLD]
        else:
            self._groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]

    def add_up(self, brought: Tensor) -> Tensor:
        """The sum over the processes, in every one of them the same bits. No host sync on CUDA."""
        import torch.distributed as dist

        device = torch.device(self.device_type)
        total = brought.to(device) if brought.device.type != device.type else brought.clone()
        for group in self._groups:
            dist.all_reduce(total, group=group)
        return total.to(brought.device)


@dataclass(frozen=True)
class Shards:
    """How the rows of a step are spread over processes.

    ``counted_in``: for each row the place in ``meetings`` where this process brings its sums; None: another one does.
    """

    counted_in: list[int | None]
    meetings: tuple[Meeting, ...]

    def select(self, rows: Sequence[int]) -> Shards:
        """The same for some of the rows."""
        return Shards([self.counted_in[row] for row in rows], self.meetings)

    @property
    def known_to_host(self) -> bool:
        """Whether sums lie in host memory in every process, so that all may look at them and decide alike."""
        return all(meeting.device_type == "cpu" for meeting in self.meetings)

    def add_up(self, brought: Mapping[int, Tensor], everywhere: Tensor) -> Tensor:
        """The sums over all processes: ``brought`` counts once, by meeting; ``everywhere`` maybe several times.

        The second is for counts of what must not be, which all must hear of. Every process must call it.
        """
        total = torch.zeros_like(everywhere)
        for place, meeting in enumerate(self.meetings):
            mine = everywhere.clone()
            if place in brought:
                mine += brought[place]
            if meeting.is_first:
                mine += total
            total = meeting.add_up(mine)
        return total

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process. Every process must call it."""
        return bool(self.add_up({}, torch.tensor([float(flag)], dtype=torch.float64)))


def shards_of(params: Sequence[Tensor]) -> Shards | None:
    """How parameters are spread over processes; None: every one is a plain tensor, and nothing has to be exchanged."""
    meshes: dict[tuple[int, ...], DeviceMesh] = {}
    processes_of: dict[int, tuple[int, ...]] = {}  # by mesh, of which there are few
    for param in params:
        if is_sharded(param) and id(param.device_mesh) not in processes_of:
            processes = tuple(sorted(param.device_mesh.mesh.flatten().tolist()))
            processes_of[id(param.device_mesh)] = processes
            meshes.setdefault(processes, param.device_mesh)
    if not meshes:
        return None
    # All processes attend the meetings in the same order, or they would wait for each other for ever.
    order = sorted(meshes, key=lambda processes: (len(processes), processes))
    meetings = tuple(Meeting(meshes[processes]) for processes in order)
    last = len(meetings) - 1
    counted_in: list[int | None] = []
    for param in params:
        if is_sharded(param):
            place = order.index(processes_of[id(param.device_mesh)])
            counted_in.append(place if _is_first_copy(param) else None)
        else:
            counted_in.append(last if meetings[last].is_first else None)
    return Shards(counted_in, meetings)


def _is_first_copy(param: DTensor) -> bool:
    """Whether, of the processes that hold this very shard, this is the first."""
    places = zip(_coordinate(param), param.placements, strict=True)
    return not any(at for at, placement in places if placement.is_replicate())


def _coordinate(param: DTensor) -> Sequence[int]:
    """Where this process is in the mesh."""
    return param.device_mesh.get_coordinate() or ()
