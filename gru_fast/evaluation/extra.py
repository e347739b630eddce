"""Optional metrics of a benchmark (``--metrics``): records row by row, one file per set of texts and kind of pass.

    FOLDER/SET/tokens.jsonl                   log p, right predictions, spread over the vocabulary; zlib length
    FOLDER/SET/gradients.jsonl                gradient norms
    FOLDER/SET/reference/reference.jsonl      losses under another model
    FOLDER/SET/gibberish/gibberish.jsonl      a classifier's opinion of the generations

Only the passes that the chosen metrics read are made, each resumable; a later choice of metrics adds passes, or none. A
benchmark lets its options inherit :class:`ExtraOptions`, says what the sets are (:class:`Sets`), and calls :func:`run`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from gru_fast.data.hashes import hash_of
from gru_fast.data.sequences import Encoded
from gru_fast.evaluation.extra_passes import (
    OF_MODEL,
    PASSES,
    ExtraScorer,
    folder_of,
    score_by_classifier,
    score_by_model,
    score_by_reference,
)
from gru_fast.evaluation.record_folder import differing, read_settings
from gru_fast.evaluation.subject import Subject, check_whole, settings_of
from gru_fast.metrics import extra, scores
from gru_fast.metrics.fluency import CLEAN_LABEL, GIBBERISH_MODEL, GIBBERISH_TOKENS
from gru_fast.models.limits import check_vocabulary, limits_of, padding_id
from gru_fast.runs.files import read_lines, write_json
from gru_fast.runs.processes import on_first

FOLDER = "extra"  # of the records, in that of an evaluation
Numbers = dict[str, dict[str, float | None]]  # metric -> its numbers, see gru_fast.metrics.extra.summarize


@dataclass(kw_only=True)  # a benchmark's own options come first
class ExtraOptions:
    """Optional metrics, for the options of a benchmark's evaluation to inherit.

    ``aggregates``: names of what the benchmark makes of several metrics, which it knows itself.
    """

    aggregates: ClassVar[tuple[str, ...]] = ()
    metrics: list[str] | None = field(
        default=None,
        metadata={"help": f"further numbers (gru-fast ls metrics): {', '.join(scores.names())}"},
    )
    reference_model: str | None = field(
        default=None, metadata={"help": "for mia_reference: a model that never saw the texts; as --model"}
    )
    gibberish_model: str = field(
        default=GIBBERISH_MODEL, metadata={"help": f'for gibberish: a text classifier with a label "{CLEAN_LABEL}"'}
    )
    gibberish_tokens: int = field(
        default=GIBBERISH_TOKENS,
        metadata={"help": "for gibberish: tokens of a text that it reads (open-unlearning: 512 on MUSE, 32 on TOFU)"},
    )

    def problems_of_metrics(self) -> list[str]:
        """What is wrong with them, for messages."""
        problems = []
        if self.gibberish_tokens < 1:
            problems.append(f"gibberish_tokens: expected at least 1, got {self.gibberish_tokens}")
        for name in self.metrics or ():
            if name in self.aggregates:
                continue
            try:
                fields = scores.get(name).fields
            except ValueError as error:
                problems.append(str(error))
                continue
            if "reference_loss" in fields and not self.reference_model:
                problems.append(f"reference_model: expected a model for {name}, got none; give --reference-model")
        return problems


@dataclass(frozen=True)
class Sets:
    """What the metrics are taken of.

    Args:
        measured: the sets that measures are averaged over.
        attacked: the forget set and the holdout set: texts of the same kind that no model was trained on.
        generations: set -> what the model wrote, row by row, where there is a prompt; for fluency and gibberish.
    """

    measured: tuple[str, ...] = ("forget", "retain")
    attacked: tuple[str, str] = ("forget", "holdout")
    generations: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def passes(self, names: Sequence[str]) -> dict[str, list[str]]:
        """set -> the passes over it that some metrics need; none where they read what the model wrote."""
        return {of: [each for each in PASSES if fields & {*PASSES[each]}] for of, fields in self.fields(names).items()}

    def fields(self, names: Sequence[str]) -> dict[str, set[str]]:
        """set -> the fields of its records that some metrics read."""
        found: dict[str, set[str]] = {}
        for metric in map(scores.get, names):
            for of in self.attacked if metric.is_attack else self.measured:
                found.setdefault(of, set()).update(metric.fields)
        return found

    def to_encode(self, names: Sequence[str]) -> list[str]:
        """The sets whose texts some metrics need as tokens."""
        return [of for of, passes in self.passes(names).items() if {*passes} - {"gibberish"}]


# ---- the evaluation --------------------------------------------------------------------------------------------------


def evaluated_with(
    subject: Subject,
    evaluate: Callable[[Subject], dict[str, Any]],
    measure: Callable[[Subject, dict[str, Any]], Numbers],
) -> dict[str, Any]:
    """The summary of an evaluation together with optional metrics; the model is loaded once for both, if at all.

    Args:
        evaluate: the benchmark's own evaluation of the subject -> its summary, which is on disk then.
        measure: subject, summary -> the numbers of the metrics.
    """
    subject = replace(subject, load=cache(subject.load))
    summary = evaluate(subject)
    numbers = measure(subject, summary)
    return on_first(lambda: _added(numbers, subject.summary_file, summary))


def run(
    options: ExtraOptions,
    subject: Subject,
    folder: Path,
    sets: Sets,
    encode: Callable[[Any, Any, Sequence[str]], Mapping[str, Sequence[Encoded]]],
    *,
    settings: Mapping[str, Any],
    retained: Path | None = None,
) -> Numbers:
    """The numbers of ``options.metrics``: from records if they are all there, else the model is loaded.

    Args:
        folder: of the records, see the top of this file.
        encode: (tokenizer, template, names of sets) -> their texts as tokens, of which the labels are scored.
        settings: of the benchmark, that the records depend on (split, template, ...), and known without the model.
        retained: such a folder of the retrained model, for PrivLeak; null where it does not hold the metric.
    """
    names = list(dict.fromkeys(options.metrics or ()))
    wanted = {**settings, "reference": options.reference_model, "gibberish_model": options.gibberish_model}
    wanted["gibberish_tokens"] = options.gibberish_tokens
    if subject.asked.get("dtype", "auto") != "auto":
        wanted["dtype"] = subject.asked["dtype"]

    def known() -> Numbers | None:
        kept = None if subject.overwrite else read(names, folder, sets, wanted, subject.is_older_than)
        return None if kept is None else summarize(names, kept, folder, sets, retained)

    numbers = on_first(known)
    if numbers is not None:
        return numbers
    model, tokenizer, template = subject.load()
    scorer = ExtraScorer(
        model,
        tokenizer,
        padding_id(model, tokenizer),
        reference=partial(_load_reference, str(options.reference_model), subject, model, tokenizer),
        reference_name=options.reference_model,
        gibberish_model=options.gibberish_model,
        gibberish_tokens=options.gibberish_tokens,
        batch_size=subject.batch_size,
        progress=subject.progress,
        overwrite=subject.overwrite,
    )
    sequences = encode(tokenizer, template, sets.to_encode(names))
    return evaluate(names, sets, sequences, folder, scorer, settings=settings, retained=retained)


def evaluate(
    names: Sequence[str],
    sets: Sets,
    sequences: Mapping[str, Sequence[Encoded]],
    folder: str | Path,
    scorer: ExtraScorer,
    *,
    settings: Mapping[str, Any],
    retained: Path | None = None,
) -> Numbers:
    """Scores what some metrics need and is not there yet, and returns their numbers; see :func:`run`.

    Raises:
        ValueError: records of another model, of other texts or settings (``scorer.overwrite`` scores anew).
        RuntimeError: NaN or Inf from a model.
    """
    check_whole(scorer.model)
    folder = Path(folder)
    passes = sets.passes(names)
    if scorer.reference is None and any("reference" in each for each in passes.values()):
        raise ValueError("reference: expected a loader of the reference model for mia_reference, got none")
    own = settings_of(scorer.model, settings)
    for of, rows in sequences.items():
        limits_of(scorer.model).check_rows(of, rows)
    for of in passes:
        if any(each in passes[of] for each in OF_MODEL):
            score_by_model(scorer, folder / of, sequences[of], passes[of], own)
    score_by_reference(scorer, folder, {of: sequences[of] for of in passes if "reference" in passes[of]}, settings)
    score_by_classifier(scorer, folder, {of: sets.generations[of] for of in passes if "gibberish" in passes[of]})

    def numbers() -> Numbers:
        found = read(names, folder, sets)
        if found is None:
            raise RuntimeError(f"{folder}: rows are missing after all were scored; was it written to meanwhile?")
        return summarize(names, found, folder, sets, retained)

    return on_first(numbers)


def summarize(
    names: Sequence[str], records: scores.TextRecords, folder: Path, sets: Sets, retained: Path | None = None
) -> Numbers:
    """The numbers of some metrics, of records that are there; see :func:`run`."""
    numbers: Numbers = {}
    for name in names:
        theirs = None
        if retained is not None and scores.get(name).is_attack:
            theirs = read([name], retained, sets)
            for of in sets.attacked if theirs else ():
                _check_same_texts(name, folder, retained, of)
        numbers |= extra.summarize([name], records, theirs, measured=sets.measured, attacked=sets.attacked)
    return numbers


def read(
    names: Sequence[str],
    folder: Path,
    sets: Sets,
    wanted: Mapping[str, Any] | None = None,
    is_current: Callable[[Path], bool] = lambda file: True,
) -> scores.TextRecords | None:
    """The records that some metrics need; None if they are not all there. Nothing is loaded or written.

    Args:
        wanted: settings that the records must have been scored with, as far as a pass depends on them.
        is_current: of the file of a pass's settings, whether it is newer than the model.
    """
    passes = sets.passes(names)
    found: dict[str, list[scores.TextRecord]] = {}
    for of, fields in sets.fields(names).items():
        parts: dict[str, Sequence[Mapping[str, Any]]] = {}
        generations = sets.generations.get(of, ())
        if "generation" in fields:
            parts["generations"] = [{"index": i, "generation": text} for i, text in enumerate(generations)]
        for each in passes[of]:
            path = folder_of(folder, of, each)
            kept = read_settings(path) or {}
            if each == "gibberish" and kept:
                kept = {"gibberish_tokens": GIBBERISH_TOKENS, **kept}  # which is not written down
            asked = {key: value for key, value in (wanted or {}).items() if key in kept}
            if each == "gibberish":
                asked["texts"] = hash_of(generations)
            if differing({key: kept.get(key) for key in asked}, asked):
                return None
            if each in OF_MODEL and kept and not is_current(path / "settings.json"):
                return None
            rows = _read_rows(path / f"{each}.jsonl")
            if not kept or len(rows) != kept["num_rows"]:
                return None
            parts[each] = rows
        found[of] = extra.merge(parts, str(folder / of))
    return found


def find(retain_logs: str | None, title: str) -> Path | None:
    """Where the records of a retrained model are: in its run's ``eval/TITLE``, in the evaluation's folder or beside its
    records; None where there are none, as with a published log."""
    if retain_logs is None:
        return None
    path = Path(retain_logs)
    places = (path / "eval" / title, path, *([path.parent] if path.name == "records" else []))
    return next((place / FOLDER for place in places if (place / FOLDER).is_dir()), None)


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of records; none where there is no file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in read_lines(file)[:-1]]  # the last is empty, or was cut off


def _load_reference(name: str, subject: Subject, model: Any, tokenizer: Any) -> Any:
    from gru_fast.models.load import ModelOptions, load_model

    how = {key: subject.asked[key] for key in ("dtype", "attn_implementation") if key in subject.asked}
    reference = load_model(ModelOptions(model=name, **how)).to(model.device)
    check_vocabulary(reference, tokenizer)
    return reference


def _check_same_texts(name: str, folder: Path, retained: Path, of: str) -> None:
    """Refuses a retrained model's records of other texts."""
    each = next(each for each in PASSES if {*scores.get(name).fields} & {*PASSES[each]})
    ours, theirs = (read_settings(folder_of(path, of, each)) or {} for path in (folder, retained))
    if ours["texts"] != theirs["texts"]:
        raise ValueError(
            f"retained model: {retained / of} was scored on other texts ({theirs['num_rows']} rows, ours "
            f"{ours['num_rows']}), or with another tokenizer or template; evaluate both models in the same way"
        )


def _added(numbers: Numbers, file: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with these numbers under "extra", written to its file.

    Those of an earlier choice stay: the records are of the same model, or would have been refused.
    """
    found = {**summary, "extra": {**summary.get("extra", {}), **numbers}}
    write_json(file, found)
    return found


# ---- for people ------------------------------------------------------------------------------------------------------


def report(numbers: Mapping[str, Mapping[str, float | None]]) -> str:
    """The numbers as tables: measures by set, attacks with the retrained model's."""
    measures = {name: row for name, row in numbers.items() if "auc" not in row}
    attacks = {name: row for name, row in numbers.items() if "auc" in row}
    lines = []
    if measures:
        sets = list(dict.fromkeys(of for row in measures.values() for of in row))
        lines.append(f"{'':<28}" + "".join(f"{of.replace('_', ' '):>14}" for of in sets))
        lines += [f"{name:<28}" + "".join(_number(row.get(of)) for of in sets) for name, row in measures.items()]
    if attacks:
        lines += [""] if lines else []
        lines.append(f"{'':<28}{'AUC':>14}{'retrained AUC':>14}{'PrivLeak %':>14}{'rel. diff. %':>14}")
        lines += [
            f"{name:<28}" + "".join(_number(row.get(key)) for key in ("auc", "retained_auc", "privleak", "rel_diff"))
            for name, row in attacks.items()
        ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.6f'):>14}"
