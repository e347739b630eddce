"""Run folders as entries of a report: one for each evaluation of each run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gru_fast import benchmarks
from gru_fast.core.rules import RULES
from gru_fast.runs.folder import Run, is_run, read_run

_DEPTH = 3  # how far below a given folder runs are looked for


@dataclass(frozen=True)
class Entry:
    """One evaluation of one run, or a run that has none.

    Args:
        run: the run folder.
        evaluation: name of the evaluation ("tofu-forget05"), None without one.
        summary: its content; empty without one.
        scores: what its benchmark shows of it, by heading; None where a number is missing.
        attacks: attack -> its summary, of those on the same question.
        note: what is missing, and what mends it.
    """

    run: Run
    evaluation: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float | None] = field(default_factory=dict)
    attacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    note: str = ""

    @property
    def is_unlearned(self) -> bool:
        """Made by `gru-fast unlearn`; otherwise it is a fine-tuned model, where unlearning starts or should end."""
        return "method" in self.run.config

    @property
    def rectified(self) -> bool:
        """Trained with GRU."""
        return bool(self.run.config.get("rectify")) and not self._other_rule

    @property
    def _other_rule(self) -> str:
        """Title of the rule other than GRU's by which it was rectified: to a comparison a method of its own."""
        name = self.run.config.get("rectifier", "gru") if self.run.config.get("rectify") else "gru"
        return "" if name == "gru" else RULES[name].title if name in RULES else str(name)

    @property
    def title(self) -> str:
        """The method as in the paper's tables, or what a fine-tuned model is to the others."""
        if self.is_unlearned:
            title = str((self.run.result or {}).get("title") or _title(str(self.run.config["method"])))
            return f"{title} w/ {self._other_rule}" if self._other_rule else title
        subset = str(self.run.config.get("subset", "?"))
        kind = "Retrained" if subset.startswith("retain") else "Fine-tuned"
        return "Original" if subset.partition("_")[0] == "full" else f"{kind} ({subset})"

    @property
    def benchmark(self) -> str | None:
        """Of the evaluation, else of the run ("tofu")."""
        found = self.summary.get("benchmark") or (self.run.result or {}).get("benchmark")
        return found or self.run.config.get("benchmark")

    @property
    def split(self) -> str | None:
        """What was to be forgotten; of a fine-tuned model, the split or corpus that it was evaluated on."""
        of_run = self.run.config.get("split") or (self.run.result or {}).get("split")
        return self.summary.get("split") or self.summary.get("corpus") or of_run

    @property
    def is_quick(self) -> bool:
        """Whether a part of the rows was scored, for a look."""
        return bool(self.summary.get("settings", {}).get("quick"))

    @property
    def plane(self) -> tuple[float, float] | None:
        """(retention, removal), where both are known."""
        if not self.summary:
            return None
        across, up = (self.scores.get(heading) for heading in plane_of(str(self.benchmark)))
        return None if across is None or up is None else (across, up)

    @property
    def not_applied(self) -> int | None:
        """Steps that were skipped (NaN, Inf) or had nothing left."""
        result = self.run.result or {}
        return int(result["skipped"]) + int(result.get("degenerate") or 0) if "skipped" in result else None


def collect(paths: Iterable[str | Path], retain: str | Path | None = None) -> list[Entry]:
    """The entries of run folders, or of folders that hold some, sorted: fine-tuned models, then method by method.

    Args:
        paths: run folders, and folders up to three levels above them. A run that is given twice counts once.
        retain: the retrained model's run or log; Forget Quality is then taken anew against it, on TOFU.

    Raises:
        FileNotFoundError: a path that does not exist, or that holds no run.
        ValueError: a file of a run that cannot be read.
    """
    entries = [entry for folder in find_runs(paths) for entry in _entries(read_run(folder))]
    if retain is not None:
        if not Path(retain).exists():
            raise FileNotFoundError(f"{retain}: no such file or folder; give the retrained model's run, or a log of it")
        entries = [_against(entry, retain) if entry.summary.get("benchmark") == "tofu" else entry for entry in entries]
    return sorted(entries, key=_order)


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders that ``paths`` are or hold, each once, in order."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder; give the --output-dir of a run, or a folder of such")
        inside = _runs_below(path, _DEPTH)
        if not inside:
            raise FileNotFoundError(
                f"{path}: no run in it; give the --output-dir of gru-fast unlearn or finetune, or a folder of such"
            )
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def pairs(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """(without GRU, with GRU): for each rectified entry the one that differs from it in the fewest options.

    Both have the same method, split, starting model and evaluation; a rectified entry without such a one is left out.
    """
    found = []
    for entry in entries:
        if not (entry.is_unlearned and entry.rectified):
            continue
        same = [other for other in entries if not other.rectified and _kind(other) == _kind(entry)]
        if same:
            found.append((min(same, key=lambda other: _distance(other.run.config, entry.run.config)), entry))
    return found


def steps(entry: Entry, name: str) -> tuple[list[int], list[float]]:
    """Step numbers and values of a logged quantity, e.g. "cos"; empty where it was not logged."""
    rows = [row for row in entry.run.log if isinstance(row.get(name), (int, float)) and "step" in row]
    return [row["step"] for row in rows], [float(row[name]) for row in rows]


def plane_of(benchmark: str) -> Mapping[str, str]:
    """The scores that say how much is retained, and how well removed: {heading: which way is better}, in this order."""
    return benchmarks.evaluation(benchmark).PLANE


def _title(method: str) -> str:
    from gru_fast.unlearn import methods

    return methods.get(method).title if method in methods.names() else method


def _runs_below(path: Path, depth: int) -> list[Path]:
    if is_run(path):
        return [path]
    if depth == 0:
        return []
    return [run for inner in sorted(path.iterdir()) if inner.is_dir() for run in _runs_below(inner, depth - 1)]


def _entries(run: Run) -> list[Entry]:
    note = ""
    if not run.complete:
        step = max((row.get("step", 0) for row in run.log), default=0)
        command = "forget" if _is_request(run) else "unlearn" if "method" in run.config else "finetune"
        note = f"not finished{f', step {step}' if step else ''}: gru-fast {command} --resume --output-dir {run.folder}"
    elif not run.evaluations and not _is_request(run):  # of a request its own report says what it came to
        benchmark = (run.result or {}).get("benchmark") or "tofu"
        note = f"not evaluated: gru-fast eval {benchmark} --model {run.folder}"
    found = [
        Entry(run, name, summary, _scores(name, summary), run.attacks.get(name, {}), note)
        for name, summary in run.evaluations.items()
    ]
    # Attacks do not need an evaluation that was made before.
    found += [Entry(run, attacks=of, note=note) for name, of in run.attacks.items() if name not in run.evaluations]
    return found or [Entry(run, note=note)]


def _is_request(run: Run) -> bool:
    """Whether it is a run of `gru-fast forget`."""
    from gru_fast.benchmarks import own

    return "benchmark" not in run.config and bool(own.config_of_run(run.config))


def _scores(name: str, summary: Mapping[str, Any]) -> dict[str, float | None]:
    benchmark = summary.get("benchmark") or name.partition("-")[0]
    try:
        module = benchmarks.evaluation(benchmark)
    except ValueError as error:
        raise ValueError(f"evaluation {name}: {error}") from None
    return dict(module.columns(summary))


def _against(entry: Entry, retain: str | Path) -> Entry:
    from gru_fast.metrics.logs import read_log
    from gru_fast.metrics.tofu import forget_quality

    records = read_log(entry.run.folder / "eval" / str(entry.evaluation))
    kind = entry.summary.get("settings", {}).get("truth_ratio", "geometric")
    quality, note = None, entry.note
    try:
        theirs = read_log(retain, entry.split)
        quality = forget_quality(records, theirs, kind, matching_rows=entry.is_quick).to_json()
    except (FileNotFoundError, ValueError):  # of another split, or with other rows
        note = "; ".join(filter(None, [note, f"Forget Quality: not the questions of {retain}"]))
    summary = {**entry.summary, "forget_quality": quality}
    return replace(entry, summary=summary, scores=_scores(str(entry.evaluation), summary), note=note)


def _order(entry: Entry) -> tuple[Any, ...]:
    return (
        entry.benchmark or "~",
        entry.is_unlearned,
        entry.split or "",
        entry.title,  # "Original" comes before "Retrained"
        entry.rectified,
        str(entry.run.folder),
    )


def _kind(entry: Entry) -> tuple[Any, ...]:
    config = entry.run.config
    return entry.title, config.get("model"), entry.split, entry.evaluation


def _distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    return sum(a.get(name) != b.get(name) for name in {**a, **b})
