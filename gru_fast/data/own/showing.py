"""What would be trained, for people to read: tokens, and which of them are scored."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import groupby
from typing import IO, Any

from gru_fast.data.sequences import IGNORE_INDEX, Encoded, num_labels

_GREEN, _DIM, _OFF = "\x1b[32m", "\x1b[2m", "\x1b[0m"
_ESCAPES = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\e"})


def show(rows: Iterable[tuple[str, Encoded]], tokenizer: Any, *, color: bool = False) -> str:
    """Rows with their names: runs of tokens, cut by ``|``, in lines that begin with ``+`` where they are scored.

    Args:
        color: the scored green, the others dim, by the escapes of terminals.
    """
    return "\n\n".join(_row(name, row, tokenizer, color) for name, row in rows)


def wants_color(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that shows colours, and nobody asked for none (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _row(name: str, row: Encoded, tokenizer: Any, color: bool) -> str:
    ids = row["input_ids"]
    # Label 0 has nothing before it and is never predicted.
    scored = [index > 0 and label != IGNORE_INDEX for index, label in enumerate(row["labels"])]
    lines = [f"{name}: {len(ids)} tokens, {num_labels(row)} scored"]
    for is_scored, run in groupby(range(len(ids)), key=scored.__getitem__):
        text = "|".join(_token(ids[index], tokenizer) for index in run)
        line = f"{'+' if is_scored else '-'} {text}"
        lines.append(f"{_GREEN if is_scored else _DIM}{line}{_OFF}" if color else line)
    return "\n".join(lines)


def _token(token: int, tokenizer: Any) -> str:
    """What a token says; of one that is part of a letter, its name in the vocabulary."""
    text = tokenizer.decode([token])
    if not text or "\ufffd" in text:
        text = str(tokenizer.convert_ids_to_tokens(token))
    return text.translate(_ESCAPES)
