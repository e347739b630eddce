"""Trainers and commands in one or several processes, as torchrun or accelerate launch would start them."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

import tiny
import torch
import torch.distributed as dist
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils.fsdp_utils import get_fsdp2_grad_scaler
from layouts import whole
from torch import Tensor
from transformers import TrainerCallback

from gru_fast.cli import main
from gru_fast.core.sharded.shards import is_sharded, local
from gru_fast.data.pairs import UnlearnDataset
from gru_fast.models.load import ModelOptions, load_model
from gru_fast.models.partitioned import piece_of, put_together, shape_of
from gru_fast.unlearn import UnlearnTrainer
from gru_fast.unlearn.engines.ddp import MeanOverProcesses
from gru_fast.unlearn.engines.fsdp import sharded_modules

ROWS_A_STEP = 4  # of all processes and micro-batches together
STATISTICS = (
    "loss", "retain_loss", "forget_loss", "cos", "cos_retain", "norm_before", "norm_after", "norm_ema", "conflict",
)  # fmt: skip


FSDP2 = {  # what accelerate launch tells of its configuration file
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "true",
}


@contextmanager
def launched(
    fsdp2: bool = False, state_dict: str = "FULL_STATE_DICT", zero: dict[str, Any] | None = None
) -> Iterator[int]:
    """What the launcher tells a process, taken from the process group it is in; how many there are.

    ``zero``: the configuration of DeepSpeed, without what is the Trainer's to fill in.
    """
    if not dist.is_initialized():
        yield 1
        return
    from accelerate.state import AcceleratorState

    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "OMP_NUM_THREADS": "1"}
    configured = FSDP2 | {"FSDP_STATE_DICT_TYPE": state_dict} if fsdp2 else {}
    on_cpus = fsdp_on_cpus() if fsdp2 else nullcontext() if zero is None else deepspeed(zero)
    with patch.dict(os.environ, told | configured), on_cpus:
        try:
            yield int(world)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def fsdp_on_cpus() -> Iterator[None]:
    """Has accelerate do with CPUs what it does with every other device: take its FSDP plugin up. It leaves CPUs out."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    made = AcceleratorState.__init__

    def make(state: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        made(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if state.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(state.mixed_precision)
            state.fsdp_plugin = fsdp_plugin
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    with patch.object(AcceleratorState, "__init__", make):
        yield


AUTO = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")


@contextmanager
def deepspeed(config: dict[str, Any]) -> Iterator[None]:
    """What accelerate launch tells of DeepSpeed, as of a file with ``config`` in it.

    It is kept from compiling an extension of its own for CPUs, where gloo does as well.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".json"))
        json.dump({**AUTO, **config}, file)
        file.flush()
        told = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": file.name}
        stack.enter_context(patch.dict(os.environ, told | {"DS_ACCELERATOR": "cpu"}))
        comm = importlib.import_module("deepspeed.comm.torch")
        stack.enter_context(patch.object(comm, "build_shm_op", lambda: None))
        try:
            yield
        finally:
            unset_hf_deepspeed_config()
            # It keeps the process groups of one job for all that come after.
            importlib.import_module("deepspeed.comm.comm").cdb = None
            importlib.reload(importlib.import_module("deepspeed.utils.groups"))


def dataset(sets: Sequence[str] = (), answers: bool = False) -> UnlearnDataset:
    """Rows to keep that share most of their tokens with those to forget, so that the gradients are in conflict.

    ``sets``: names of further ones. ``answers``: of "I don't know", to those to forget.
    """
    forget, other = tiny.rows(12, seed=1), tiny.rows(12, seed=2)
    keep = [[*row["input_ids"][:-2], *others["input_ids"][:2]] for row, others in zip(forget, other, strict=True)]
    retain = [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in keep]
    idk = tiny.rows(12, seed=3)
    given = (lambda index, epoch: idk[(index + epoch) % 12]) if answers else None
    return UnlearnDataset(forget, retain, given, sets={name: tiny.rows(5, 7 + at) for at, name in enumerate(sets)})


def weights(model: Any) -> list[Tensor]:
    """The parameters as one process would have them."""
    with put_together(model.parameters()):  # of ZeRO-3
        return [whole(p.detach(), p) for p in model.parameters() if p.is_floating_point()]


Trained = tuple[list[dict[str, float]], list[Tensor], list[Tensor]]  # logs, weights, e
OF_MODEL = ("lora", "four_bit", "dtype")


def model(lora: bool = False, four_bit: str = "", dtype: str = "float32") -> Any:
    """A tiny Llama, or new adapters on it, or on the model of a folder in 4 bits."""
    if four_bit:
        torch.manual_seed(5)
        return load_model(ModelOptions(four_bit, load_in_4bit=True, use_peft=True, lora_dropout=0.0), train=True)
    if not lora:
        return tiny.llama(dtype=getattr(torch, dtype))
    from peft import LoraConfig, get_peft_model

    base = tiny.llama()
    torch.manual_seed(5)
    return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


@contextmanager
def sharded_at_load(folder: Path, sizes: dict[str, int]) -> Iterator[Any]:
    """The tiny Llama, sharded by transformers over mesh dimensions of these sizes while it is loaded."""
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    tiny.llama().save_pretrained(folder / "model")  # by the first process
    dist.barrier()
    with patch.object(ParallelismConfig, "_validate_accelerator"):  # it knows no CPUs
        yield LlamaForCausalLM.from_pretrained(
            folder / "model", distributed_config=DistributedConfig(**sizes), dtype=torch.float32
        )


def trained(
    folder: Path,
    fsdp2: bool = False,
    lora: bool = False,
    four_bit: str = "",
    dtype: str = "float32",
    mesh: dict[str, int] | None = None,
    at_load: dict[str, int] | None = None,
    zero: dict[str, Any] | None = None,
    scale: float = 0.0,
    **settings: Any,
) -> Trained:
    """Three steps over the same rows, however many processes share them: logs, weights and e.

    A micro-batch of a process is one row, so that means over label tokens are of the same rows everywhere. ``mesh``: of
    accelerate's ParallelismConfig, ``at_load``: of transformers' DistributedConfig; neither counts in one process.
    ``scale``: of a loss scaler as accelerate makes it for fp16, which CPUs do not compute in.
    """
    with launched(fsdp2, zero=zero) as world, ExitStack() as stack:
        takers = world // (at_load or {}).get("tp_size", 1) if world > 1 else 1
        defaults: dict[str, Any] = {
            "optim": "sgd",
            "learning_rate": 0.05,
            "per_device_train_batch_size": 1,
            "rectify": True,
        }
        watched = settings.keys().isdisjoint({"stream", "rectify", "rectifier", "rectify_against"})
        defaults |= {"gradient_accumulation_steps": ROWS_A_STEP // takers, "monitor_retain": watched}
        settings = {**defaults, **settings}
        if mesh and world > 1:
            settings["parallelism_config"] = ParallelismConfig(**mesh)
        if "warm_up_retain" in settings:  # batches of each process
            settings["warm_up_retain"] //= takers
        is_loaded = at_load is not None and world > 1
        untrained = stack.enter_context(sharded_at_load(folder, at_load)) if is_loaded else model(lora, four_bit, dtype)
        data = dataset(settings.get("retain_sets", ()), settings.get("method") in {"idk", "dpo", "dpo_kl"})
        trainer = tiny.trainer(folder, untrained, data, **settings)
        if scale:
            trainer.accelerator.scaler = get_fsdp2_grad_scaler(device="cpu", init_scale=scale)
        trainer.train()
        unlearned = trainer.accelerator.unwrap_model(trainer.model)
        if at_load is None:
            assert all(is_sharded(param) == (fsdp2 and world > 1) for param in unlearned.parameters())
        if (mesh or at_load) and world > 1:
            sizes = (mesh or at_load).values()
            assert max(p.device_mesh.ndim for p in unlearned.parameters() if is_sharded(p)) == len(sizes)
        has_names = zero is None or zero["zero_optimization"]["stage"] == 3  # of parameters
        wanted = (*STATISTICS, "lora_a_share") if has_names else STATISTICS
        logs = [
            {name: entry[name] for name in wanted if name in entry}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        return logs, weights(unlearned), average(trainer)


def means() -> bool:
    """Buckets of two, the last of one; by hand."""
    rank = dist.get_rank()
    params = [torch.zeros(2), torch.zeros(()), torch.zeros(3), torch.zeros(1, dtype=torch.float64), torch.zeros(1)]
    grads = [torch.full_like(param, 1.0 + row + 10 * rank) for row, param in enumerate(params)]
    mean = MeanOverProcesses(params, bucket_bytes=8)
    order = [2, 4, 0, 3, 1] if rank else [3, 0, 4, 1]  # in process 0 row 2 has none
    found = [pair for row in order for pair in mean.put(row, grads[row])]
    assert not any(row in {0, 1, 2} for row, _ in found) or rank
    found += mean.rest()
    wanted = {0: 6.0, 1: 7.0, 2: 13.0 / 2, 3: 9.0, 4: 10.0}
    assert [row for row, _ in found] == [4, 3, 2, 1, 0]
    for row, value in found:
        assert value.shape == params[row].shape
        assert value.dtype == params[row].dtype
        assert bool((value == wanted[row]).all()), (row, value)
    assert float(grads[0][0]) == 1.0 + 10 * rank  # as it was
    try:
        mean.put(0, grads[0])
    except RuntimeError as error:
        return "came twice in one exchange" in str(error)
    return False


def overflown(folder: Path, **settings: Any) -> list[Any]:
    """With FSDP2 and a loss scaler, Inf in a shard of the second process alone, in the first of three steps.

    The scale after each step, the counts of steps, and whether the weights were the first step's as before and the
    last step's others.
    """
    scales: list[float] = []

    class Overflown(UnlearnTrainer):
        def _end_step(self) -> bool:
            if not scales and dist.get_rank() == 1:
                local(self.model.model.layers[1].mlp.up_proj.weight.grad).view(-1)[3] = float("inf")
            return super()._end_step()

    class Watched(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            scales.append(trainer.accelerator.scaler.get_scale())
            moved.append(any(not torch.equal(a, b) for a, b in zip(weights(trainer.model), before, strict=True)))

    with launched(fsdp2=True):
        moved: list[bool] = []
        before = weights(tiny.llama())
        config = tiny.config(folder, method="ga", optim="sgd", learning_rate=0.05, max_steps=3, **settings)
        trainer = Overflown(tiny.llama(), config, train_dataset=dataset(), callbacks=[Watched()])
        trainer.accelerator.scaler = get_fsdp2_grad_scaler(device="cpu", init_scale=1024.0)
        trainer.train()
        return [scales, trainer.gru_counts.skipped, moved]


def average(trainer: Any) -> list[Tensor]:
    """e as one process would have it."""
    tensors = [whole(e, e) for e in trainer.retain_ema.tensors]
    groups = getattr(getattr(trainer.model_wrapped, "optimizer", None), "bit16_groups", None)
    if not tensors:
        return []
    if groups is None:  # else of ZeRO-1 or 2, which has one parameter after the other
        shapes = [shape_of(param) for param in trainer.model.parameters() if param.requires_grad]
        sets = len(tensors) // len(shapes)
        return [e.view(shape) for e, shape in zip(tensors, shapes * sets, strict=True)]
    flat = {
        (id(param), at // len(groups)): piece.view_as(param)
        for at, e in enumerate(tensors)
        for param, piece in _split(groups[at % len(groups)], e)
    }
    params, sets = [p for p in trainer.model.parameters() if p.requires_grad], len(tensors) // len(groups)
    return [flat[id(param), at] for at in range(sets) for param in params]


def _split(group: list[Tensor], flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    padding = flat.numel() - sum(param.numel() for param in group)
    return zip(group, flat.split([*(param.numel() for param in group), padding]), strict=False)


def resumed(
    folder: Path,
    state_dict: str = "",
    mesh: dict[str, int] | None = None,
    zero: dict[str, Any] | None = None,
    **settings: Any,
) -> list[bool]:
    """Whether a run taken up after two of its three steps ends with the very bits of an unbroken one.

    With FSDP2, or with ``zero``.
    """
    settings = {"optim": "adamw_torch", "rectify": True, "save_strategy": "steps", **settings}
    if mesh is not None:
        settings["parallelism_config"] = ParallelismConfig(**mesh)
    ends = []
    for save_steps in (10, 2):
        with launched(fsdp2=zero is None, state_dict=state_dict, zero=zero):
            trainer = tiny.trainer(folder, data=dataset(), save_steps=save_steps, **settings)
            trainer.train()
            ends.append(state(trainer))
    with launched(fsdp2=zero is None, state_dict=state_dict, zero=zero):
        fresh = tiny.llama() if trainer.method.reference_model else tiny.llama(seed=9)  # the first one is asked for
        trainer = tiny.trainer(folder, fresh, data=dataset(), **settings)
        trainer.train(resume_from_checkpoint=folder / "checkpoint-2")
        ends.append(state(trainer))
    return [all(torch.equal(a, b) for a, b in zip(end, ends[0], strict=True)) for end in ends[1:]]


def run_to_the_end(
    folder: Path, fsdp2: bool, resume: bool = False, zero: dict[str, Any] | None = None, **settings: Any
) -> list[Tensor]:
    """Six steps with checkpoints after 2, 4 and 6, or what is left of them; weights and e as one process has them."""
    with launched(fsdp2, zero=zero) as world:
        trainer = _saving(folder, world, **settings)
        trainer.train(resume_from_checkpoint=resume or None)
        assert trainer.state.global_step == 6
        return [*weights(trainer.model), *(whole(e, e) for e in trainer.retain_ema.tensors)]


def resume_apart(folder: Path, **settings: Any) -> str:
    """What a trainer says if the second process does not see the run's folder."""
    with launched() as world:
        mine = folder if dist.get_rank() == 0 else folder / "elsewhere"
        trainer = _saving(mine, world, **settings)
        try:
            trainer.train(resume_from_checkpoint=True)
        except ValueError as error:
            return str(error)
        return ""


def killed(
    folder: Path, fsdp2: bool, rank: int, moment: str, zero: dict[str, Any] | None = None, **settings: Any
) -> None:
    """The same, in which process ``rank`` is killed at a certain moment; see :class:`_Killed`."""
    with launched(fsdp2, zero=zero) as world:
        trainer = _saving(folder, world, **settings)
        with Killer(trainer, moment) if dist.get_rank() == rank else nullcontext():
            trainer.train()


def _saving(folder: Path, world: int, **settings: Any) -> Any:
    defaults = {"method": "npo_gd", "rectify": True, "learning_rate": 0.05, "per_device_train_batch_size": 1}
    saving = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    accumulated = {"gradient_accumulation_steps": ROWS_A_STEP // world}
    return tiny.trainer(folder, data=dataset(), **{**defaults, **saving, **accumulated, **settings})


class Killer(TrainerCallback):
    """Kills this process: between two micro-batches of step 4, or while step 4 is saved.

    ``moment``: "step"; or what is about to be written into ``checkpoint-4``: "shards of e", "random numbers", "trainer
    state"; or "rotation", when older checkpoints are about to be deleted.
    """

    def __init__(self, trainer: UnlearnTrainer, moment: str) -> None:
        self._trainer = trainer
        self._moment = moment
        self._patch: Any = nullcontext()

    def __enter__(self) -> None:
        if self._moment == "step":
            self._trainer.add_callback(self)
            return
        import transformers.trainer
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        owner, name = {
            "shards of e": (FileSystemWriter, "write_data"),
            "random numbers": (transformers.trainer.Trainer, "_save_rng_state"),
            "trainer state": (transformers.trainer.TrainerState, "save_to_json"),
            "rotation": (transformers.trainer, "rotate_checkpoints"),
        }[self._moment]
        original = getattr(owner, name)

        def kill(*args: Any, **kwargs: Any) -> Any:
            if self._trainer.state.global_step == 4:
                self._die()
            return original(*args, **kwargs)

        self._patch = patch.object(owner, name, kill)
        self._patch.__enter__()

    def __exit__(self, *error: object) -> None:
        self._patch.__exit__(None, None, None)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            self._die()

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def saved(folder: Path, zero: dict[str, Any] | None = None) -> list[Tensor]:
    """With FSDP2, or with ``zero``: a model trained and saved, its weights as trained."""
    with launched(fsdp2=zero is None, zero=zero):
        trainer = tiny.trainer(folder, data=dataset(), method="ga", rectify=True)
        trainer.train()
        trainer.save_model()
        return weights(trainer.model)


def command(argv: list[str], fsdp2: bool = False, zero: dict[str, Any] | None = None) -> int:
    """`gru-fast` with ``argv``."""
    with launched(fsdp2, zero=zero):
        return main(argv)


def spoken(argv: list[str]) -> tuple[int, str, str]:
    """`gru-fast` with ``argv``: its exit status, and what this process says on stdout and on stderr."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, notices_on(err):
        status = command(argv)
    return status, out.getvalue(), err.getvalue()


@contextmanager
def notices_on(stream: TextIO) -> Iterator[None]:
    """What transformers logs is also written here: its own handler keeps the stderr that was there at its import."""
    handler, logger = logging.StreamHandler(stream), logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def sharded_refused() -> str:
    """What an evaluation says of a model that is sharded over the processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from gru_fast.evaluation.subject import check_whole

    check_whole(tiny.llama())  # as it is, it may be evaluated
    sharded = fully_shard(tiny.llama(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    try:
        check_whole(sharded)
    except ValueError as error:
        return str(error)
    return ""


def state(trainer: UnlearnTrainer) -> list[Tensor]:
    """This process' shards of the weights and of e."""
    return [piece_of(t).clone() for t in (*trainer.model.parameters(), *trainer.retain_ema.tensors)]


def refused(
    folder: Path,
    fsdp2: bool,
    action: str = "train",
    precision: str = "",
    zero: dict[str, Any] | None = None,
    at_load: dict[str, int] | None = None,
    **settings: Any,
) -> str:
    """What a trainer says that cannot do it. ``precision``: as accelerate would have taken it on a GPU."""
    with launched(fsdp2, zero=zero), ExitStack() as stack:
        of_model = {name: settings.pop(name) for name in OF_MODEL if name in settings}
        untrained = stack.enter_context(sharded_at_load(folder, at_load)) if at_load else model(**of_model)
        try:
            config = tiny.config(folder, **{"rectify": True, **settings})
            config.mixed_precision = precision or config.mixed_precision
            data = {"train_dataset": dataset(), "eval_dataset": dataset()}
            getattr(UnlearnTrainer(untrained, config, **data), action)()
        except (ValueError, RuntimeError) as error:
            return str(error)
        return ""


def exchanged(folder: Path) -> tuple[list[bool], list[bool]]:
    """With FSDP2, at each loss of a step of two micro-batches: whether accelerate would exchange g; what is done."""
    asked: list[bool] = []
    done: list[bool] = []

    class Watched(UnlearnTrainer):
        def _scores(self, model: Any, part: Any) -> Any:
            groups = [group for m in sharded_modules(model) for group in m._get_fsdp_state()._fsdp_param_groups]
            asked.append(self.accelerator.sync_gradients)
            done.append(len(groups) > 3 and all(g.reduce_grads and g.all_reduce_grads for g in groups))
            return super()._scores(model, part)

    with launched(fsdp2=True):
        settings = {"method": "gd", "rectify": True, "max_steps": 1, "method_options": {"retain_weight": 2.0}}
        Watched(tiny.llama(), tiny.config(folder, **settings), train_dataset=dataset()).train()
    return asked, done


if __name__ == "__main__":  # `accelerate launch tests/launched.py ...`: `gru-fast ...` with FSDP where CPUs alone are
    with fsdp_on_cpus():
        sys.exit(main(sys.argv[1:]))
