"""The passes of gru_fast over lists of tensors. Use gru_fast.rectify_; this is what it stands on."""

from collections.abc import Sequence
from typing import Any

import torch

NUM_STATS: int
NUM_ADAMW_SCALARS: int
NUM_UPDATE_STATS: int
NUM_GROUP_STATS: int
NUM_SET_STATS: int
MAX_VECTORS: int
RULES: tuple[str, ...]
HAS_CUDA: bool
CUDA_ARCHITECTURES: str
VERSION: str

class TensorList:
    """Tensors of one's own, looked at once instead of every step; not to be resized."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None: ...

class Table:
    """One step's tensors on one device, checked and cut into chunks. Keep the lists alive."""

    def __init__(
        self,
        grads: Sequence[torch.Tensor | None],
        retain: Sequence[torch.Tensor | None] | None,
        ema: Sequence[torch.Tensor] | TensorList,
        ema_is_current: bool | Sequence[bool] = False,
        ids: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        rounding_keys: Sequence[int] | None = None,
        is_direct: bool = False,
    ) -> None: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def mismatched_layouts(self) -> list[int]: ...
    @property
    def missing_grads(self) -> list[int]: ...
    @property
    def numel(self) -> int: ...
    @property
    def num_launches(self) -> int: ...
    @property
    def num_chunks(self) -> int: ...
    def reduce(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        rounding_step: torch.Tensor | None,
        keep: float,
        gain: float,
        seed: int,
        all_or_nothing: bool,
        num_threads: int,
        by_row: bool = False,
    ) -> None: ...
    def fold(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        rounding_step: torch.Tensor | None,
        keep: float,
        gain: float,
        seed: int,
        num_threads: int,
    ) -> None: ...
    def apply(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        tau: float,
        rule: str,
        options: tuple[float, float, float, float],
        num_threads: int,
    ) -> None: ...
    def finish(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        tau: float,
        rule: str,
        options: tuple[float, float, float, float],
        num_threads: int,
    ) -> None: ...
    def step(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        rounding_step: torch.Tensor | None,
        keep: float,
        gain: float,
        tau: float,
        rule: str,
        options: tuple[float, float, float, float],
        seed: int,
        all_or_nothing: bool,
        num_threads: int,
    ) -> None: ...
    def gate(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        rule: str,
        options: tuple[float, float, float, float],
        is_first: bool,
        num_threads: int,
    ) -> None: ...
    def reduce_groups(
        self, stats: torch.Tensor, scratch: torch.Tensor, of_row: Sequence[int], groups: torch.Tensor, count: int
    ) -> None: ...
    def apply_groups(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        of_row: Sequence[int],
        groups: torch.Tensor,
        count: int,
        tau: float,
        rule: str,
        options: tuple[float, float, float, float],
        num_threads: int,
    ) -> None: ...
    def finish_groups(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        of_row: Sequence[int],
        groups: torch.Tensor,
        count: int,
        tau: float,
        rule: str,
        options: tuple[float, float, float, float],
        num_threads: int,
    ) -> None: ...
    def probe(self, full: bool, stats: torch.Tensor, scratch: torch.Tensor, num_threads: int) -> None: ...

class UnitTable:
    """One unit's tensors of task vector rectified unlearning, on one device. Keep the lists alive."""

    def __init__(
        self,
        learned: Sequence[torch.Tensor],
        origin: Sequence[torch.Tensor],
        total: Sequence[torch.Tensor | None] | None,
        own: Sequence[torch.Tensor | None] | None,
        mean: Sequence[torch.Tensor],
        names: Sequence[str] | None = None,
    ) -> None: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def mismatched_layouts(self) -> list[int]: ...
    def reduce(self, stats: torch.Tensor, scratch: torch.Tensor, num_threads: int) -> None: ...
    def measure(self, stats: torch.Tensor, scratch: torch.Tensor, num_threads: int) -> None: ...
    def add(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        weight: float,
        normalize: bool,
        restore: bool,
        num_threads: int,
    ) -> None: ...

class BlendTable:
    """The tensors of out <- x_weight * x + y_weight * y on one device. Keep the lists alive."""

    def __init__(
        self,
        out: Sequence[torch.Tensor],
        x: Sequence[torch.Tensor],
        y: Sequence[torch.Tensor],
        x_name: str,
        y_name: str,
        names: Sequence[str] | None = None,
    ) -> None: ...
    @property
    def mismatched_layouts(self) -> list[int]: ...
    def run(self, x_weight: float, y_weight: float, num_threads: int) -> None: ...

class AdamWTable:
    """One step's tensors of AdamW on one device. Keep the lists alive."""

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor | None] | None,
        exp_avg: Sequence[torch.Tensor],
        exp_avg_sq: Sequence[torch.Tensor],
        ema: Sequence[torch.Tensor | None] | None,
        names: Sequence[str] | None = None,
        rounding_keys: Sequence[int] | None = None,
    ) -> None: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def mismatched_layouts(self) -> list[int]: ...
    def run(
        self,
        which: str,
        scalars: torch.Tensor,
        stats: torch.Tensor | None,
        update: torch.Tensor | None,
        floor: torch.Tensor | None,
        scratch: torch.Tensor,
        seed: int,
        numel: int,
        feed_back: bool,
        write_grad: bool,
        maximize: bool,
        num_threads: int,
    ) -> None: ...
    def settle(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        tau: float,
        rule: str | None,
        options: tuple[float, float, float, float],
    ) -> None: ...

class SetTable:
    """One step's tensors beside several vectors, on one device. Keep the lists alive."""

    def __init__(
        self,
        grads: Sequence[torch.Tensor | None],
        sets: Sequence[Sequence[torch.Tensor]],
        names: Sequence[str] | None = None,
    ) -> None: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def mismatched_layouts(self) -> list[int]: ...
    def reduce(self, stats: torch.Tensor, scratch: torch.Tensor, num_threads: int) -> None: ...
    def decide(
        self,
        stats: torch.Tensor,
        scratch: torch.Tensor,
        tau: float,
        rule: str,
        options: tuple[float, float, float, float],
    ) -> None: ...
    def apply(self, stats: torch.Tensor, scratch: torch.Tensor, num_threads: int) -> None: ...
    def finish(self, stats: torch.Tensor, scratch: torch.Tensor, tau: float, num_threads: int) -> None: ...

def cuda_problem() -> str: ...
def build_info() -> dict[str, Any]: ...
def same_objects(a: list[Any], b: list[Any]) -> bool: ...
def gradients(params: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """The .grad of each parameter, None where it has none."""

def use_vector_level(name: str) -> None: ...
def plan(numels: Sequence[int], kinds: Sequence[int], chunk_numel: int, max_rows: int) -> list[dict[str, Any]]: ...
def locate_chunk(numels: Sequence[int], chunk_numel: int, chunk: int) -> tuple[int, int, int]: ...
