"""Unlearning without retain data, by task vectors: what TRU and plain negation (TV) have in common, and TV itself.

A task vector is where a model goes when it learns something; unlearning goes the other way::

    theta = theta_org - strength * vector            vector: of TRU (gru_fast.unlearn.tru), or of TV

    TV:  vector = theta_ft - theta_org               theta_ft: theta_org fine-tuned on the forget set

The vector is kept in a file, so that any strength (the paper's stg) can be tried without computing it again.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gru_fast.core.vectors import subtract_
from gru_fast.data.sequences import Encoded, rows_hash
from gru_fast.models.identity import fingerprint
from gru_fast.unlearn.forget_set import ForgetSet, Store, copy_, parameters_of
from gru_fast.unlearn.task_vector_options import TaskVectorOptions

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
    return {"rows": rows_hash(rows), **options.recipe()}


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
