"""Bytes that a process sends in a step of a small model, by engine, beside what scaling_model.py says of it.

Counted by the kernel at the process' own sockets (TCP_INFO), whatever it is that sends: DDP's reducer in C++, FSDP2,
DeepSpeed. `UnlearnTrainer` trains a Llama of some million parameters, in float32, over gloo: plain (one loss), and
rectified (two losses).

gloo is not NCCL. A ring of n processes has each of them send (n - 1) / n of a tensor that is gathered or scattered and
twice that of one that is reduced in all; gloo reduces in all and scatters afterwards what NCCL reduces and scatters at
once (``of_gloo``). So what is held against the model is which collectives an engine runs, over how many bytes.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import report
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState
from exchange import ENGINES, Exchange, exchange_of
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from gru_fast.data.pairs import UnlearnDataset
from gru_fast.unlearn import UnlearnConfig, UnlearnTrainer

_SIZES = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8}
_STEPS, _BEFORE = 6, 3  # DDP builds its buckets anew in the first
_BYTES_SENT = 200  # where tcpi_bytes_sent is in struct tcp_info


@dataclass(frozen=True)
class Sent:
    """By one process in one step."""

    engine: str
    processes: int
    numel: int
    rectified: bool
    measured: float
    predicted: float


def run(worlds: tuple[int, ...] = (2,), engines: tuple[str, ...] = tuple(ENGINES)) -> list[Sent]:
    """Each engine, plain and rectified, in so many processes."""
    found = []
    for world in worlds:
        report.progress(f"bytes on the wire: {world} processes")
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_work, (world, folder, engines), nprocs=world)
            found += torch.load(Path(folder) / "sent", weights_only=False)
    return found


def of_gloo(exchange: Exchange) -> Exchange:
    """What is reduced and scattered is reduced in all there."""
    return dataclasses.replace(exchange, scattered=0.0, all_reduced=exchange.all_reduced + exchange.scattered)


def describe(found: list[Sent]) -> str:
    """A table."""
    rows = [["engine", "processes", "", "sent, MB", "predicted, MB", "ratio", "over plain"]]
    plain = {(s.engine, s.processes): s.measured for s in found if not s.rectified}
    for s in found:
        over = f"{s.measured / plain[s.engine, s.processes]:.2f}"
        rows.append([
            s.engine, str(s.processes), "rectified" if s.rectified else "plain", f"{s.measured * 1e-6:.3f}",
            f"{s.predicted * 1e-6:.3f}", f"{s.measured / s.predicted:.3f}", over,
        ])  # fmt: skip
    return "\n".join(
        [
            f"Bytes that a process sends in a step, {found[0].numel:,} parameters in float32, over gloo:",
            "",
            report.grid(rows),
        ]
    )


# ---- one process -----------------------------------------------------------------------------------------------------


def _work(rank: int, world: int, folder: str, engines: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    of_launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in of_launcher.items()} | {"DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found = []
    try:
        for engine in engines:
            for rectified in (False, True):
                with _taken_up(engine):
                    sent = _measure(f"{folder}/{engine}-{rectified}", engine, rectified)
                predicted = of_gloo(exchange_of(engine, 1 + rectified, compute_bytes=4)).sent(world) * _numel()
                found.append(Sent(engine, world, _numel(), rectified, sent, predicted))
        if rank == 0:
            torch.save(found, Path(folder) / "sent")
    finally:
        dist.destroy_process_group()


@contextmanager
def _taken_up(engine: str) -> Iterator[None]:
    """Has libraries do what they do not with CPUs alone: shard a model, do without an extension of DeepSpeed's.

    Afterwards they know nothing of the engine.
    """
    with ExitStack() as stack:
        if engine == "fsdp2":
            stack.enter_context(patch.object(ParallelismConfig, "_validate_accelerator"))
        if engine.startswith("zero"):
            comm = importlib.import_module("deepspeed.comm.torch")
            stack.enter_context(patch.object(comm, "build_shm_op", lambda: None))
        try:
            yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
            unset_hf_deepspeed_config()


def _measure(folder: str, engine: str, rectified: bool) -> float:
    counted = _Counted()
    settings: dict[str, Any] = {"deepspeed": _zero(int(engine[-1]))} if engine.startswith("zero") else {}
    config = UnlearnConfig(
        f"{folder}/run", method="ga", rectify=rectified, use_cpu=True, optim="sgd", max_steps=_STEPS,
        per_device_train_batch_size=1, gradient_accumulation_steps=1, save_strategy="no", logging_strategy="no",
        disable_tqdm=True, report_to="none", **settings,
    )  # fmt: skip
    rows = [{"input_ids": [3 + i, *range(3, 18)], "labels": [3 + i, *range(3, 18)]} for i in range(40)]
    model = _model(folder, engine)
    trainer = UnlearnTrainer(model, config, train_dataset=UnlearnDataset(rows[:20], rows[20:]), callbacks=[counted])
    trainer.train()
    if (engine == "ddp") != isinstance(trainer.model_wrapped, DistributedDataParallel):
        raise RuntimeError(f"{engine}: it was not what trained")
    return (counted.seen[_STEPS] - counted.seen[_BEFORE]) / (_STEPS - _BEFORE)


def _config() -> LlamaConfig:
    return LlamaConfig(**_SIZES, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False)


def _numel() -> int:
    with torch.device("meta"):
        return sum(param.numel() for param in LlamaForCausalLM(_config()).parameters())


def _model(folder: str, engine: str) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config())
    if engine != "fsdp2":
        return model
    from transformers.distributed import DistributedConfig

    place = f"{folder}/model"
    if dist.get_rank() == 0:
        model.save_pretrained(place)
    dist.barrier()
    sharded = DistributedConfig(fsdp_size=dist.get_world_size())
    return LlamaForCausalLM.from_pretrained(place, distributed_config=sharded, dtype=torch.float32)


def _zero(stage: int) -> dict[str, Any]:
    return {
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
    }


class _Counted(TrainerCallback):
    """What this process has sent by the end of each step."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen[state.global_step] = bytes_sent()


def bytes_sent() -> int:
    """By all TCP sockets that this process has open, as the kernel counts; Linux 4.19 or later."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            is_socket = str(entry.readlink()).startswith("socket:")
        except OSError:  # closed meanwhile
            continue
        if not is_socket:
            continue
        with socket.socket(fileno=os.dup(int(entry.name))) as held:
            try:
                info = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            except OSError:  # of another kind
                continue
        if len(info) >= _BYTES_SENT + 8:
            total += struct.unpack_from("<Q", info, _BYTES_SENT)[0]
    return total


if __name__ == "__main__":
    report.say(describe(run()))
