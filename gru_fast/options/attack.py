"""The options of gru-fast attack that all attacks share; each has its own beside it, see :mod:`gru_fast.attacks`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class AttackOptions:
    """Which attacks, and what they are held against."""

    attacks: list[str] | None = field(
        default=None, metadata={"help": "some of quantize, relearn, sample, extract; by default all"}
    )
    original: str | None = field(
        default=None, metadata={"help": "the model before unlearning, as --model; by default what its run started from"}
    )
    retrained: str | None = field(
        default=None,
        metadata={"help": "the model that never saw the forget set, as --model; by default --retain-logs if it is one"},
    )
    retain_logs: str | None = field(
        default=None,
        metadata={"help": "evaluation of the retrained model, for scores relative to it: its run, or a log"},
    )
    evaluate: dict[str, Any] | None = field(
        default=None, metadata={"help": "options of gru-fast eval BENCHMARK for quantize, such as max_rows=50"}
    )
    max_rows: int = field(
        default=0, metadata={"help": "the first rows to forget, for relearn, sample and extract; 0 for all"}
    )
    max_new_tokens: int = field(default=128, metadata={"help": "tokens of a written answer, at most"})
    prefix_tokens: int = field(default=64, metadata={"help": "of a text to forget, the tokens that are given"})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder of the attacks; by default attacks/BENCHMARK-SPLIT in the model's folder"},
    )
    baselines: str | None = field(
        default=None,
        metadata={
            "help": "folder of what attacks do to the original and the retrained model, for all runs that are compared "
            "with the same two; by default each run has its own, in output_dir"
        },
    )
    batch_size: int = field(default=16, metadata={"help": "rows at a time"})
    device: str | None = field(
        default=None, metadata={"help": "cuda, cuda:1, cpu, ...; by default the accelerator, if there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "do anew what was done before"})

    def __post_init__(self) -> None:
        from gru_fast import attacks

        self.attacks = list(dict.fromkeys(self.attacks)) if self.attacks else attacks.names()
        problems = []
        for name in self.attacks:
            try:
                attacks.get(name)
            except ValueError as error:  # noqa: PERF203 all that is wrong at once
                problems.append(str(error))
        for name, least in (("max_rows", 0), ("batch_size", 1), ("max_new_tokens", 1), ("prefix_tokens", 1)):
            if getattr(self, name) < least:
                problems.append(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.baselines is not None and Path(self.baselines).exists() and not Path(self.baselines).is_dir():
            problems.append(f"baselines: expected a folder, or one that is to be made, got the file {self.baselines}")
        if problems:
            raise ValueError("; ".join(problems))
