"""Unlearning without retain data, by task vectors: what TRU and plain negation (TV) have in common, and TV itself.

A task vector is where a model goes when it learns something; unlearning goes the other way::

    theta = theta_org - strength * vector            vector: of TRU (gru_fast.unlearn.tru), or of TV

    TV:  vector = theta_ft - theta_org               theta_ft: theta_org fine-tuned on the forget set

The vector is kept in a file, so that any strength (the paper's stg) can be tried without computing it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.core.vectors import subtract_
from gru_fast.data.sequences import Encoded, content_hash
from gru_fast.models.identity import fingerprint
from gru_fast.unlearn.forget_set import ForgetSet, Store, copy_, parameters_of

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


# ---- the vector ------------------------------------------------------------------------------------------------------


@dataclass
class TaskVector:
    """What is subtracted from a model, times a strength.

    Args:
        tensors: one per trainable parameter, by its name, of its shape: float32, on the CPU.
        about: of what: ``source`` (see :func:`source`) and what came of it, in JSON's types.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, whole or not at all; ``about`` is in its metadata."""
        save_tensors(path, self.tensors, self.about)

    @classmethod
    def load(cls, path: str | Path) -> TaskVector:
        """Reads what :meth:`save` wrote."""
        return cls(*load_tensors(path))

    @contextmanager
    def subtracted(self, model: nn.Module) -> Iterator[Callable[[float], None]]:
        """Gives a function that sets the model to ``theta_org - strength * vector``, from theta_org each time.

        The model, on the CPU, is theta_org before and after. A second copy of its parameters is held meanwhile.

        >>> with vector.subtracted(model) as set_strength:
        ...     for strength in (0.5, 0.7):
        ...         set_strength(strength)
        ...         model.save_pretrained(f"stg-{strength}")

        Raises:
            ValueError: a vector of another model.
        """
        saved = self.about.get("source", {}).get("model")
        if saved is not None and saved != fingerprint(model):
            raise ValueError("task vector: it is of another model than this one; give the model that it was made with")
        params, names = parameters_of(model)
        odd = sorted({*names} ^ {*self.tensors})
        if odd:
            raise ValueError(f"task vector: it is of another model, with other parameters: {', '.join(odd[:3])}")
        origin = [param.detach().clone() for param in params]
        vector = [self.tensors[name] for name in names]

        def set_strength(strength: float) -> None:
            named: Any = zip(names, params, strict=True)
            subtract_(named, origin, vector, strength)

        try:
            yield set_strength
        finally:
            copy_(params, origin)


def source(model: nn.Module, rows: Sequence[Encoded], options: TaskVectorOptions) -> dict[str, Any]:
    """What a vector depends on: the model (a fingerprint), the rows (a hash), the options."""
    return {"model": fingerprint(model), **source_without_model(rows, options)}


def source_without_model(rows: Sequence[Encoded], options: TaskVectorOptions) -> dict[str, Any]:
    """:func:`source` but for the model, before it is loaded."""
    digest = hashlib.blake2b("".join(map(content_hash, rows)).encode(), digest_size=16)
    return {"rows": digest.hexdigest(), **options.recipe()}


def check_source(path: str | Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses a file of another model, other rows or other options; the message names what differs."""
    what = {"model": "the model is another", "rows": "the forget set, or its tokens, are others"}
    found = [
        what.get(name) or f"{name} is {saved.get(name)!r} there, {value!r} now"
        for name, value in now.items()
        if saved.get(name) != value
    ]
    if found:
        raise ValueError(f"{path}: made with something else: {'; '.join(found)}. Choose another --output-dir")


# ---- plain negation -------------------------------------------------------------------------------------------------


def plain(
    model: Any,
    rows: Sequence[Encoded],
    options: TaskVectorOptions,
    *,
    pad_token_id: int,
    finetuned: nn.Module | None = None,
    progress: bool = True,
) -> TaskVector:
    """The plain task vector (TV): fine-tunes on the rows; the model is then what it was.

    Args:
        model: a causal LM, theta_org.
        finetuned: it, fine-tuned already; nothing is trained then.

    Raises:
        RuntimeError: the fine-tuning diverged.
    """
    from tqdm import tqdm

    forget = ForgetSet(model, rows, options, pad_token_id)
    about: dict[str, Any] = {"source": source(model, rows, options)}
    store = Store(forget.params, forget.names, options.offload == "cpu")
    size, epochs = int(options.rows_per_step or 1), int(options.epochs or 0)
    per_epoch = -(-len(rows) // size)
    count = 0 if finetuned is not None else epochs * per_epoch
    if finetuned is not None:
        check_finetuned(model, finetuned)
        copy_(forget.params, parameters_of(finetuned)[0])
    optimizer, draw = forget.optimizer(), torch.Generator().manual_seed(options.seed)
    order: list[int] = []
    for step in tqdm(range(count), desc="TV: fine-tuning", unit="step", disable=not progress):
        order = order or torch.randperm(len(rows), generator=draw).tolist()
        some, order = order[:size], order[size:]
        optimizer.param_groups[0]["lr"] = (
            0.5 * float(options.learning_rate or 0) * (1 + math.cos(math.pi * step / count))
        )
        forget.step(optimizer, some)
    outcome = store.accumulate(normalize=False)
    if outcome.skipped:
        why = "NaN or Inf in it: a smaller --learning-rate" if outcome.nonfinite else "it is zero: nothing was learned"
        raise RuntimeError(f"task vector: {why}")
    about |= {"norm": outcome.norm, "steps": count}
    return TaskVector({name: mean.cpu() for name, mean in zip(forget.names, store.mean, strict=True)}, about)


def check_finetuned(model: nn.Module, finetuned: nn.Module) -> None:
    """Refuses a fine-tuned model of another architecture."""
    ours, theirs = ([(n, p.shape) for p, n in zip(*parameters_of(one), strict=True)] for one in (model, finetuned))
    if ours != theirs:
        raise ValueError("finetuned: expected the same parameters as the model's, got those of another architecture")


# ---- parts -----------------------------------------------------------------------------------------------------------


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """A safetensors file with ``about`` in its metadata, there as a whole or not at all."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt", "gru_fast": json.dumps(about)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`save_tensors` wrote, on the CPU.

    Raises:
        FileNotFoundError: no such file. ValueError: not such a file.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _about(file)  # noqa: SIM118


def read_about(path: str | Path) -> dict[str, Any]:
    """The ``about`` of what :func:`save_tensors` wrote, without its tensors."""
    with _opened(path) as file:
        return _about(file)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; gru-fast tru makes it")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no task vector of gru-fast, or broken off ({error})") from None


def _about(file: Any) -> dict[str, Any]:
    return dict(json.loads((file.metadata() or {})["gru_fast"]))
