"""The optional metrics on TOFU: of the answers of the forget and retain sets, and membership against a holdout set.

Forget and retain rows, template and length are those of the evaluation, and so are the generations. Members are the
forget rows, non-members those of holdout01, holdout05 or holdout10: questions on authors that no model was trained on,
which the hub has for membership inference (the original data have none; a folder needs a file of its own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gru_fast.benchmarks.tofu.rows import load, load_eval_sets
from gru_fast.data.rows import Row
from gru_fast.data.sequences import Encoded
from gru_fast.data.templates import encode_rows
from gru_fast.evaluation import extra
from gru_fast.evaluation.subject import Subject
from gru_fast.metrics.aggregate import aggregates, with_needs
from gru_fast.metrics.logs import read_records

_SETTINGS = ("split", "template", "max_length", "max_rows")  # of the evaluation, that the records depend on


def load_rows(names: Sequence[str], split: str, data: str | Path, max_rows: int | None) -> dict[str, list[Row]]:
    """Rows of the sets that some metrics need as tokens, the first ``max_rows`` of each.

    Raises:
        FileNotFoundError: no holdout rows, with where to get them.
    """
    sets = extra.Sets().to_encode(with_needs(names))
    found = {of: rows for of, rows in load_eval_sets(split, data, max_rows).items() if of in sets} if sets else {}
    if "holdout" in sets:
        name = split.replace("forget", "holdout")
        try:
            found["holdout"] = load(name, data)[:max_rows]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"metrics: membership inference needs questions that no model was trained on, {name} of locuslab/TOFU "
                f"on the hub, or {name}.json in the folder: {error}"
            ) from None
    return found


def measure(
    options: extra.ExtraOptions,
    subject: Subject,
    rows: Mapping[str, Sequence[Row]],
    summary: Mapping[str, Any],
    retain_logs: str | None,
) -> extra.Numbers:
    """The numbers of ``options.metrics`` for a model whose evaluation is done.

    Args:
        rows: of :func:`load_rows`.
        summary: of the evaluation.
        retain_logs: the retrained model's evaluation or run; PrivLeak is null if it has no records of the metric.
    """
    settings = {name: summary["settings"][name] for name in _SETTINGS}
    records = read_records(subject.output_dir / "records")
    generations = {of: [record.generation or "" for record in records.get(of, ())] for of in extra.Sets().measured}

    def encode(tokenizer: Any, template: Any, sets: Sequence[str]) -> dict[str, list[Encoded]]:
        pairs = {of: [(row["question"], row["answer"]) for row in rows[of]] for of in sets}
        return {of: encode_rows(tokenizer, template, pairs[of], settings["max_length"]) for of in sets}

    names = options.metrics or []
    numbers = extra.run(
        replace(options, metrics=with_needs(names)),
        subject,
        subject.output_dir / extra.FOLDER,
        extra.Sets(generations=generations),
        encode,
        settings=settings,
        retained=extra.find(retain_logs, f"tofu-{settings['split']}"),
    )
    return {**numbers, **aggregates(names, numbers, records, summary["model_utility"])}
