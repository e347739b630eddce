"""What the demo says: progress while it works, and at the end its numbers and how to read them."""

from __future__ import annotations

import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from transformers import TrainerCallback

from gru_fast.demo import fiction
from gru_fast.demo.settings import Settings
from gru_fast.demo.stages import Places
from gru_fast.metrics.logs import read_log
from gru_fast.metrics.records import Record
from gru_fast.report.collect import Entry, pairs, steps
from gru_fast.report.figures import FORGET_PROBABILITY, RETAIN_PROBABILITY
from gru_fast.report.table import SECONDS_PER_STEP, Column, aligned

_WIDTH = 16  # of a run's name
_LONGEST = 64  # characters of an answer that are shown
_LINE = 98  # characters of a line, its indentation left out
_RIGHT = 0.4  # ROUGE-L recall below which an answer has not the fact, whatever its other words
_REMOVED = 0.1  # forget Probability at which runs are compared


class Console:
    """Lines on stdout, and on stderr, if that is a terminal, a bar of what is going on."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self._began

    def say(self, text: str = "") -> None:
        """A line, or several, at once."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def section(self, title: str, text: str) -> None:
        """A title, and under it an indented text."""
        self.say(f"\n{title}\n")
        self.say("\n".join(f"  {line}".rstrip() for line in text.split("\n")))

    @contextmanager
    def work(self, name: str, total: int) -> Iterator[Callable[[int], Any]]:
        """A bar of ``total`` units while it lasts; gives the function that moves it on."""
        from tqdm import tqdm

        form = f"   {name:<{_WIDTH}} {{bar:30}} {{n_fmt}}/{{total_fmt}}  {{elapsed}}<{{remaining}}"
        with tqdm(total=total, bar_format=form, leave=False, disable=not sys.stderr.isatty()) as bar:
            yield bar.update

    def done(self, name: str, amount: str, seconds: float | None, remark: str = "") -> None:
        """The line that stays of a piece of work. ``seconds`` None: it was done by an earlier demo."""
        took = "there already" if seconds is None else f"{seconds:.1f} s"
        self.say(f"   {name:<{_WIDTH}} {amount:>10} {took:>14}   {remark}".rstrip())


class Watch(TrainerCallback):
    """Moves a bar on with every optimizer step."""

    def __init__(self, advance: Callable[[int], Any]) -> None:
        self._advance = advance

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance(1)


def name_of(entry: Entry) -> str:
    """A run in the demo's tables."""
    if not entry.is_unlearned:
        return "before" if entry.title == "Original" else "retrained"
    return f"{entry.title} + GRU" if entry.rectified else entry.title


def results(entries: Sequence[Entry]) -> str:
    """The numbers, one line a model."""
    two = "{:.2f}".format
    columns = [
        Column("", name_of, number=False),
        Column("Forget Quality", lambda entry: entry.scores.get("FQ (ln p)"), _one_decimal),
        Column("Model Utility", lambda entry: entry.scores.get("MU"), two),
        Column("forget ROUGE-L", lambda entry: entry.scores.get("forget ROUGE-L"), two),
        Column("retain ROUGE-L", lambda entry: entry.scores.get("retain ROUGE-L"), two),
        Column("s/step", SECONDS_PER_STEP.value, "{:.3f}".format),
    ]
    return aligned(entries, columns)


def reading(entries: Sequence[Entry]) -> str:
    """What the numbers are, with those of the two models to compare with."""
    scores = {name_of(entry): entry.scores for entry in entries}
    before, goal = scores["before"], scores["retrained"]
    return _glossary(
        {
            "Forget Quality": "ln p of a test: could this be the retrained model, which never saw the authors? 0: yes. "
            f"Far below: it still knows them (before: {before['FQ (ln p)']:.1f}), or is broken.",
            "Model Utility": f"what is left of all else that it knew, 0 to 1 (before: {before['MU']:.2f}).",
            "forget ROUGE-L": "how much of the answers to forget it still writes, 0 to 1. The retrained model guesses "
            f"and comes to {goal['forget ROUGE-L']:.2f}: what is not above that has forgotten.",
            "retain ROUGE-L": "how much of the answers to keep.",
            "s/step": "runs without GRU follow the retain gradient too, for the figures; else they are faster.",
        }
    )


def comparison(entries: Sequence[Entry]) -> str:
    """Each method without and with GRU: what is left at the end, and at the same removal."""
    lines = [
        f"{'':<4}{'Model Utility':>18}{'retain Probability at the same':>36}",
        f"{'':<4}{'at the end':>18}{'forget Probability':>36}",
        f"{'':<4}{'without':>9}{'GRU':>9}{'without':>16}{'GRU':>9}{'at':>11}",
    ]
    said = []
    for plain, rectified in pairs(entries):
        ends = [float(entry.scores["MU"] or 0.0) for entry in (plain, rectified)]
        level = removal_of_both(plain, rectified)
        same = [kept_at(entry, level) for entry in (plain, rectified)]
        lines.append(f"{plain.title:<4}{ends[0]:>9.2f}{ends[1]:>9.2f}{same[0]:>16.2f}{same[1]:>9.2f}{level:>11.2f}")
        said.append((plain.title, ends[1] > ends[0], same[1] > same[0]))
    return "\n".join([*lines, "", verdict(said)])


def verdict(said: Sequence[tuple[str, bool, bool]]) -> str:
    """Whichever way it came out, in a sentence. Given: (method, more is left at the end, at the same removal)."""
    groups = {"by both": (True, True), "at the end only": (True, False), "at the same removal only": (False, True)}
    found = {
        what: [title for title, *more in said if tuple(more) == which]
        for what, which in [*groups.items(), ("", (False, False))]
    }
    parts = [f"{_listed(titles)}: more is kept with GRU, {what}." for what, titles in found.items() if titles and what]
    parts += [f"{_listed(found[''])}: GRU kept no more here."] if found[""] else []
    return " ".join(parts)


def removal_of_both(plain: Entry, rectified: Entry) -> float:
    """The forget Probability to compare two runs at: 0.1, or what both have come down to if that is more."""
    return max(_REMOVED, *(min(steps(entry, FORGET_PROBABILITY)[1]) for entry in (plain, rectified)))


def kept_at(entry: Entry, removed: float) -> float:
    """Retain Probability where the forget Probability first comes down to ``removed`` (between two looks: linear)."""
    forget, retain = steps(entry, FORGET_PROBABILITY)[1], steps(entry, RETAIN_PROBABILITY)[1]
    for (f0, r0), (f1, r1) in pairwise(zip(forget, retain, strict=True)):
        if f1 <= removed < f0:
            return r0 + (r1 - r0) * (f0 - removed) / (f0 - f1)
    return retain[0]


def _one_decimal(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # + 0.0: not "-0.0"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _glossary(entries: Mapping[str, str]) -> str:
    """Terms, and beside them what they are."""
    width = max(map(len, entries)) + 2
    indent = " " * width
    return "\n".join(
        textwrap.fill(text, _LINE, initial_indent=f"{term:<{width}}", subsequent_indent=indent)
        for term, text in entries.items()
    )


def figures(entries: Sequence[Entry]) -> str:
    """Which figure shows what."""
    cosines = {e.title: steps(e, "cos")[1] for e in entries if e.is_unlearned and not e.rectified}
    said = [f"{title} {sum(cos < 0 for cos in values)} of {len(values)}" for title, values in cosines.items()]
    return _glossary(
        {
            "path.png": "what is kept, over what is removed: at any removal, the higher curve is the better.",
            "steps.png": "retain loss, and the cosine of the unlearning gradient with the retain gradients' average. "
            f"Below 0 a step raises the retain loss (without GRU: {', '.join(said)} steps).",
            "angles.png": "the same as angles: what is above 90 degrees, GRU brings back to 90.",
            "tradeoff.png": "Forget Quality and Model Utility; arrows lead from a method to the same with GRU.",
        }
    )


def answers(entries: Sequence[Entry]) -> str:
    """One question to forget and one to keep, with what the models write."""
    records = {name_of(entry): read_log(entry.run.folder, fiction.SPLIT) for entry in entries}
    before, goal = records["before"], records["retrained"]
    # Chosen by what the models wrote before any unlearning.
    guesses = [_recall(row) < _RIGHT for row in goal["forget"]]
    forget = next((i for i, row in enumerate(before["forget"]) if _recall(row) == 1.0 and guesses[i]), 0)
    retain = next((i for i, row in enumerate(before["retain"]) if _recall(row) == 1.0), 0)
    lines = []
    for name, index, what in (("forget", forget, "To forget"), ("retain", retain, "To keep")):
        lines += [f"{what}: {before[name][index].question}  {before[name][index].answer}"]
        lines += [f"  {model:<{_WIDTH}} {_written(record[name][index])}" for model, record in records.items()]
        lines.append("")
    return "\n".join(lines[:-1])


def _recall(record: Record) -> float:
    return record.rougeL_recall or 0.0


def _written(record: Record) -> str:
    text = " ".join((record.generation or "").removeprefix("Answer:").split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def own_documents() -> str:
    """The command for those who came with documents."""
    return "gru-fast forget --model MODEL --forget FOLDER --dry-run"


def next_steps(places: Places, settings: Settings) -> str:
    """Commands to go on with, on what the demo has left behind: another run, evaluated as the others were."""
    gru, more = places.unlearned("ga", True), places.folder / "runs" / "ga-gru-0.8"
    quick = ("--max-rows", settings.max_rows, "--max-new-tokens", settings.max_new_tokens)
    limits = quick if settings.max_new_tokens else ()
    commands = (
        ("unlearn", "--config", gru / "config.yaml", "--gamma", 0.8, "--output-dir", more),
        ("eval", "tofu", "--model", more, "--retain-logs", places.retrained, *limits),
        ("report", places.folder / "runs"),
    )
    return "\n".join(shlex.join(map(str, ("gru-fast", *command))) for command in commands)
