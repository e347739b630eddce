"""Which dataclasses of options each command takes: what the command line, studies and sweeps have in common."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from gru_fast.benchmarks.tofu.rows import SUBSETS, TofuOptions, split_problem
from gru_fast.evaluation import backends
from gru_fast.evaluation.instruction import INSTRUCTION, check_instruction

DEFAULT_BENCHMARK = "tofu"

_of_tofu = {field.name: field for field in dataclasses.fields(TofuOptions)}


def _same(name: str) -> Any:
    """A field as gru-fast unlearn has it."""
    return field(default=_of_tofu[name].default, metadata=_of_tofu[name].metadata)


@dataclass
class TofuFinetuneOptions:
    """Which rows to learn."""

    subset: str = field(
        default="full", metadata={"help": f"what to learn: {', '.join(SUBSETS)}, or another split of the folder"}
    )
    data: str = _same("data")
    max_length: int = _same("max_length")

    def __post_init__(self) -> None:
        TofuOptions(data=self.data, max_length=self.max_length)  # its checks


@dataclass
class EvalOptions:
    """How to evaluate."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder of the evaluation; by default eval/BENCHMARK-SPLIT in the model's folder"},
    )
    batch_size: int = field(
        default=16,
        metadata={"help": "rows at a time; on a CPU, which is faster with more, four times as many are written"},
    )
    device: str | None = field(
        default=None, metadata={"help": "cuda, cuda:1, cpu, ...; by default the accelerator, if there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "score anew what was scored before"})
    backend: str = field(
        default=backends.TRANSFORMERS,
        metadata={
            "help": "what writes the texts: vllm, for GPUs, has a copy of the model beside that which gives the losses",
            "choices": backends.NAMES,
        },
    )
    backend_options: dict[str, Any] | None = field(
        default=None, metadata={"help": "arguments of vllm.LLM, such as gpu_memory_utilization=0.4"}
    )

    def __post_init__(self) -> None:
        problems = []
        if self.batch_size < 1:
            problems.append(f"batch_size: expected at least 1, got {self.batch_size}")
        if self.backend not in backends.NAMES:
            problems.append(f'backend: expected one of {", ".join(backends.NAMES)}, got "{self.backend}"')
        elif self.backend_options and self.backend == backends.TRANSFORMERS:
            problems.append(
                f"backend_options: {self.backend} takes none; give --backend {backends.VLLM}, or leave it out"
            )
        if problems:
            raise ValueError("; ".join(problems))


@dataclass
class WriteOptions:
    """What the model is to write, and where to."""

    forget: list[str] = field(
        metadata={"help": "documents to forget, which must not come back in: files, folders, globs, or on the hub"}
    )
    output: str = field(default="retain.jsonl", metadata={"help": "JSON lines for what it writes, for --retain"})
    count: int = field(default=400, metadata={"help": "documents to keep"})
    columns: dict[str, str] | None = field(
        default=None, metadata={"help": "where fields have other names: --columns question=frage answer=antwort"}
    )
    openings: list[str] | None = field(
        default=None,
        metadata={"help": "how texts begin, one of them each; by default with nothing, or with an English word or two"},
    )
    questions: list[str] | None = field(
        default=None, metadata={"help": "what a chat model is asked; by default some hundred questions in English"}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "most tokens of a document"})
    temperature: float = field(default=2.0, metadata={"help": "of the first token of a text; of answers it is 1"})
    decay_tokens: int = field(default=20, metadata={"help": "tokens over which it falls to 1"})
    top_k: int = field(default=40, metadata={"help": "how many of the most probable tokens are drawn from"})
    batch_size: int = field(default=8, metadata={"help": "documents written at a time"})
    seed: int = field(default=0, metadata={"help": "of all that is drawn"})
    device: str | None = field(
        default=None, metadata={"help": "cuda, cuda:1, cpu, ...; by default the accelerator, if there is one"}
    )

    def __post_init__(self) -> None:
        problems = [
            f"{name}: expected at least 1, got {getattr(self, name)}"
            for name in ("count", "batch_size")
            if getattr(self, name) < 1
        ]
        if Path(self.output).suffix != ".jsonl":
            problems.append(f"output: expected a file that ends in .jsonl, got {self.output}")
        if problems:
            raise ValueError("; ".join(problems))


def write_retain() -> tuple[type, ...]:
    """Options of what is written, and of the model that writes."""
    return WriteOptions, model_to_read()


@dataclass
class AlternatesOptions:
    """To which questions other answers are written, and how."""

    output_dir: str = field(metadata={"help": "folder for them, for --alternates of unlearn"})
    data: str = _same("data")
    split: str = _same("split")
    count: int = field(default=5, metadata={"help": "answers to a question"})
    instruction: str = field(
        default=INSTRUCTION, metadata={"help": "what the model is told, with {question} and {answer} in it"}
    )
    max_new_tokens: int = field(default=200, metadata={"help": "most tokens of an answer"})
    temperature: float = field(default=1.0, metadata={"help": "that they are drawn at"})
    seed: int = field(default=0, metadata={"help": "of all that is drawn"})
    batch_size: int = field(default=16, metadata={"help": "answers drawn at a time"})
    device: str | None = field(
        default=None, metadata={"help": "cuda, cuda:1, cpu, ...; by default the accelerator, if there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "write anew what was written before"})

    def __post_init__(self) -> None:
        problems = [
            f"{name}: expected at least 1, got {getattr(self, name)}"
            for name in ("count", "max_new_tokens", "batch_size")
            if getattr(self, name) < 1
        ]
        problems += [found for found in (split_problem(self.split), check_instruction(self.instruction)) if found]
        if not 0 < self.temperature < math.inf:
            problems.append(f"temperature: expected a number above 0, got {self.temperature}")
        if problems:
            raise ValueError("; ".join(problems))


def write_alternates() -> tuple[type, ...]:
    """Options of what is written, and of the model that writes."""
    return AlternatesOptions, model_to_read()


def finetune() -> tuple[type, ...]:
    """Options of the model, of the rows, of the training."""
    from gru_fast.models.load import ModelOptions
    from gru_fast.unlearn.finetune import FinetuneConfig

    return ModelOptions, TofuFinetuneOptions, FinetuneConfig


def unlearn(benchmark: ModuleType | None = None) -> tuple[type, ...]:
    """Options of the model, of the data, of the training. ``benchmark``: its module; None: the default one's."""
    from gru_fast.models.load import ModelOptions
    from gru_fast.unlearn import UnlearnConfig

    return ModelOptions, _of_data(benchmark), UnlearnConfig


def tru(benchmark: ModuleType | None = None) -> tuple[type, ...]:
    """Options of the model, of the data, of the vector. ``benchmark``: its module; None: the default one's."""
    from gru_fast.models.load import ModelOptions
    from gru_fast.unlearn.task_vector_options import TaskVectorOptions

    return ModelOptions, _of_data(benchmark), TaskVectorOptions


def evaluate(evaluation: ModuleType) -> tuple[type, ...]:
    """Options of the evaluation of a benchmark, whose module it is, of how to evaluate, of the model."""
    return evaluation.Options, EvalOptions, model_to_read()


@cache
def model_to_read() -> type:
    """ModelOptions of a model that is not trained: without those of a new adapter, which would do nothing."""
    from gru_fast.models.load import OF_ADAPTERS, ModelOptions

    fixed = [
        (part.name, part.type, field(default=part.default, init=False))
        for part in dataclasses.fields(ModelOptions)
        if part.name in OF_ADAPTERS
    ]
    return dataclasses.make_dataclass(ModelOptions.__name__, fixed, bases=(ModelOptions,))


def attack(benchmark: ModuleType | None = None) -> tuple[type, ...]:
    """Options of all attacks together, of each by itself, of the data, of the model."""
    from gru_fast import attacks
    from gru_fast.models.load import ModelOptions
    from gru_fast.options.attack import AttackOptions

    own = (attacks.get(name).Options for name in attacks.names())
    return (AttackOptions, *own, _of_data(benchmark), ModelOptions)


def _of_data(benchmark: ModuleType | None) -> type:
    from gru_fast import benchmarks

    options: type = (benchmark or benchmarks.get(DEFAULT_BENCHMARK)).Options
    return options


def data_of_all() -> type:
    """The options of all benchmarks as one class, for flags and help alone: which are in use is known later."""
    from gru_fast import benchmarks

    hints: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for name in benchmarks.names():
        cls = benchmarks.get(name).Options
        for part in dataclasses.fields(cls):
            hints.setdefault(part.name, typing.get_type_hints(cls)[part.name])
            default = "" if part.default is None else f" (default: {part.default})"
            texts.setdefault(part.name, []).append(f"{name}: {part.metadata['help']}{default}")
    texts["benchmark"] = [f"what to forget from (default: {DEFAULT_BENCHMARK})"]
    choices = {"benchmark": tuple(benchmarks.names())}
    fields = []
    for name in sorted(hints, key=lambda name: name != "benchmark"):
        metadata = {"help": "; ".join(texts[name]), "choices": choices.get(name, ())}
        fields.append((name, hints[name], field(default=None, metadata=metadata)))
    return dataclasses.make_dataclass("DataOptions", fields)
