"""lm-eval's model of transformers, whose questions several processes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gru_fast.data.limits import Limits
from gru_fast.models.limits import limits_of
from gru_fast.runs.processes import gather, here

_Request = tuple[Any, list[int], list[int]]  # text, tokens of the context, tokens of the continuation


def shared(hflm: type) -> type:
    """A class like ``lm_eval.models.huggingface.HFLM``, which is slow to import and so is given.

    Each process makes one around its whole model and asks it everything; every process gets all answers. They take
    turns at lm-eval's own batches, so that an answer does not depend on how many they are, bit for bit.
    """

    class SharedHFLM(hflm):
        def _loglikelihood_tokens(
            self, requests: Sequence[_Request], *args: Any, **kwargs: Any
        ) -> list[tuple[float, bool]]:
            limits = Limits(limits_of(self.model).tokens)  # of longer questions lm-eval leaves out the beginning
            for text, context, continuation in requests:
                limits.check(f"the question {_end(text)!r}", [*context, *continuation])
            rank, world = here()
            own = [i for batch in batches(requests, self.batch_size)[rank::world] for i in batch]
            found = super()._loglikelihood_tokens([requests[i] for i in own], *args, **kwargs)
            answers = {i: answer for part in gather(dict(zip(own, found, strict=True))) for i, answer in part.items()}
            return [answers[i] for i in range(len(requests))]

    return SharedHFLM


def _end(text: Any) -> str:
    """The last letters of what is asked: a text, or one with its answer."""
    return str(text[0] if isinstance(text, tuple) else text)[-60:]


def batches(requests: Sequence[_Request], batch_size: int) -> list[list[int]]:
    """Requests by their place, in the batches that lm-eval makes of them.

    Choices of one token to the same question take one row of a batch, since one pass gives them all; rows are in the
    order of their length, longest first, then of their tokens.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, (_, context, continuation) in enumerate(requests):
        rows.setdefault((*context, *continuation[:-1]), []).append(i)

    def place(row: list[int]) -> tuple[int, list[int]]:
        _, context, continuation = requests[max(row, key=lambda i: len(requests[i][2]))]
        return -len(context) - len(continuation), [*context, *continuation]

    order = sorted(rows.values(), key=place)
    return [[i for row in order[start : start + batch_size] for i in row] for start in range(0, len(order), batch_size)]
