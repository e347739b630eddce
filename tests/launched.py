"""An UnlearnTrainer in one or several processes, as torchrun or accelerate launch would start it; for test_launched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
import torch.distributed as dist
from layouts import whole
from torch import Tensor

from gru_fast.unlearn.data import UnlearnDataset

ROWS_A_STEP = 4  # of all processes and micro-batches together
STATISTICS = ("loss", "retain_loss", "forget_loss", "cos", "norm_before", "norm_after", "norm_ema", "conflict")


@contextmanager
def launched() -> Iterator[int]:
    """What the launcher tells a process, taken from the process group it is in; how many there are."""
    if not dist.is_initialized():
        yield 1
        return
    from accelerate.state import AcceleratorState

    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "OMP_NUM_THREADS": "1"}
    before = dict(os.environ)
    os.environ.update(told)
    try:
        yield int(world)
    finally:
        os.environ.clear()
        os.environ.update(before)
        AcceleratorState._reset_state(reset_partial_state=True)


def dataset() -> UnlearnDataset:
    """Rows to keep that share most of their tokens with those to forget, so that the gradients are in conflict."""
    forget, other = tiny.rows(12, seed=1), tiny.rows(12, seed=2)
    keep = [[*row["input_ids"][:-2], *others["input_ids"][:2]] for row, others in zip(forget, other, strict=True)]
    return UnlearnDataset(forget, [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in keep], seed=0)


def weights(model: Any) -> list[Tensor]:
    """The parameters as one process would have them."""
    return [whole(p.detach(), q).clone() for p, q in zip(model.parameters(), tiny.llama().parameters(), strict=True)]


def trained(folder: Path, **settings: Any) -> tuple[list[dict[str, float]], list[Tensor], list[Tensor]]:
    """Three steps over the same rows, however many processes share them: logs, weights and e.

    A micro-batch of a process is one row, so that means over label tokens are of the same rows everywhere.
    """
    with launched() as world:
        defaults = {"optim": "sgd", "learning_rate": 0.05, "per_device_train_batch_size": 1, "rectify": True}
        accumulated = {"gradient_accumulation_steps": ROWS_A_STEP // world}
        trainer = tiny.trainer(folder, data=dataset(), **{**defaults, **accumulated, **settings})
        trainer.train()
        logs = [{name: entry[name] for name in STATISTICS} for entry in trainer.state.log_history if "cos" in entry]
        shapes = list(tiny.llama().parameters())
        ema = [whole(e, p) for e, p in zip(trainer.retain_ema.tensors, shapes, strict=True)]
        return logs, weights(trainer.accelerator.unwrap_model(trainer.model)), ema
