"""What is attacked: a model, those it is compared with, and the benchmark that says what it should not know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gru_fast.data.hashes import hash_of, joined_hash
from gru_fast.data.sequences import content_hash
from gru_fast.evaluation.subject import Subject
from gru_fast.evaluation.summaries import SUMMARY_FILE, finished, take_over
from gru_fast.runs.files import read_json
from gru_fast.runs.processes import on_first, waiting_for

UNLEARNED, ORIGINAL, RETRAINED = "unlearned", "original", "retrained"


@dataclass(frozen=True)
class Target:
    """A model under attack.

    Args:
        subjects: UNLEARNED, and where they are known ORIGINAL and RETRAINED -> the model, loaded if need be. Their
            folders are those of the models; attacks write to ``folder``.
        folder: of the attacks, a folder each.
        benchmark: the module that says what is to be forgotten, see :mod:`gru_fast.benchmarks`; ``data``: its options.
        evaluation: the module of its evaluation; ``options``: its options.
        words: the tokenizer and template of the model under attack, without the model.
        train: role -> the model made ready to train, anew at every call, its tokenizer and template.
        homes: role -> where an evaluation of it would be that `gru-fast eval` has made; None where there is no folder.
        device: for what trains: None the accelerator, if there is one.
        max_rows: the first rows of the forget set that are asked about; None for all.
        max_new_tokens: tokens that may be written as an answer, at most.
        prefix_tokens: of a text, how many are given.
        baselines: folder of what attacks find of the models beside the one under attack, for all that are compared with
            the same; None: in ``folder``, for this one alone.
    """

    subjects: Mapping[str, Subject]
    folder: Path
    benchmark: Any
    data: Any
    evaluation: Any
    options: Any
    words: Callable[[], tuple[Any, Any]]
    train: Callable[[str], tuple[Any, Any, Any]]
    homes: Mapping[str, Path | None] = field(default_factory=dict)
    device: str | None = None
    max_rows: int | None = None
    max_new_tokens: int = 128
    prefix_tokens: int = 64
    baselines: Path | None = None

    @property
    def roles(self) -> list[str]:
        """The models there are."""
        return list(self.subjects)

    @property
    def unlearned(self) -> Subject:
        """The model under attack."""
        return self.subjects[UNLEARNED]

    @cached_property
    def rows_hash(self) -> str:
        """Hash of all rows to forget, as tokens: files of the same name may say something else by now."""
        found = self.benchmark.unlearning(self.data, *self.words(), ("forget",), 0).forget
        return joined_hash(content_hash(found[index]) for index in range(len(found)))

    @property
    def facts(self) -> dict[str, Any]:
        """What any finding depends on, for its settings."""
        return {
            "data": asdict(self.data),
            "rows": self.rows_hash,
            "models": {role: dict(subject.asked) for role, subject in self.subjects.items()},
            "max_rows": self.max_rows,
            "max_new_tokens": self.max_new_tokens,
            "prefix_tokens": self.prefix_tokens,
        }

    @contextmanager
    def place(self, attack: str, role: str) -> Iterator[Path]:
        """The folder for what an attack finds of a model. Every process must come here.

        One in ``baselines`` is nobody else's meanwhile: another command waits, and then finds what is there.
        """
        if role == UNLEARNED or self.baselines is None:
            yield self.folder / attack / role
            return
        facts = {**self.facts, "models": dict(self.subjects[role].asked)}
        folder = self.baselines / f"{role}-{hash_of([json.dumps(facts, sort_keys=True, default=str)])}" / attack
        with waiting_for(folder):
            yield folder

    def evaluate(self, role: str, output_dir: Path, subject: Subject | None = None) -> dict[str, Any]:
        """The benchmark's summary of a model, or of ``subject`` in its place, kept in ``output_dir``.

        Of a model as it is, what `gru-fast eval` has left in its folder is taken, if it answers the same question.
        """
        of = replace(subject or self.subjects[role], output_dir=output_dir)
        if subject is None:
            on_first(lambda: self._take_over(role, of))
        found: dict[str, Any] = self.evaluation.run(self.options, of)
        return found

    def columns(self, summary: Mapping[str, Any]) -> dict[str, float | None]:
        """The scores of a summary by heading, as reports have them."""
        return dict(self.evaluation.columns(summary))

    def _take_over(self, role: str, of: Subject) -> None:
        home = self.homes.get(role)
        if home is None or of.overwrite or of.output_dir.exists():
            return
        wanted = self.evaluation.wanted(self.options, of.asked)
        if not finished(home, wanted) or not of.is_older_than(home / SUMMARY_FILE):
            return
        # What it says of another retrained model would not be comparable.
        compared = read_json(home / SUMMARY_FILE)["settings"].get("retain_logs")
        if compared is None or getattr(self.options, "retain_logs", None):
            of.output_dir.parent.mkdir(parents=True, exist_ok=True)
            take_over(home, of.output_dir, of.asked)


def knowledge_headings(evaluation: Any) -> tuple[str, ...]:
    """The columns of an evaluation that are high where the forget set is known.

    A benchmark's ``KNOWLEDGE`` names them; without it, the column of its plane that says how well it is removed.
    """
    found: tuple[str, ...] = getattr(evaluation, "KNOWLEDGE", ()) or tuple(evaluation.PLANE)[1:]
    return found
