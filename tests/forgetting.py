"""A model of two parameters that can be followed by hand, and TRU in several processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tiny import llama, rows
from torch import Tensor, nn

from gru_fast.data.sequences import Encoded
from gru_fast.unlearn import tru
from gru_fast.unlearn.task_vector import TaskVector, TaskVectorOptions

TWO = ((2.0, 0.0), (2.0, 2.0))  # what the model sees of token 0, and of token 1


class TwoParameters(nn.Module):
    """log odds of token 1 over token 0 after token x: w . TWO[x]; at w = 0 both are as likely."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.device = torch.device("cpu")
        self.config = SimpleNamespace()

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        odds = torch.tensor(TWO)[input_ids] @ self.w
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(odds), odds], dim=-1))


def pair(x: int, y: int) -> Encoded:
    """Token y, scored, after token x."""
    return {"input_ids": [x, y], "labels": [-100, y]}


def options(**settings: Any) -> TaskVectorOptions:
    """SGD with a rate that shows, two steps a unit."""
    return TaskVectorOptions(**{"optimizer": "sgd", "learning_rate": 0.05, "steps": 2, **settings})


def vector(count: int = 6, state: Path | None = None, model: Any = None, **settings: Any) -> TaskVector:
    """TRU of ``count`` rows under a tiny Llama."""
    return tru.rectified(
        llama() if model is None else model,
        rows(count, seed=5),
        options(**settings),
        pad_token_id=0,
        state=state,
        progress=False,
    )


def in_processes(rank: int, world: int, folder: str) -> None:
    """One of ``world`` processes that share the units; the first writes what comes of it."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = vector(count=5, state=Path(folder) / "state", save_units=1)
    if rank == 0:
        found.save(Path(folder) / "vector.safetensors")
    torch.distributed.destroy_process_group()
