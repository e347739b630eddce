"""What is added to a Trainer's checkpoint folder, and whether such a folder fits the model and the launch at hand.

Files here are written whole or not at all, and before Trainer writes ``trainer_state.json``: a folder that has a
readable one is complete, whenever the run was killed (:class:`~gru_fast.unlearn.resuming.WholeCheckpoints`).
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

LAUNCH = "launch.json"
TRAINER_STATE = "trainer_state.json"  # Trainer's own, the last file of a checkpoint
_ARCHITECTURE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run: ``checkpoint-STEP`` with a readable ``trainer_state.json``, or None."""
    return next((path for _, path in sorted(_checkpoints(output_dir), reverse=True) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was saved to its end."""
    return _read_json(checkpoint / TRAINER_STATE) is not None


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint so that, whenever this is broken off, what is left of it does not count as whole."""
    (folder / TRAINER_STATE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def remove_broken_after(checkpoint: Path) -> None:
    """Removes later checkpoints of the same run that were not saved to their end, which nobody can use any more."""
    for step, path in _checkpoints(checkpoint.parent):
        if path.is_dir() and not is_whole(path) and step > _step_of(checkpoint):
            remove_checkpoint(path)


def _checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run, whole or not, with their steps."""
    folder = Path(output_dir)
    found = list(folder.iterdir()) if folder.is_dir() else []
    return [(_step_of(path), path) for path in found if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@dataclass(frozen=True)
class Launch:
    """How many processes work on a step, and on how many rows: what a resumed run must not change unnoticed.

    Args:
        processes: that each take other rows.
        rows_per_micro_batch: of one process.
        rows_per_step: of all processes and all accumulated micro-batches.
        fsdp: the state dict type of FSDP's checkpoints ("FULL_STATE_DICT", ...); None: without FSDP.
        rows: of an epoch; None where that is not known.
        retain_rows: to keep beside a micro-batch; None: as many as it has.
        zero: DeepSpeed's stage; None: without it.
    """

    processes: int
    rows_per_micro_batch: int
    rows_per_step: int
    fsdp: str | None = None
    rows: int | None = None
    retain_rows: int | None = None
    zero: int | None = None

    def save(self, folder: str | Path) -> None:
        """Writes it into a checkpoint that is not whole yet."""
        (Path(folder) / LAUNCH).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Launch | None:
        """The one a checkpoint was saved by; None if it does not say."""
        content = _read_json(Path(folder) / LAUNCH)
        return None if content is None else cls(**content)

    def check_goes_on(self, folder: str | Path, *, same_rows: bool = True) -> None:
        """Refuses a checkpoint that this launch would go on from in another way than the run would have.

        The number of processes may change, as long as every step takes the same rows in the same micro-batches.
        ``same_rows``: whether that matters.

        Raises:
            ValueError: says what was saved, what is here, and what to set.
        """
        saved = Launch.load(folder)
        if saved is None:
            return
        if saved.fsdp != self.fsdp:
            there, here = (f"with FSDP's {s.fsdp}" if s.fsdp else "without FSDP" for s in (saved, self))
            raise ValueError(
                f"{folder}: saved {there}, resumed {here}; launch it with the accelerate configuration it was started "
                "with (num_processes may be another one)"
            )
        if saved.zero != self.zero:
            there, here = (f"with DeepSpeed ZeRO-{s.zero}" if s.zero else "without DeepSpeed" for s in (saved, self))
            raise ValueError(
                f"{folder}: saved {there}, resumed {here}; launch it with the configuration it was started with"
            )
        if self.zero and saved.processes != self.processes:
            raise ValueError(
                f"{folder}: expected {saved.processes} processes, as it was saved by, got {self.processes}; DeepSpeed "
                "does not cut up its optimizer's state anew"
            )
        ours, theirs = ((s.rows_per_micro_batch, s.rows_per_step) for s in (self, saved))
        if same_rows and ours != theirs:
            raise ValueError(
                f"{folder}: expected steps of {theirs[1]} rows in micro-batches of {theirs[0]}, as {saved.processes} "
                f"process{'es' * (saved.processes > 1)} took them, got {ours[1]} in {ours[0]} from {self.processes}; "
                + self._how_to_go_on(saved)
            )
        if same_rows and saved.retain_rows != self.retain_rows:
            there, here = ("none" if s.retain_rows is None else str(s.retain_rows) for s in (saved, self))
            raise ValueError(
                f"{folder}: saved with retain_batch_size={there}, resumed with {here}; set retain_batch_size={there}"
            )
        if same_rows and saved.processes != self.processes and not (saved.is_even and self.is_even):
            raise ValueError(
                f"{folder}: expected {saved.processes} process{'es' * (saved.processes > 1)}, as it was saved by, got "
                f"{self.processes}: the {self.rows} rows of an epoch are no whole number of micro-batches for each of "
                f"{max(saved.processes, self.processes)}, which would fill up its last step with other rows"
            )

    @property
    def is_even(self) -> bool:
        """Whether an epoch's last micro-batches are whole and as many in each process: else accelerate repeats rows."""
        return self.rows is None or self.rows % (self.rows_per_micro_batch * self.processes) == 0

    def _how_to_go_on(self, saved: Launch) -> str:
        micro_batches = saved.rows_per_step // saved.rows_per_micro_batch
        if micro_batches % self.processes:
            return f"launch a number of processes that divides {micro_batches}"
        return (
            f"set per_device_train_batch_size={saved.rows_per_micro_batch} and "
            f"gradient_accumulation_steps={micro_batches // self.processes}"
        )


def check_fits(folder: str | Path, model: nn.Module) -> None:
    """Refuses a checkpoint of another model in one line, where loading it would list every parameter, or only warn.

    Compares what ``config.json`` says of the architecture, and the shapes of the weights that both have.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such checkpoint folder")
    ours, theirs = getattr(model, "config", None), _read_json(folder / "config.json")
    for name in _ARCHITECTURE if ours is not None and theirs is not None else ():
        here, there = getattr(ours, name, None), theirs.get(name)
        if here is not None and there is not None and here != there:
            raise ValueError(
                f"{folder}: checkpoint of another model: expected {name} {here}, got {there}; load the model that the "
                "run started from"
            )
    # ZeRO-3 leaves an empty tensor of a parameter, and the shape it had beside it.
    named = model.state_dict(keep_vars=True).items()
    shapes = {name: tuple(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in named}
    for name, shape in _saved_shapes(folder).items():
        if name in shapes and shapes[name] != shape:
            raise ValueError(
                f'{folder}: checkpoint of another model: expected "{name}" of shape {shapes[name]}, got {shape}; load '
                "the model that the run started from"
            )


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a folder's safetensors files, from their headers."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None where it is missing or broken off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
