"""Evaluation on MUSE: verbatim and knowledge memorization, privacy leakage and utility of a model, News or Books.

  gru-fast eval muse --model RUN --retain-logs RETAINED_RUN
  gru-fast eval muse --model muse-bench/MUSE-Books_retrain --data muse-bench/MUSE-Books --output-dir retrain

PrivLeak is relative to the retrained model: evaluate that first, or give the published auc.json of one. Prompts are
texts without a template. ROUGE without stemmer as in the original code; the unified framework has one (--stemmer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gru_fast.benchmarks.muse import extra as muse_extra
from gru_fast.benchmarks.muse.records import (
    Question,
    check,
    content,
    load_prompts,
    load_texts,
    score_answer,
    score_surprise,
    score_text,
)
from gru_fast.benchmarks.muse.rows import CORPORA, HUB, corpus_of
from gru_fast.data.sequences import Encoded, content_hash
from gru_fast.evaluation import extra
from gru_fast.evaluation.asking import Scorer, score_rows
from gru_fast.evaluation.backends import Backend
from gru_fast.evaluation.record_folder import RowSet, check_settings
from gru_fast.evaluation.subject import Subject, check_whole
from gru_fast.evaluation.summaries import SUMMARY_FILE
from gru_fast.metrics import mia
from gru_fast.metrics import muse as metrics
from gru_fast.metrics import quick as look
from gru_fast.metrics.muse import MIN_KS, Records, Retained, read_records, read_retained
from gru_fast.metrics.rouge import warn_of_dropped
from gru_fast.metrics.unified import FORMAT, write_unified_muse
from gru_fast.models.forward import Autocast
from gru_fast.models.limits import limits_of, padding_id
from gru_fast.runs.files import read_json, write_json
from gru_fast.runs.processes import on_first

HELP = "memorization, privacy leakage and utility of a model on MUSE News or Books"
VERBMEM_TOKENS = 128
KNOWMEM_TOKENS = 32


@dataclass
class MuseEvalOptions(extra.ExtraOptions):
    """What `gru-fast eval muse` can be asked."""

    data: str | None = field(
        default=None,
        metadata={
            "help": f"{' or '.join(CORPORA.values())} on the hub, or a folder in the original layout; by default as in "
            f"the run of --model, else {HUB}"
        },
    )
    retain_logs: str | None = field(
        default=None,
        metadata={
            "help": "evaluation of the retrained model, for PrivLeak: its run folder, the folder of its evaluation, or "
            f"a published {metrics.AUC_FILE} or {metrics.UNIFIED_FILE}"
        },
    )
    write_log: str | None = field(
        default=None,
        metadata={
            "help": f"write a log for another program: {FORMAT}, whose evaluator goes on from it",
            "choices": (FORMAT,),
        },
    )
    min_k: float = field(
        default=mia.MIN_K,
        metadata={"help": "PrivLeak: share of a text's tokens, its least probable ones", "choices": MIN_KS},
    )
    stemmer: bool = field(default=False, metadata={"help": "ROUGE of word stems, as the unified framework's"})
    max_rows: int = field(default=0, metadata={"help": "the first rows of each set; 0 for all, as published"})
    quick: bool = look.option()
    verbmem_tokens: int = field(default=VERBMEM_TOKENS, metadata={"help": "tokens to go on with a text"})
    knowmem_tokens: int = field(default=KNOWMEM_TOKENS, metadata={"help": "tokens of an answer"})

    def __post_init__(self) -> None:
        least = {"max_rows": 0, "verbmem_tokens": 2, "knowmem_tokens": 1}
        problems = [
            f"{name}: expected at least {low}, got {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if self.write_log not in (None, FORMAT):
            problems.append(f'write_log: expected {FORMAT}, got "{self.write_log}"')
        if self.min_k not in MIN_KS:
            problems.append(f"min_k: expected one of {', '.join(map(str, MIN_KS))}, got {self.min_k}")
        if self.quick and self.metrics:
            problems.append("quick: expected no metrics beside it, which read all rows; leave one of them out")
        if self.quick and self.write_log is not None:
            problems.append("quick: a log for another program is of all rows; leave write_log out")
        problems += self.problems_of_metrics()
        if problems:
            raise ValueError("; ".join(problems))


# ---- for gru-fast eval -----------------------------------------------------------------------------------------------

Options = MuseEvalOptions


def defaults_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration of a run says of the options, if it was on MUSE."""
    return {"data": config["data"]} if config.get("benchmark") == "muse" and config.get("data") else {}


def needs_model(options: MuseEvalOptions) -> bool:
    """Always; what is finished is printed without loading it."""
    return True


def title(options: MuseEvalOptions) -> str:
    """Name of the evaluation, and of its folder in that of the model."""
    return f"muse-{corpus_of(options.data or HUB)}{look.SUFFIX if options.quick else ''}"


def run(options: MuseEvalOptions, subject: Subject) -> dict[str, Any]:
    """The summary of a finished evaluation, or of one that is done now."""
    summary = _with_metrics(options, subject)
    if options.write_log is not None:
        folder = subject.output_dir
        on_first(lambda: write_unified_muse(read_records(folder / "records"), folder, summary.get("extra")))
    return summary


def _with_metrics(options: MuseEvalOptions, subject: Subject) -> dict[str, Any]:
    if not options.metrics:
        return _run(options, subject)
    return extra.evaluated_with(
        subject,
        partial(_run, options),
        lambda subject, summary: muse_extra.measure(
            options, subject, options.data or HUB, summary, options.retain_logs
        ),
    )


def _run(options: MuseEvalOptions, subject: Subject) -> dict[str, Any]:
    limits, data = _limits(options), options.data or HUB
    corpus = corpus_of(data)
    # What would be refused after the model is loaded is refused before.
    retained = None
    if options.retain_logs is not None:
        retained = read_retained(options.retain_logs, corpus, quick=options.quick)
    how: dict[str, Any] = {"retained": retained, "stemmer": options.stemmer, "k": options.min_k}

    def check() -> None:
        if not subject.overwrite:
            check_settings(subject.output_dir / "records", {"corpus": corpus, **limits})

    def done(model: Any, tokenizer: Any, template: Any, **of_subject: Any) -> dict[str, Any]:
        return evaluate(model, tokenizer, data, subject.output_dir, **of_subject, **how, **limits)

    again = partial(resummarize, subject.output_dir, **how)
    return subject.evaluated(wanted(options, subject.asked), again, done, check)


def wanted(options: MuseEvalOptions, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a summary that answers ``options`` for the model that was ``asked`` for."""
    return {"data": options.data or HUB, "model_options": asked, "quick": None, **_limits(options)}


def _limits(options: MuseEvalOptions) -> dict[str, Any]:
    return {
        "max_rows": options.max_rows or None,
        "verbmem_tokens": options.verbmem_tokens,
        "knowmem_tokens": options.knowmem_tokens,
        **look.setting(options.quick),
    }


# A plot of removal against retention: the columns of both, and which way is better.
PLANE = {
    "KnowMem retain": "what is kept, higher is better",
    "PrivLeak": "0 is best; below, something is left, above, too much is gone",
}

KNOWLEDGE = ("VerbMem forget", "KnowMem forget")


def columns(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What `gru-fast report` shows of a summary, by heading; None where it is not known."""
    return {
        "VerbMem forget": summary.get("verbmem_f"),
        "KnowMem forget": summary.get("knowmem_f"),
        "PrivLeak": summary.get("privleak"),
        "KnowMem retain": summary.get("knowmem_r"),
    }


def report(summary: Mapping[str, Any]) -> str:
    """A summary for people to read."""
    rows, leak = summary["num_rows"], summary["mia"]
    lines = [f"MUSE {summary['corpus']}: {', '.join(f'{count} {name}' for name, count in rows.items())} rows"]
    for name, what in (
        ("verbmem_f", "VerbMem on forget, ROUGE-L F1"),
        ("knowmem_f", "KnowMem on forget, ROUGE-L F1"),
        ("knowmem_r", "KnowMem on retain, ROUGE-L F1 (utility)"),
    ):
        lines.append(f"{what:<41}{summary[name]:>9.2f} %")
    auc = f"AUC {leak['auc']:.4f}"
    if summary["privleak"] is None:
        lines.append(f"{'PrivLeak':<41}{'-':>9}    {auc} (give --retain-logs: the retrained model's run or log)")
    else:
        lines.append(f"{'PrivLeak':<41}{summary['privleak']:>9.2f} %  {auc}, retrained {leak['retain_auc']:.4f}")
    if summary.get("extra"):
        lines.append("\n" + extra.report(summary["extra"]))
    return "\n".join([*lines, *look.report(summary)])


# ---- the evaluation --------------------------------------------------------------------------------------------------


def evaluate(
    model: Any,
    tokenizer: Any,
    data: str | Path,
    output_dir: str | Path,
    *,
    retained: Retained | str | Path | None = None,
    batch_size: int = 16,
    verbmem_tokens: int = VERBMEM_TOKENS,
    knowmem_tokens: int = KNOWMEM_TOKENS,
    max_rows: int | None = None,
    quick: bool = False,
    stemmer: bool = False,
    k: float = mia.MIN_K,
    autocast: Autocast = nullcontext,
    backend: Backend | None = None,
    progress: bool = True,
    overwrite: bool = False,
    model_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores ``model`` on the five sets of a corpus; writes and returns the summary.

    ``output_dir`` then holds ``records/SET.jsonl`` (one line a row, see :mod:`gru_fast.metrics.muse`) and
    ``summary.json``. Finished rows are kept as they come: called again, it goes on where it was stopped, and scores
    nothing when all rows are there. See :mod:`gru_fast.benchmarks.muse.records` for what is asked of the model.

    Where ``torch.distributed`` is initialised, the processes share the rows: all must call it, each with the same
    arguments and the whole model, and all get the summary.

    Args:
        model, tokenizer: a causal LM and its tokenizer.
        data: hub name or folder, see :func:`gru_fast.benchmarks.muse.load`.
        retained: the retrained model's evaluation (:func:`gru_fast.metrics.muse.read_retained`), for PrivLeak; None: it
            is null in the summary.
        batch_size: rows at a time.
        verbmem_tokens, knowmem_tokens: tokens that the model writes.
        max_rows: the first rows of each set; None: all.
        quick: every third of those, see :mod:`gru_fast.metrics.quick`; the summary then has ``intervals``. PrivLeak
            compares them with the same rows of ``retained``.
        stemmer, k: see :func:`~gru_fast.metrics.muse.mean_overlap`, :func:`~gru_fast.metrics.muse.leak_auc`.
        backend: writes texts in place of the model, see :mod:`gru_fast.evaluation.backends`.
        overwrite: score anew even if there are records, of these or of other settings.
        model_options: how the model was asked for, for the summary; None: the name it was loaded by.

    Raises:
        ValueError: records of another model or other settings in ``output_dir``; a row that the model cannot read; a
            retrained model's log of other texts; a model that is sharded over the processes. RuntimeError: NaN or Inf
            from the model.
    """
    check_whole(model)
    output_dir = Path(output_dir)
    corpus = corpus_of(data)
    scorer = Scorer(model, tokenizer, padding_id(model, tokenizer), batch_size, autocast, backend)
    prompts = load_prompts(
        tokenizer, data, verbmem_tokens=verbmem_tokens, knowmem_tokens=knowmem_tokens, max_rows=max_rows
    )
    texts = load_texts(tokenizer, data, max_rows=max_rows)
    every = look.step(quick)
    prompts = {name: rows[::every] for name, rows in prompts.items()}
    texts = {name: rows[::every] for name, rows in texts.items()}
    sets: dict[str, Sequence[Question] | Sequence[Encoded]] = {**prompts, **texts}
    check(limits_of(model), sets)
    for name, questions in prompts.items():
        warn_of_dropped([question.reference for question in questions], name)
    # What PrivLeak would refuse after the work is refused before it.
    if isinstance(retained, (str, Path)):
        retained = read_retained(retained, corpus, quick=quick)
    if retained is not None:
        retained.auc(k)
        for name, rows in texts.items():
            retained.check_texts(name, map(content_hash, rows))
    settings = {
        "corpus": corpus,
        "verbmem_tokens": verbmem_tokens,
        "knowmem_tokens": knowmem_tokens,
        "max_rows": max_rows,
        **look.setting(quick),
        "rows": {name: content(rows) for name, rows in sets.items()},
    }
    how: dict[str, Any] = {"progress": progress, "overwrite": overwrite, "model_options": model_options}
    seconds, settings = score_rows(
        scorer, _asked(scorer, prompts, texts, every), output_dir, settings, data=data, **how
    )
    return on_first(lambda: _finish(output_dir, retained, stemmer, k, seconds=seconds, settings=settings))


def _asked(
    scorer: Scorer, prompts: Mapping[str, Sequence[Question]], texts: Mapping[str, Sequence[Encoded]], every: int
) -> list[RowSet]:
    """What is asked of the rows of each set, of which one of ``every`` is scored."""
    work = {"verbmem_f": score_text, "knowmem_f": score_answer, "knowmem_r": score_answer}
    surprise = partial(score_surprise, scorer)
    return [
        *(
            RowSet(name, rows, work[name], [len(row.ids) for row in rows], every=every)
            for name, rows in prompts.items()
        ),
        *(
            RowSet(name, rows, surprise, [len(row["input_ids"]) for row in rows], every=every)
            for name, rows in texts.items()
        ),
    ]


def resummarize(
    output_dir: str | Path, retained: Retained | None = None, stemmer: bool = False, k: float = mia.MIN_K
) -> dict[str, Any]:
    """The summary of a finished evaluation, from its records: no model. PrivLeak stays as it was if it was known."""
    settings = read_json(Path(output_dir) / SUMMARY_FILE)["settings"]
    return _finish(Path(output_dir), retained, stemmer, k, seconds=None, settings=settings)


def summarize(
    records: Records, retained: Retained | None = None, stemmer: bool = False, k: float = mia.MIN_K
) -> dict[str, Any]:
    """The numbers of a summary: the four of MUSE in percent, what is behind PrivLeak, rows."""
    auc = metrics.leak_auc(records, k)
    retain_auc = None
    if retained is not None:
        retain_auc = retained.auc(k)
        for name in metrics.SURPRISE_SETS:
            retained.check_texts(name, [row.text for row in records[name]])
    return {
        **{name: metrics.mean_overlap(records[name], stemmer=stemmer) for name in metrics.GENERATION_SETS},
        "privleak": None if retain_auc is None else metrics.privleak(auc, retain_auc),
        "mia": {"auc": auc, "retain_auc": retain_auc, "min_k": k},
        "num_rows": {name: len(records[name]) for name in metrics.SETS},
    }


def _finish(
    output_dir: Path,
    retained: Retained | None,
    stemmer: bool,
    k: float,
    *,
    seconds: float | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the summary. Numbers come from the records on disk: gone on with or unbroken, they are the same.

    ``seconds`` None: nothing was scored now. What an earlier summary says of the retrained model then stays.
    """
    file = output_dir / SUMMARY_FILE
    before = read_json(file) if seconds is None and file.is_file() else {}
    records = read_records(output_dir / "records")
    numbers = summarize(records, retained, stemmer, k)
    source = None if retained is None else retained.source
    if retained is None and before and before["mia"]["min_k"] == k:
        numbers = {**numbers, "privleak": before["privleak"], "mia": before["mia"]}
        source = before["settings"]["retain_logs"]
    summary = {
        "benchmark": "muse",
        "corpus": settings["corpus"],
        **numbers,
        **({"intervals": _intervals(records, numbers["mia"], stemmer)} if settings.get("quick") else {}),
        "seconds": before.get("seconds") if seconds is None else seconds,
        "settings": {**settings, "stemmer": stemmer, "retain_logs": source},
        **({"extra": before["extra"]} if "extra" in before else {}),
    }
    write_json(file, summary)
    return summary


def _intervals(records: Records, leak: Mapping[str, Any], stemmer: bool) -> dict[str, list[float]]:
    """Of the columns of a report. ``leak``: of the summary; the retrained model's AUC is taken as it is."""
    tables = metrics.scores(records, stemmer=stemmer, k=leak["min_k"])

    def scores(drawn: Mapping[str, look.Floats]) -> dict[str, float | None]:
        means = {name: look.means(drawn[name])[0] for name in metrics.GENERATION_SETS}
        auc = mia.auc(*(drawn[name][:, 0] for name in reversed(metrics.SURPRISE_SETS)))
        known = leak["retain_auc"] is not None
        return columns({**means, "privleak": metrics.privleak(auc, leak["retain_auc"]) if known else None})

    return look.intervals(tables, scores)
