"""The demo from beginning to end."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from gru_fast.demo import fiction, stages, words
from gru_fast.demo.settings import METHODS, QUICK, Settings
from gru_fast.report.collect import collect
from gru_fast.report.files import write
from gru_fast.unlearn import methods

_FORGET = fiction.NUM_FORGET_AUTHORS


class Show:
    """One demo in one folder.

    Raises:
        FileExistsError: see :func:`gru_fast.demo.stages.prepare`.
    """

    def __init__(self, folder: Path, *, seed: int, quick: bool, overwrite: bool) -> None:
        self._quick = quick
        self._settings = replace(QUICK if quick else Settings(), seed=seed)
        self._places = stages.prepare(folder, self._settings, overwrite)
        self._console = words.Console()

    def run(self) -> None:
        """All stages; those that were finished before are not done again."""
        say, places = self._console.say, self._places
        say(f"Unlearning at toy size: a tiny Llama forgets {_FORGET} of {fiction.NUM_AUTHORS} made-up authors.")
        with stages.quiet(), stages.one_thread():
            say("\n1. Data in TOFU's layout")
            self._write_data()
            say(f"\n2. Two models: one learns all authors, one never sees the {_FORGET} (where unlearning should lead)")
            self._finetune("before", fiction.FULL_SUBSET, places.original)
            self._finetune("retrained", fiction.RETAIN_SUBSET, places.retrained)
            say(f"\n3. The first one unlearns the {_FORGET} authors, by three methods, each without and with GRU")
            for method in METHODS:
                for rectify in (False, True):
                    self._unlearn(method, rectify)
            say("\n4. Questions to all of them, tables and figures")
            self._evaluate()
        self._report()

    def _write_data(self) -> None:
        began = time.monotonic()
        splits = stages.write_data(self._places, self._settings)
        known = len(splits["real_authors_perturbed"]) + len(splits["world_facts_perturbed"])
        remark = f"on the authors ({len(splits[fiction.SPLIT])} to forget), {known} on the real world"
        self._console.done("questions", str(len(splits["full"])), time.monotonic() - began, remark)

    def _finetune(self, name: str, subset: str, folder: Path) -> None:
        took = None
        if not stages.is_done(folder):
            total = stages.num_steps(self._settings, self._places, subset)
            with self._console.work(name, total) as advance:
                took = stages.finetune(self._places, self._settings, subset, folder, words.Watch(advance))["seconds"]
        self._console.done(name, *stages.outcome(folder, took, "loss"))

    def _unlearn(self, method: str, rectify: bool) -> None:
        name = methods.get(method).title + (" + GRU" if rectify else "")
        folder, took = self._places.unlearned(method, rectify), None
        if not stages.is_done(folder):
            total = stages.num_steps(self._settings, self._places, fiction.SPLIT, method)
            with self._console.work(name, total) as advance:
                watch = words.Watch(advance)
                took = stages.unlearn(self._places, self._settings, method, rectify, watch)["seconds"]
        self._console.done(name, *stages.outcome(folder, took, "retain_loss"))

    def _evaluate(self) -> None:
        began, folders, goal = time.monotonic(), self._places.runs(), self._places.retrained
        with self._console.work("evaluation", len(folders)) as advance:
            for folder in sorted(folders, key=lambda folder: folder != goal):  # the others are compared with it
                stages.evaluate(self._places, self._settings, folder)
                advance(1)
        self._console.done("evaluation", f"{len(folders)} models", time.monotonic() - began)

    def _report(self) -> None:
        began, places, section = time.monotonic(), self._places, self._console.section
        entries = collect(places.runs())
        files = write(entries, places.report)
        drawn = sum(file.suffix == ".png" for file in files)
        self._console.done("report", f"{drawn} figures", time.monotonic() - began)
        doubt = " (hardly trained: the numbers mean nothing)" if self._quick else ""
        section(f"RESULTS{doubt}", words.results(entries))
        section("HOW TO READ THEM", words.reading(entries))
        section("WHAT GRU CHANGES", words.comparison(entries))
        section("WHAT THEY WRITE", words.answers(entries))
        section(f"FIGURES in {places.report}, with table.md and table.csv", words.figures(entries))
        section("GO ON", words.next_steps(places, self._settings))
        section("YOUR OWN DOCUMENTS AND MODEL", words.own_documents())
        self._console.say(f"\n{self._console.seconds:.0f} s in all. Everything is in {places.folder}")
