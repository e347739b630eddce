"""The optional metrics on MUSE: of the gold continuations and answers, and membership by the texts of privleak.

Prompts, gold texts and what the model wrote are those of the evaluation. Gold is tokenized by itself and put behind the
prompt's tokens, without an end-of-sequence token: where a metric leaves the last label out, that is the last token of
the text, as in the unified framework. It takes the memorization of verbmem alone; here there are the questions as well.

PrivLeak of the evaluation is of all tokens and ``--min-k``; that of ``mia_min_k`` is the unified framework's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gru_fast.benchmarks.muse.records import Question, load_prompts, load_texts
from gru_fast.data.sequences import IGNORE_INDEX, Encoded
from gru_fast.evaluation import extra
from gru_fast.evaluation.subject import Subject
from gru_fast.metrics.muse import GENERATION_SETS, SURPRISE_SETS, read_records

_SETTINGS = ("corpus", "verbmem_tokens", "knowmem_tokens", "max_rows")  # that the records depend on


def measure(
    options: extra.ExtraOptions,
    subject: Subject,
    data: str | Path,
    summary: Mapping[str, Any],
    retain_logs: str | None,
) -> extra.Numbers:
    """The numbers of ``options.metrics`` for a model whose evaluation is done.

    Args:
        data: hub name or folder, see :func:`gru_fast.benchmarks.muse.load`.
        summary: of the evaluation.
        retain_logs: the retrained model's evaluation or run; PrivLeak is null if it has no records of the metric.
    """
    settings = {name: summary["settings"][name] for name in _SETTINGS}
    records = read_records(subject.output_dir / "records")
    limits = {name: settings[name] for name in ("verbmem_tokens", "knowmem_tokens", "max_rows")}

    def encode(tokenizer: Any, template: Any, sets: Sequence[str]) -> dict[str, list[Encoded]]:
        found: dict[str, list[Encoded]] = {}
        if any(of in GENERATION_SETS for of in sets):
            prompts = load_prompts(tokenizer, data, **limits)
            found |= {of: [_with_gold(tokenizer, prompt) for prompt in rows] for of, rows in prompts.items()}
        if any(of in SURPRISE_SETS for of in sets):
            found |= load_texts(tokenizer, data, max_rows=settings["max_rows"])
        return {of: found[of] for of in sets}

    return extra.run(
        options,
        subject,
        subject.output_dir / extra.FOLDER,
        extra.Sets(
            measured=GENERATION_SETS,
            attacked=SURPRISE_SETS,
            generations={of: [row.generation for row in records[of]] for of in GENERATION_SETS},
        ),
        encode,
        settings=settings,
        retained=extra.find(retain_logs, f"muse-{settings['corpus']}"),
    )


def _with_gold(tokenizer: Any, prompt: Question) -> Encoded:
    """A prompt with what ought to come after it; that is scored."""
    gold = tokenizer(prompt.reference, add_special_tokens=False)["input_ids"]
    return {"input_ids": [*prompt.ids, *gold], "labels": [IGNORE_INDEX] * len(prompt.ids) + list(gold)}
