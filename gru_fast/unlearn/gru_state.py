"""The moving average of a run in its checkpoints: e and the counts of steps, whole or in shards."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gru_fast.core.ema import RetainEMA
from gru_fast.core.retain_gradient import RetainGradient
from gru_fast.core.sharded.shards import is_sharded

GRU_STATE = "gru_state.pt"
GRU_STATE_SHARDS = "gru_state"  # the same of a sharded model: a folder of torch.distributed.checkpoint
_FORMAT = 1  # of GRU_STATE


def save_gru_state(folder: str | Path, ema: RetainEMA | RetainGradient, counts: Mapping[str, int]) -> None:
    """Writes e, everything else of :meth:`RetainEMA.state_dict`, and ``counts`` of steps into ``folder``.

    Of sharded parameters each process writes its shards, which any number of processes can load: all must call it.
    """
    if any(map(is_sharded, ema.params)):
        from torch.distributed.checkpoint.state_dict_saver import save

        save({"ema": ema, "counts": dict(counts)}, checkpoint_id=Path(folder) / GRU_STATE_SHARDS)
        return
    path = Path(folder) / GRU_STATE
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=GRU_STATE, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": _FORMAT, "ema": ema.state_dict(), "counts": dict(counts)}, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_gru_state(folder: str | Path, ema: RetainEMA | RetainGradient) -> dict[str, int]:
    """Takes what :func:`save_gru_state` wrote up into ``ema``; returns the counts. All processes must call it.

    Raises:
        FileNotFoundError: the checkpoint has none.
        ValueError, TypeError: not such a file, or of another model.
    """
    if (Path(folder) / GRU_STATE_SHARDS).is_dir():
        return _load_shards(Path(folder) / GRU_STATE_SHARDS, ema)
    path = Path(folder) / GRU_STATE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; the checkpoint was saved without rectify or monitor (or with save_only_model): "
            "resume it as it was, or start anew"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        known = state["format"] == _FORMAT
        saved, counts = state["ema"], {str(name): int(count) for name, count in state["counts"].items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected what a GRU run saves, got something else ({error!r})") from error
    if not known:
        raise ValueError(f"{path}: expected format {_FORMAT}, got {state['format']}; upgrade gru_fast")
    try:
        ema.load_state_dict(saved)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: does not fit what is trained here; {error}") from error
    return counts


def _load_shards(path: Path, ema: RetainEMA | RetainGradient) -> dict[str, int]:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(path)
    try:
        counts = {key for key in reader.read_metadata().state_dict_metadata if key.startswith("counts.")}
        state: dict[str, Any] = {"ema": ema, "counts": dict.fromkeys(key.removeprefix("counts.") for key in counts)}
        load(state, storage_reader=reader)
    except (CheckpointException, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: expected what a GRU run of this model saves; {error}") from error
    return {str(name): int(count) for name, count in state["counts"].items()}
