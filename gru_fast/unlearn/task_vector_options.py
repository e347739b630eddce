"""How a task vector is made, of TRU or of plain negation (TV)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

METHODS = {"tru": "TRU", "tv": "TV"}
OPTIMIZERS = ("adamw", "sgd")
PARTITIONS = ("contiguous", "random")

# What an option is where it is not given. Options that only one method has are refused beside the other.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "tru": {"stg": [0.7], "learning_rate": 1e-4, "steps": 5, "partition": "random"},
    "tv": {"stg": [5.0], "learning_rate": 1e-5, "epochs": 10, "rows_per_step": 32},
}
_ONLY = {"tru": ("steps", "num_units", "partition"), "tv": ("epochs", "rows_per_step", "finetuned")}
_OF_TRAINING = ("learning_rate", "epochs", "rows_per_step")  # of tv: without a meaning where nothing is trained
_LEAST = {
    "steps": 1, "num_units": 1, "epochs": 1, "rows_per_step": 1, "rows_at_a_time": 1, "save_units": 0,
}  # fmt: skip


def _option(default: Any, text: str, choices: tuple[Any, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text} | ({"choices": choices} if choices else {}))


@dataclass
class TaskVectorOptions:
    """How a task vector is made, and with what strengths it is subtracted.

    Where the paper is silent: the steps of a unit (5, as its other methods see the data five times), their optimizer
    (AdamW as everywhere else in it, without weight decay, which would add a multiple of theta_org to every task
    vector), and how the forget set is cut. TV follows MUSE's code: 10 epochs of AdamW, 1e-5 falling along a cosine.

    Raises:
        ValueError: options that cannot be, all at once.
    """

    method: str = _option("tru", "tru: rectified task vectors; tv: plain negation, to compare with", tuple(METHODS))
    output_dir: str = _option("", "folder of the vector and, for each strength, of a run; by default runs/...")
    stg: list[float] | None = field(
        default=None,
        metadata={
            "help": "strengths to subtract the vector with, a model each; more can be added later with --resume "
            "(default: tru 0.7, tv 5)"
        },
    )
    learning_rate: float | None = _option(None, "of the steps (default: tru 1e-4; tv 1e-5, falling along a cosine)")
    optimizer: str = _option("adamw", "of the steps; begins anew with every unit", OPTIMIZERS)
    weight_decay: float = _option(0.0, "of AdamW")
    steps: int | None = _option(None, "tru: steps on each unit (default: 5)")
    num_units: int | None = _option(None, "tru: units to cut the forget set into; by default every row is one")
    partition: str | None = _option(
        None,
        "tru: units of rows drawn at random, as in the paper, or of rows that follow each other, as in the public "
        "code: 20 rows of TOFU are an author (default: random)",
        (None, *PARTITIONS),
    )
    epochs: int | None = _option(None, "tv: passes over the forget set (default: 10)")
    rows_per_step: int | None = _option(None, "tv: rows of a step (default: 32)")
    finetuned: str | None = _option(
        None, "tv: the model that was fine-tuned on the forget set already (gru-fast finetune); nothing is trained"
    )
    rows_at_a_time: int = _option(4, "rows of one forward and backward pass; more are faster and need more memory")
    bf16: bool = _option(False, "compute in bfloat16 (autocast); weights and vectors stay what they are")
    gradient_checkpointing: bool = _option(False, "keep fewer activations and compute them again: slower, less memory")
    offload: str | None = _option(
        None, "cpu: origin, mean and gradients lie in host memory; the device holds the model and its steps alone",
        (None, "cpu"),
    )  # fmt: skip
    device: str | None = _option(None, "cuda, cuda:1, cpu, ...; by default the accelerator, if there is one")
    seed: int = _option(42, "of a random partition, and of the order of rows of tv")
    save_units: int = _option(0, "tru: keep what was done after every so many units; 0: by time alone")
    save_minutes: float = _option(10.0, "tru: keep what was done when so many minutes have passed")

    def __post_init__(self) -> None:
        problems = [
            f"{name}: expected {', '.join(map(str, choices))}, got {getattr(self, name)!r}"
            for name, choices in (
                ("method", METHODS), ("optimizer", OPTIMIZERS), ("partition", (None, *PARTITIONS)),
                ("offload", (None, "cpu")),
            )
            if getattr(self, name) not in choices
        ]  # fmt: skip
        if self.method in METHODS:
            problems += self._fill()
        problems += [
            f"{name}: expected a whole number of at least {least}, got {value!r}"
            for name, least in _LEAST.items()
            if (value := getattr(self, name)) is not None and (not isinstance(value, int) or value < least)
        ]
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            problems.append(f"learning_rate: expected a number above 0, got {rate}")
        try:
            self.stg = numbers("stg", self.stg or [])
        except ValueError as error:
            problems.append(str(error))
        if not self.save_minutes > 0:
            problems.append(f"save_minutes: expected a number above 0, got {self.save_minutes}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def title(self) -> str:
        """The method as a table names it."""
        return METHODS[self.method]

    def recipe(self) -> dict[str, Any]:
        """The options that the vector depends on: not where, how strong, or how often something is kept."""
        free = {"output_dir", "stg", "offload", "device", "save_units", "save_minutes", "gradient_checkpointing"}
        return {name: value for name, value in asdict(self).items() if name not in free}

    def _fill(self) -> list[str]:
        """Puts the method's defaults in; says which options belong to the other one."""
        others = [name for method, names in _ONLY.items() if method != self.method for name in names]
        problems = [
            f"{name}: no option of --method {self.method}; leave it out"
            for name in others
            if getattr(self, name) is not None
        ]
        unused = _OF_TRAINING if self.method == "tv" and self.finetuned else ()
        problems += [
            f"{name}: with finetuned nothing is trained; leave it out"
            for name in unused
            if getattr(self, name) is not None
        ]
        for name, value in _DEFAULTS[self.method].items():
            if getattr(self, name) in (None, []) and name not in unused:
                setattr(self, name, value)
        return problems


def numbers(name: str, values: Sequence[Any]) -> list[float]:
    """Finite numbers, of texts too (a list on the command line holds texts), each once."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name}: expected finite numbers, got {' '.join(map(str, values))}")
    return list(dict.fromkeys(found))


def run_of(folder: Path, stg: float) -> Path:
    """The run of one strength, in the folder of its vector."""
    return folder / f"stg-{repr(stg).removesuffix('.0')}"  # all digits: strengths that differ have folders that do
