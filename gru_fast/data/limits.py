"""What a model can read, as numbers, and the rows that it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Token ids below ``tokens``, rows of up to ``positions`` tokens; None: no such limit.

    See :func:`gru_fast.models.limits.limits_of`.
    """

    tokens: int | None = None
    positions: int | None = None

    def check(
        self,
        where: str,
        ids: Sequence[int],
        more: int = 0,
        *,
        option: str | None = "--max-length",
        more_option: str | None = None,
    ) -> None:
        """Refuses a row that the model cannot read: torch would say "index out of range", and CUDA would stop for good.

        Args:
            where: the row, for messages.
            ids: its tokens.
            more: tokens that the model is to write after them; the last of these it does not read.
            option, more_option: flags that say how long a row is, with what is written, and how much is written.

        Raises:
            ValueError: a token without embedding, or more tokens than the model has positions.
        """
        top = max(ids, default=0)
        if self.tokens is not None and top >= self.tokens:
            raise ValueError(
                f"{where}: has the token {top}, and the model embeddings of 0 to {self.tokens - 1} alone: its "
                "tokenizer is of another model, or tokens were added to it; give the model's own with --tokenizer"
            )
        if self.positions is not None and len(ids) + max(more - 1, 0) > self.positions:
            room = self.positions + 1 - len(ids)
            advice = [f"give {option} {self.positions}"] if option else []
            advice += [f"give {more_option} {room}"] if more_option and room > 0 else []
            written = f" and {more} to write" if more else ""
            raise ValueError(
                f"{where}: {len(ids)} tokens{written} are more than the model's {self.positions} positions; "
                + " or ".join([*advice, "leave the row out"])
            )

    def check_rows(self, part: str, rows: Sequence[Mapping[str, Any]], option: str | None = "--max-length") -> None:
        """:meth:`check` of the ``input_ids`` of rows, which are named ``part[0]``, ``part[1]``, ..."""
        for index in range(len(rows)):
            self.check(f"{part}[{index}]", rows[index]["input_ids"], option=option)
