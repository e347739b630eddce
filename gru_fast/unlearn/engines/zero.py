"""DeepSpeed ZeRO 1, 2 and 3 under a Trainer: each process's part of the gradient, as if it were in ``.grad``.

ZeRO leaves no gradients in ``.grad``: it averages them over the processes while they come, and keeps in each process
what its part of the optimizer needs, until the step. accelerate has it step within the last backward pass. Here it is
driven by hand: after every backward pass the parts are taken out of its buffers, so that two losses never meet there,
and what the step is to be made of is put back before it. Nothing whole is ever put together.

What a part is:

    ZeRO-3      of every parameter, flattened, the n-th of as many equal pieces as there are processes
    ZeRO-1, 2   of all parameters of an optimizer's group, flattened and one after the other, the n-th piece

So :meth:`ZeRO.named_parameters` are stand-ins: flat DTensors with gradients, but no values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from gru_fast.core.sharded.shards import global_like, local
from gru_fast.models.partitioned import piece_of
from gru_fast.unlearn.engines.plain import Engine


class _Part(Protocol):
    """A part of the gradient in DeepSpeed's memory."""

    name: str
    numel: int  # of all processes together
    numel_here: int

    def read(self) -> Tensor:
        """What the last backward pass has given, float32, (numel_here,): maybe the memory itself."""

    def clear(self) -> None:
        """No gradient: another backward pass adds to nothing."""

    def write(self, grad: Tensor) -> None:
        """What the optimizer's step is to be made of, (numel_here,)."""


class _PartOfParameter:
    """ZeRO-3: of one parameter."""

    def __init__(self, name: str, param: Any) -> None:
        self.name = name
        self._param = param
        self.numel: int = self._param.ds_numel
        self._padded: int = self._param.partition_numel()
        self.numel_here = piece_of(param).numel()

    def read(self) -> Tensor:
        from deepspeed.utils import safe_get_local_grad

        found: Tensor = safe_get_local_grad(self._param)
        return found[: self.numel_here]

    def clear(self) -> None:
        self.write(torch.zeros(self.numel_here, device=self._param.device))

    def write(self, grad: Tensor) -> None:
        from deepspeed.utils import safe_set_local_grad

        if grad.data_ptr() == self.read().data_ptr():  # it was never taken out
            return
        if self.numel_here < self._padded:
            grad = torch.cat([grad, grad.new_zeros(self._padded - self.numel_here)])
        safe_set_local_grad(self._param, grad)


class _PartOfGroup:
    """ZeRO-1 and 2: of the parameters of one of the optimizer's groups, one after the other; its end may be padding."""

    def __init__(self, index: int, optimizer: Any) -> None:
        self.name = f"parameters of group {index}"
        self._index = index
        self._optimizer = optimizer
        self._offloaded = bool(optimizer.cpu_offload)
        self.numel_here = optimizer.single_partition_of_fp32_groups[index].numel()
        self.numel = self.numel_here * torch.distributed.get_world_size(optimizer.real_dp_process_group[index])
        self._device = optimizer.bit16_groups_flat[index].device

    def read(self) -> Tensor:
        if self._offloaded:
            from deepspeed.accelerator import get_accelerator

            get_accelerator().synchronize()  # it copies to the host without waiting
            return self._offloaded_grad.to(self._device, torch.float32)
        pieces = self._optimizer.averaged_gradients[self._index]
        return torch.cat([piece.detach().reshape(-1).float() for piece in pieces])

    def clear(self) -> None:
        if self._offloaded:
            self._offloaded_grad.zero_()
        else:
            self._optimizer.averaged_gradients[self._index] = None

    def write(self, grad: Tensor) -> None:
        if self._offloaded:
            self._offloaded_grad.copy_(grad)
        else:
            dtype = self._optimizer.gradient_accumulation_dtype
            self._optimizer.averaged_gradients[self._index] = [grad.to(dtype)]

    @property
    def _offloaded_grad(self) -> Tensor:
        found: Tensor = self._optimizer.single_partition_of_fp32_groups[self._index].grad.view(-1)
        return found


class ZeRO(Engine):
    """DeepSpeed's engine, driven by hand.

    Where nobody has asked for :meth:`named_parameters`, the losses of a step add up in its own memory, as ever.
    """

    def __init__(self, accelerator: Any, model: nn.Module) -> None:
        super().__init__(accelerator, model)
        self._deepspeed = cast("Any", model)
        self._stage = int(self._deepspeed.zero_optimization_stage())
        self._tensors: list[DTensor] | None = None  # the stand-ins, once they have been asked for

    # ---- the parts ---------------------------------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> list[_Part]:
        optimizer = self._deepspeed.optimizer
        if self._stage == 3:
            module: nn.Module = self._deepspeed.module
            named = module.named_parameters()
            return [_PartOfParameter(name, param) for name, param in named if param.requires_grad]
        return [_PartOfGroup(index, optimizer) for index in range(len(optimizer.bit16_groups))]

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Stand-ins for the trainable ones, whose ``.grad`` is this process's part of the gradient, in float32."""
        if self._tensors is None:
            device = self._deepspeed.device
            mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
            self._tensors = [_stand_in(part, mesh, device) for part in self._parts]
        return [(part.name, tensor) for part, tensor in zip(self._parts, self._tensors, strict=True)]

    # ---- backward passes ---------------------------------------------------------------------------------------------

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Inside, accelerate's backward does not step."""
        theirs = self.accelerator.deepspeed_engine_wrapped
        self.accelerator.deepspeed_engine_wrapped = _Driver(self)
        try:
            yield
        finally:
            self.accelerator.deepspeed_engine_wrapped = theirs

    def backward(self, loss: Tensor, over: int) -> None:
        """Runs ``loss / over`` backward: one of several losses of a micro-batch, not the last."""
        self.run_backward(loss / over, is_last=False)

    def run_backward(self, loss: Tensor, is_last: bool, **kwargs: Any) -> None:
        """Its own backward; ``is_last``: of the micro-batch."""
        kwargs.setdefault("scale_wrt_gas", False)
        if self._tensors is None:
            self._deepspeed.set_gradient_accumulation_boundary(is_last and self.accelerator.sync_gradients)
            self._deepspeed.backward(loss, **kwargs)
            return
        self._expect_no_gradient()
        self._deepspeed.set_gradient_accumulation_boundary(True)  # or they would not be averaged, or not be here, yet
        self._deepspeed.backward(loss, **kwargs)
        ends_step = is_last and self.accelerator.sync_gradients
        for part, tensor in zip(self._parts, self._tensors, strict=True):
            if ends_step and tensor.grad is None:  # g as a whole, which goes back where it is
                tensor.grad = global_like(tensor, part.read())
                continue
            _add_to(tensor, part.read())
            part.clear()

    def _expect_no_gradient(self) -> None:
        """The next backward pass is to write, not to add."""
        if self._stage == 3:
            self._deepspeed.optimizer.zero_grad()
        else:
            self._deepspeed.optimizer.micro_step_id = -1  # as after a step

    def until_the_last(self) -> AbstractContextManager[Any]:
        """No putting off: what is not exchanged is whole in every process."""
        return nullcontext()

    # ---- the end of a step -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> None:
        """Puts the gradients back and has the optimizer step."""
        if self._tensors is None:
            self._deepspeed.step()
            return
        for part, tensor in zip(self._parts, self._tensors, strict=True):
            if tensor.grad is not None:
                part.write(local(tensor.grad))
            tensor.grad = None
        self._deepspeed.step()
        self._clear()

    def skip(self) -> None:
        """A scheduler of its own goes on, as Trainer's does."""
        self.give_up()
        if self._deepspeed.lr_scheduler is not None:
            self._deepspeed.lr_scheduler.step()

    def give_up(self) -> None:
        """What has been taken out is dropped, and what has not."""
        for tensor in self._tensors or ():
            tensor.grad = None
        self._expect_no_gradient()
        if self._tensors is not None:
            self._clear()

    def _clear(self) -> None:
        """A parameter that the next backward pass does not reach has no gradient."""
        for part in self._parts:
            part.clear()


class _Driver:
    """What accelerate calls in place of its own wrapper around the engine, which would step."""

    def __init__(self, zero: ZeRO) -> None:
        self._zero = zero
        self.engine = zero.model

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        self._zero.run_backward(loss, is_last=True, **kwargs)


def _stand_in(part: _Part, mesh: DeviceMesh, device: torch.device) -> DTensor:
    """A leaf laid out as the part is, of one element's memory."""
    here = torch.zeros(1, device=device).expand(part.numel_here)
    found = DTensor.from_local(here, mesh, [Shard(0)], run_check=False, shape=torch.Size([part.numel]), stride=(1,))
    return cast("DTensor", found.detach().requires_grad_())


@torch.no_grad()
def _add_to(tensor: Any, grad: Tensor) -> None:
    """As autograd would, with whatever is hooked to that."""
    if tensor.grad is None:
        tensor.grad = global_like(tensor, grad.clone())
    else:
        local(tensor.grad).add_(grad)
    for hook in (tensor._post_accumulate_grad_hooks or {}).values():  # noqa: SLF001 - as FSDP2 calls them
        hook(tensor)
