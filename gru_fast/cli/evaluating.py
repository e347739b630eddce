"""What the commands that evaluate have in common: the model they load, how it was asked for, and whether it is new."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_fast.models.load import ModelOptions

_MODEL_FIELDS = ("model", "revision", "tokenizer", "template", "template_options", "dtype", "attn_implementation")
_MODEL_FILES = ("*.safetensors", "*.bin", "*.gguf", "config.json", "tokenizer*", "adapter_config.json")


def be_quiet() -> None:
    """Shows no bars and notices of transformers in this process: the first one's speak for all."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def asked_for(model: ModelOptions) -> dict[str, Any]:
    """How a model is asked for, as its evaluation keeps it."""
    from gru_fast.models.load import OF_4_BITS

    fields = (*_MODEL_FIELDS, *(OF_4_BITS if model.load_in_4bit else ()))
    return {name: value for name, value in asdict(model).items() if name in fields and value not in (None, {})}


def load(model_options: ModelOptions, device: str | None) -> tuple[Any, Any, Any]:
    """The model on its device, its tokenizer and its prompts' template."""
    from gru_fast.models.limits import check_vocabulary
    from gru_fast.models.load import device_of, load_model, load_template, load_tokenizer

    place = device_of(device)  # its message, before anything is loaded
    tokenizer = load_tokenizer(model_options)
    template = load_template(model_options, tokenizer)
    model = load_model(model_options, device=place)
    check_vocabulary(model, tokenizer)
    return model.to(place), tokenizer, template


def config_of(model: str | None) -> dict[str, Any]:
    """The configuration of the run of a model, that of `gru-fast forget` as one on own documents; empty without one."""
    from gru_fast.benchmarks import own
    from gru_fast.models import load

    config = load.config_of(model) if model else {}
    return own.config_of_run(config) or config


def options_of(data: Any, retain_logs: str | None, given: Mapping[str, Any] | None, name: str) -> Any:
    """The options of a benchmark's evaluation: the rows' own data and split, then what was given beside.

    Args:
        data: the options of its rows.
        retain_logs: where the evaluation has that option.
        given: others, by name.
        name: of the option that gave them, for messages.

    Raises:
        ValueError: an option that the evaluation does not have, or that is not to be chosen there.
    """
    from gru_fast import benchmarks
    from gru_fast.options import flags as options
    from gru_fast.options.coerce import nearest

    evaluation = benchmarks.evaluation(data.benchmark)
    known = [part.name for part in dataclasses.fields(evaluation.Options)]
    # As if they were a run's: it is the benchmark that knows which of them its evaluation has in the same sense.
    own = evaluation.defaults_of_run(asdict(data))
    own |= {"retain_logs": retain_logs} if retain_logs and "retain_logs" in known else {}
    chosen = {str(key).replace("-", "_"): value for key, value in (given or {}).items()}
    for key in chosen:
        if key in {*own, "retain_logs", "from_logs"}:
            raise ValueError(f"{name}: {key} is not to be chosen there; give {options.flag(key)}")
        if key not in known:
            raise ValueError(f'{name}: gru-fast eval {data.benchmark} has no option "{key}"{nearest(key, known)}')
    try:
        return options.resolve(argparse.Namespace(**own, **chosen, config=None), evaluation.Options)[0]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def newest(model: str) -> float:
    """When the newest file of a model was written, in seconds since 1970; 0 for one on the hub."""
    from gru_fast.models.load import find

    found = find(model)
    if found is None:
        return 0.0
    files = [found] if found.is_file() else [file for pattern in _MODEL_FILES for file in found.glob(pattern)]
    return max(file.stat().st_mtime for file in files)
