"""What a model can read: the tokens it has embeddings for, the positions it has places for, a token to pad with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gru_fast.data.limits import Limits
from gru_fast.models.load import configuration, lineage

if TYPE_CHECKING:
    from gru_fast.models.load import ModelOptions

_TABLE = re.compile(r"wpe|(?!.*rel).*pos.*", re.IGNORECASE)  # names of what has a row for each position
_OF_OTHERS = re.compile(r"vision|visual|image|audio|speech", re.IGNORECASE)  # towers that read no text


def limits_of(model: Any) -> Limits:
    """The limits of a model's input embeddings and of its tables of positions, learned or computed once.

    Of rotary and relative positions, which are computed for any length, there is no limit. Every table is found by its
    name, as transformers' families have it.

    Args:
        model: on any device, also "meta"; a module that is no model of transformers has no known limits.
    """
    return Limits(_num_embeddings(model), min(_sizes_of_tables(model), default=None))


def padding_id(model: Any, tokenizer: Any = None) -> int:
    """A token to pad with: the tokenizer's for padding, else for the end, else the model's, if it has an embedding.

    Padding is neither attended nor scored, but it is looked up: of an id without embedding torch says "index out of
    range". A tokenizer whose padding token has none, as one that was added to it, is given the other (in place), which
    transformers writes into the configuration of what it trains.
    """
    known = _num_embeddings(model)
    sources = (tokenizer, getattr(model, "config", None))
    found = (getattr(source, name, None) for source in sources for name in ("pad_token_id", "eos_token_id"))
    usable = (token for token in found if isinstance(token, int) and 0 <= token < (known or token + 1))
    pad = next(usable, 0)
    if isinstance(getattr(tokenizer, "pad_token_id", None), int) and tokenizer.pad_token_id != pad:
        tokenizer.pad_token_id = pad
    return pad


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Refuses a tokenizer whose end token the model has no embedding for: it is of another model.

    A tokenizer may have tokens past the embeddings that never occur, such as Gemma 3's place-holder of an image; rows
    are looked at one by one, see :meth:`gru_fast.data.limits.Limits.check`.
    """
    rows, end = _num_embeddings(model), tokenizer.eos_token_id
    if rows is not None and end is not None and end >= rows:
        raise ValueError(
            f"tokenizer: {tokenizer.name_or_path or type(tokenizer).__name__} ends texts with the token {end} of "
            f"{len(tokenizer)}, the model has {rows} embeddings: they are of two models; give the model's own with "
            "--tokenizer"
        )


def positions_of(options: ModelOptions) -> int | None:
    """The positions of a model that is not loaded, by its configuration; None: no limit, or no configuration to read.

    What is wrong with a model is said when it is loaded, not here.
    """
    from transformers import AutoModelForCausalLM

    try:
        *_, (name, found) = lineage(options.model, options.base_model)  # of an adapter, its base
        config = configuration(name, found, options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=options.trust_remote_code)
    except Exception:  # noqa: BLE001 - whatever transformers raises for a configuration that it cannot read
        return None
    return limits_of(model).positions


def _num_embeddings(model: Any) -> int | None:
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    # Of a table that is sharded or quantized the shape of the weight is something else.
    return getattr(table, "num_embeddings", None)


def _sizes_of_tables(model: Any) -> Iterator[int]:
    """How many positions each table has, of text."""
    for path, module in model.named_modules():
        if _OF_OTHERS.search(path):
            continue
        if isinstance(module, nn.Embedding) and _TABLE.fullmatch(path.rpartition(".")[2]):
            # Some leave rows out at the beginning: a fixed number, or all up to that of the padding.
            unused = -1 if module.padding_idx is None else module.padding_idx
            yield module.num_embeddings - max(getattr(module, "offset", 0), unused + 1)
        for name, table in module.named_buffers(recurse=False):
            if table.is_floating_point() and table.ndim == 2 and _TABLE.fullmatch(name):
                yield table.shape[0]
        if hasattr(module, "build_mpt_alibi_tensor"):  # MPT's biases, which others make for the row at hand
            yield module.config.max_seq_len
