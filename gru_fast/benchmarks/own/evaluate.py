"""Evaluation on people's own documents: how well a model knows what it is to forget, to keep, and has never seen.

  gru-fast eval own --model RUN                                        the documents of the run
  gru-fast eval own --model MODEL --forget leak/ --retain ours.jsonl --holdout similar.jsonl

Of each set: the probability of a token, the share of tokens that are right (exact memorization), the share of a text's
end that is completed without an error (extraction strength), and ROUGE-L of what the model writes after a beginning. Of
what is to be kept, only what was held out of training is asked about (--hold-out). What no model has seen (--holdout)
is what forgetting is measured by: below it, more is gone than was there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gru_fast.benchmarks.own.records import Asked, asked, score
from gru_fast.benchmarks.own.rows import HOLDOUT, MAX_LENGTH, RETAIN, OwnSources, config_of_run
from gru_fast.benchmarks.own.rows import title as title_of
from gru_fast.data.hashes import joined_hash
from gru_fast.data.own import Document
from gru_fast.data.sequences import content_hash
from gru_fast.data.templates import Template
from gru_fast.evaluation.asking import Scorer, score_rows
from gru_fast.evaluation.backends import Backend
from gru_fast.evaluation.record_folder import RowSet
from gru_fast.evaluation.subject import Subject, check_whole
from gru_fast.evaluation.summaries import SUMMARY_FILE
from gru_fast.metrics import own as metrics
from gru_fast.metrics import quick as look
from gru_fast.metrics.own import MEASURES, read_records
from gru_fast.models.forward import Autocast
from gru_fast.models.limits import limits_of, padding_id
from gru_fast.runs.files import read_json, write_json
from gru_fast.runs.processes import on_first

HELP = "memorization and continuations of your own documents"
PREFIX_TOKENS = 32
NEW_TOKENS = 64
Sets = Mapping[str, Sequence[Document]]
_OF_RUN = ("forget", "retain", "holdout", "data", "split", "columns", "hold_out", "max_length", "overlap")


@dataclass
class OwnEvalOptions(OwnSources):
    """What `gru-fast eval own` can be asked."""

    holdout: list[str] | None = field(
        default=None, metadata={"help": "documents of the same kind that no model has seen, to compare with"}
    )
    prefix_tokens: int = field(
        default=PREFIX_TOKENS, metadata={"help": "tokens of a text that the model is given to go on with"}
    )
    new_tokens: int = field(default=NEW_TOKENS, metadata={"help": "tokens that it writes then"})
    quick: bool = look.option()

    def __post_init__(self) -> None:
        problems = self.problems()
        if not self.forget and not self.data:
            problems.append("forget: no documents, and --model is no run that has any; give --forget FILES")
        if self.holdout and self.data:
            problems.append("holdout: named beside --data, which has it; give one of the two")
        for name in ("prefix_tokens", "new_tokens"):
            if getattr(self, name) < 1:
                problems.append(f"{name}: expected at least 1, got {getattr(self, name)}")
        if problems:
            raise ValueError("; ".join(problems))

    def sets(self) -> dict[str, list[Document]]:
        """The documents of each set that there is."""
        forget = self.documents("forget")
        trained, held = self.retained(forget)
        found = {"forget": forget, RETAIN: held or trained, HOLDOUT: self.documents(HOLDOUT)}
        return {name: documents for name, documents in found.items() if documents}


# ---- for gru-fast eval -----------------------------------------------------------------------------------------------

Options = OwnEvalOptions


def defaults_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration of a run says of the options, if it was on own documents."""
    known = config_of_run(config)
    return {name: known[name] for name in _OF_RUN if known.get(name) is not None}


def needs_model(options: OwnEvalOptions) -> bool:
    """Always; what is finished is printed without loading it."""
    return True


def title(options: OwnEvalOptions) -> str:
    """Name of the evaluation, and of its folder in that of the model."""
    return title_of(options) + (look.SUFFIX if options.quick else "")


def run(options: OwnEvalOptions, subject: Subject) -> dict[str, Any]:
    """The summary of a finished evaluation, or of one that is done now."""
    sets = options.sets()
    done = partial(evaluate, sets=sets, output_dir=subject.output_dir, quick=options.quick, **_how(options))
    again = partial(resummarize, subject.output_dir)
    return subject.evaluated(_wanted(options, subject.asked, sets), again, done)


def wanted(options: OwnEvalOptions, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a summary that answers ``options`` for the model that was ``asked`` for."""
    return _wanted(options, asked, options.sets())


def _wanted(options: OwnEvalOptions, asked: Mapping[str, Any], sets: Sets) -> dict[str, Any]:
    how = {"quick": options.quick or None, **_how(options)}
    return {"model_options": asked, "documents": _contents(sets), **how}


def _how(options: OwnEvalOptions) -> dict[str, Any]:
    names = ("max_length", "overlap", "prefix_tokens", "new_tokens")
    return {name: getattr(options, name) for name in names}


def _contents(sets: Sets) -> dict[str, str]:
    """A hash of each set's documents."""
    return {name: joined_hash(repr((each.id, each.texts)) for each in found) for name, found in sets.items()}


# A plot of removal against retention: the columns of both, and which way is better.
PLANE = {
    "Prob retain": "what is kept, higher is better",
    "ES forget": "what is left of it, lower is better, down to what was never seen",
}
KNOWLEDGE = ("ES forget", "EM forget", "ROUGE-L forget", "Prob forget")
_HEADINGS = {"probability": "Prob", "exact_memorization": "EM", "extraction_strength": "ES", "rougeL": "ROUGE-L"}


def columns(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What `gru-fast report` shows of a summary, by heading; None where it is not known."""
    measures = summary.get("measures") or {}
    shown = [(name, of) for of in ("forget", "retain") for name in MEASURES]
    return {f"{_HEADINGS[name]} {of}": measures.get(of, {}).get(name) for name, of in shown}


def report(summary: Mapping[str, Any]) -> str:
    """A summary for people to read."""
    counts = ", ".join(f"{rows['documents']} {name} ({rows['pieces']})" for name, rows in summary["num_rows"].items())
    names = list(summary["measures"])
    lines = [f"Own documents, and pieces of them: {counts}", f"{'':<54}" + "".join(f"{name:>10}" for name in names)]
    for measure, what in MEASURES.items():
        values = [summary["measures"][name].get(measure) for name in names]
        lines.append(f"{what:<54}" + "".join("         -" if value is None else f"{value:>10.4f}" for value in values))
    return "\n".join([*lines, *look.report(summary)])


# ---- the evaluation --------------------------------------------------------------------------------------------------


def evaluate(
    model: Any,
    tokenizer: Any,
    template: Template,
    sets: Sets,
    output_dir: str | Path,
    *,
    max_length: int | None = None,
    overlap: int | None = None,
    prefix_tokens: int = PREFIX_TOKENS,
    new_tokens: int = NEW_TOKENS,
    quick: bool = False,
    batch_size: int = 16,
    autocast: Autocast = nullcontext,
    backend: Backend | None = None,
    progress: bool = True,
    overwrite: bool = False,
    model_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores ``model`` on sets of documents; writes and returns the summary.

    ``output_dir`` then holds ``records/SET.jsonl`` (one line a piece, :class:`gru_fast.metrics.own.Record`) and
    ``summary.json``. Finished pieces are kept as they come: called again, it goes on where it was stopped. Where
    ``torch.distributed`` is initialised, the processes share the pieces.

    Args:
        model, tokenizer, template: a causal LM, its tokenizer, and the words around its questions.
        sets: of "forget", "retain" and "holdout" those there are.
        max_length, overlap: see :func:`gru_fast.data.pieces`; None: 512, or as many as the model has positions.
        prefix_tokens, new_tokens: what the model is given of a text, and what it writes.
        quick: every third piece of each set, see :mod:`gru_fast.metrics.quick`; the summary then has ``intervals``.
        backend: writes texts in place of the model, see :mod:`gru_fast.evaluation.backends`.
        overwrite: score anew even if there are records, of these or of other settings.
        model_options: how the model was asked for, for the summary; None: the name it was loaded by.

    Raises:
        ValueError: records of another model or other settings in ``output_dir``; a document that cannot be cut; a model
            that is sharded over the processes. RuntimeError: NaN or Inf from the model.
    """
    check_whole(model)
    output_dir, limits = Path(output_dir), limits_of(model)
    how = {"max_length": max_length, "overlap": overlap, "prefix_tokens": prefix_tokens, "new_tokens": new_tokens}
    length = min(filter(None, (max_length or MAX_LENGTH, max_length or limits.positions)))
    cut: dict[str, Any] = {**how, "max_length": length}
    every = look.step(quick)
    rows = {name: asked(documents, tokenizer, template, **cut)[::every] for name, documents in sets.items()}
    for name, found in rows.items():
        limits.check_rows(name, [each.row for each in found])
    scorer = Scorer(model, tokenizer, padding_id(model, tokenizer), batch_size, autocast, backend)
    settings = {
        "documents": _contents(sets),
        **how,
        **look.setting(quick),
        "rows": {name: joined_hash(content_hash(each.row) for each in found) for name, found in rows.items()},
    }
    seconds, settings = score_rows(
        scorer,
        [_set(name, found, scorer, every) for name, found in rows.items()],
        output_dir,
        settings,
        data=", ".join(sets),
        progress=progress,
        overwrite=overwrite,
        model_options=model_options,
    )
    return on_first(partial(_finish, output_dir, seconds=seconds, settings=settings))


def _set(name: str, rows: Sequence[Asked], scorer: Scorer, every: int) -> RowSet:
    lengths = [len(each.row["input_ids"]) for each in rows]
    return RowSet(name, rows, partial(score, scorer), lengths, every=every)


def resummarize(output_dir: str | Path) -> dict[str, Any]:
    """The summary of a finished evaluation, from its records: no model."""
    settings = read_json(Path(output_dir) / SUMMARY_FILE)["settings"]
    return _finish(Path(output_dir), seconds=None, settings=settings)


def _finish(output_dir: Path, *, seconds: float | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the summary. ``seconds`` None: nothing was scored now."""
    file = output_dir / SUMMARY_FILE
    before = read_json(file) if seconds is None and file.is_file() else {}
    records = {name: rows for name, rows in read_records(output_dir / "records").items() if name in settings["rows"]}
    of_documents = {name: metrics.by_document(rows) for name, rows in records.items()}
    summary = {
        "benchmark": "own",
        "measures": metrics.summarize(records),
        **({"intervals": _intervals(of_documents)} if settings.get("quick") else {}),
        "num_rows": {
            name: {"documents": len(of_documents[name]), "pieces": len(rows)} for name, rows in records.items()
        },
        "by_document": of_documents,
        "seconds": before.get("seconds") if seconds is None else seconds,
        "settings": dict(settings),
    }
    write_json(file, summary)
    return summary


def _intervals(of_documents: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, list[float]]:
    """Of the columns of a report: documents are drawn anew, of which pieces are parts."""
    names = [*MEASURES]
    shown = [name for name in ("forget", "retain") if name in of_documents]
    tables = {name: look.table(list(of_documents[name].values()), names) for name in shown}

    def scores(drawn: Mapping[str, look.Floats]) -> dict[str, float | None]:
        means = {name: look.means(rows) for name, rows in drawn.items()}
        return {
            f"{_HEADINGS[measure]} {name}": mean
            for name, found in means.items()
            for measure, mean in zip(names, found, strict=True)
        }

    return look.intervals(tables, scores)
