"""A benchmark's rows as a model is asked about them, and the model with the way it is asked.

A benchmark makes its rows of :class:`Prompt` and of sequences, says what a record is in terms of what a
:class:`Scorer` gives for them and of a text that is :func:`unwritten` yet, and leaves the rest to :func:`score_rows`:
rows of all sets are written side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gru_fast.data.sequences import Encoded, content_hash
from gru_fast.evaluation.backends import Backend
from gru_fast.evaluation.decoding import Draw
from gru_fast.evaluation.generation import Asked, generate, written
from gru_fast.evaluation.record_folder import RecordFolder, RowSet, Unwritten, score_sets
from gru_fast.evaluation.scoring import (
    SequenceLoss,
    TokenScores,
    gradient_norms,
    label_log_probs,
    losses,
    token_scores,
)
from gru_fast.evaluation.subject import asked_for, settings_of
from gru_fast.evaluation.summaries import SUMMARY_FILE
from gru_fast.models.forward import Autocast

AGREEMENT = "backend_agreement"  # in the settings of a summary


@dataclass(frozen=True)
class Prompt:
    """What a model is to go on with, as tokens, and how many it may write."""

    ids: list[int]
    max_new_tokens: int

    @property
    def content(self) -> str:
        """Hash of its tokens."""
        return content_hash({"input_ids": self.ids, "labels": []})


def unwritten(
    prompt: Prompt, record: Callable[[str], dict[str, Any]], *, begun: Sequence[int] = (), draw: Draw | None = None
) -> Unwritten:
    """A record that :func:`score_rows` makes of what the model writes after a prompt.

    Args:
        record: makes it of the text.
        begun, draw: see :class:`gru_fast.evaluation.generation.Asked`.
    """
    return Unwritten(Asked(prompt.ids, prompt.max_new_tokens, begun, draw), record)


@dataclass(frozen=True)
class Scorer:
    """A model and how it is asked: of all rows in the same way.

    Args:
        model, tokenizer: a causal LM and its tokenizer.
        pad_token_id: for padding; never attended.
        batch_size: sequences, or prompts, at a time.
        autocast: makes the context to run the model in.
        backend: writes the texts of records in place of the model.
    """

    model: Any
    tokenizer: Any
    pad_token_id: int
    batch_size: int = 16
    autocast: Autocast = nullcontext
    backend: Backend | None = None

    def log_probs(self, rows: Sequence[Encoded]) -> list[Tensor]:
        """See :func:`~gru_fast.evaluation.scoring.label_log_probs`; below as well, the function of that name."""
        return label_log_probs(self.model, rows, **self._batches)

    def losses(self, rows: Sequence[Encoded]) -> list[SequenceLoss]:
        """The mean loss of each sequence."""
        return losses(self.model, rows, **self._batches)

    def token_scores(self, rows: Sequence[Encoded]) -> list[TokenScores]:
        """Each sequence token by token."""
        return token_scores(self.model, rows, **self._batches)

    def gradient_norms(self, rows: Sequence[Encoded]) -> list[float]:
        """The norm of the gradient of each sequence's loss."""
        return gradient_norms(self.model, rows, autocast=self.autocast)

    def write(
        self,
        prompts: Sequence[Prompt],
        draws: Sequence[Draw] | None = None,
        begun: Sequence[Sequence[int]] | None = None,
    ) -> list[str]:
        """What the model writes after each prompt; greedily, or as ``draws`` say, one a prompt.

        ``begun``: of each prompt, tokens that it is known to write first; they are not computed again.
        """
        return generate(
            self.model,
            self.tokenizer,
            [prompt.ids for prompt in prompts],
            [prompt.max_new_tokens for prompt in prompts],
            batch_size=self.batch_size,
            autocast=self.autocast,
            draws=draws,
            begun=begun,
        )

    def writing(self, asked: Iterable[Sequence[Asked]]) -> Iterator[tuple[int, str]]:
        """Texts as they are written, see :func:`gru_fast.evaluation.generation.written`."""
        how: dict[str, Any] = {"batch_size": self.batch_size, "autocast": self.autocast, "backend": self.backend}
        return written(self.model, self.tokenizer, asked, **how)

    @property
    def _batches(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "pad_token_id": self.pad_token_id, "autocast": self.autocast}


def score_rows(
    scorer: Scorer,
    sets: Sequence[RowSet],
    output_dir: Path,
    settings: Mapping[str, Any],
    *,
    data: str | Path,
    progress: bool = True,
    overwrite: bool = False,
    model_options: Mapping[str, Any] | None = None,
) -> tuple[float | None, dict[str, Any]]:
    """Completes the records of an evaluation, ``output_dir/records``; every process must call it.

    Args:
        sets: what is asked of the rows.
        settings: what the records depend on beside the model.
        data: where the rows are from, for the summary.
        progress, overwrite: see :func:`score_sets`, :class:`RecordFolder`.
        model_options: how the model was asked for, for the summary; None: the name it was loaded by.

    Returns:
        Seconds that it took (None: nothing was left to score), and the settings for the summary.
    """
    settings = settings_of(scorer.model, settings)
    if scorer.backend is not None:
        settings["backend"] = scorer.backend.name
    folder = RecordFolder(output_dir / "records", settings, overwrite=overwrite)
    seconds = score_sets(
        folder,
        sets,
        batch_size=scorer.batch_size,
        write=scorer.writing,
        progress=progress,
        stale=output_dir / SUMMARY_FILE,
    )
    how = {"model_options": asked_for(scorer.model, model_options), "data": str(data), "batch_size": scorer.batch_size}
    if scorer.backend is not None and scorer.backend.compared:
        how[AGREEMENT] = scorer.backend.agreement()
    return seconds, {**how, **settings}
