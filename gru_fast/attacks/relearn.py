"""Attack: a few steps of fine-tuning, and how well the model then answers the rows to forget that it was not taught.

forget     on some of the rows to forget: the others are asked about
near       on text near them: of the rows to keep those that are most alike, or the user's own (--relearn-near)
harmless   on text that has nothing to do with them: rows to keep at random, or the user's own (--relearn-harmless)

The same rows are asked about whatever was taught. Plain AdamW at a constant rate, without weight decay. What a model
learns of the manner of the answers it learns whether it knew them or not: the same lessons to the retrained model are
the baseline. An arm (a model, a source, a learning rate) is trained in one go, and done anew if it was stopped.

Of several processes each takes every step, on the same rows, so that a step is what it is in one; they share the rows
that are asked about.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from gru_fast.attacks.parts import lessons
from gru_fast.attacks.parts.answers import scorer_of
from gru_fast.attacks.parts.outcome import Finding, Outcome
from gru_fast.attacks.parts.questions import SCORES, Question, content, questions, rows, scored
from gru_fast.attacks.parts.target import ORIGINAL, RETRAINED, UNLEARNED, Target
from gru_fast.data.hashes import hash_of, joined_hash
from gru_fast.data.sequences import Encoded, content_hash
from gru_fast.evaluation.asking import Scorer, unwritten
from gru_fast.evaluation.record_folder import RecordFolder, RowSet, Unwritten, differing, score_sets
from gru_fast.evaluation.subject import settings_of
from gru_fast.metrics.leak import mean
from gru_fast.models.limits import limits_of
from gru_fast.runs.files import read_json, write_json
from gru_fast.runs.processes import on_first

HELP = "a few steps of fine-tuning; what returns on the rows that were not taught"
PROBABILITY = "forget prob"  # mean over rows of exp(-loss), as TOFU's
_CURVE = "curve.json"
_SCORES = (PROBABILITY, *SCORES)
_ROWS = 20  # that are taught, if there are enough

Points = dict[int, dict[str, float]]  # step -> score -> mean over the rows that are asked about


@dataclass
class RelearnOptions:
    """The attack relearn."""

    relearn_on: list[str] = field(
        default_factory=lambda: list(lessons.SOURCES),
        metadata={"help": f"what is taught: some of {', '.join(lessons.SOURCES)}"},
    )
    relearn_rows: int | None = field(
        default=None,
        metadata={"help": f"rows that are taught, at random; by default {_ROWS}, of those to forget at most half"},
    )
    relearn_steps: list[int] = field(
        default_factory=lambda: [1, 2, 5, 10, 20, 50], metadata={"help": "steps after which it is asked"}
    )
    relearn_rates: list[float] = field(
        default_factory=lambda: [1e-5, 3e-5, 1e-4], metadata={"help": "learning rates, each by itself"}
    )
    relearn_batch_size: int = field(default=4, metadata={"help": "rows a step"})
    relearn_seed: int = field(default=0, metadata={"help": "of the rows that are drawn, and of their order"})
    relearn_near: str | None = field(
        default=None,
        metadata={"help": "file of text near the forget set: JSON lines with question and answer, or text"},
    )
    relearn_harmless: str | None = field(default=None, metadata={"help": "file of harmless text, in the same form"})

    def __post_init__(self) -> None:
        self.relearn_steps = sorted({int(step) for step in self.relearn_steps})
        self.relearn_rates = list(dict.fromkeys(map(float, self.relearn_rates)))
        problems = [*self._of_lists(), *self._of_files()]
        problems += [
            f"{name}: expected at least 1, got {getattr(self, name)}"
            for name in ("relearn_rows", "relearn_batch_size")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def _of_lists(self) -> list[str]:
        known = ", ".join(lessons.SOURCES)
        found = [
            f"relearn_on: expected some of {known}, got {name}"
            for name in self.relearn_on or ["none"]
            if name not in lessons.SOURCES
        ]
        if not self.relearn_steps or self.relearn_steps[0] < 1:
            found.append(f"relearn_steps: expected numbers of at least 1, got {self.relearn_steps}")
        if not self.relearn_rates or not all(0 < rate < math.inf for rate in self.relearn_rates):
            found.append(f"relearn_rates: expected numbers above 0, got {self.relearn_rates}")
        return found

    def _of_files(self) -> list[str]:
        found = []
        for source in (lessons.NEAR, lessons.HARMLESS):
            name = self.file(source)
            if name is None:
                continue
            if source not in self.relearn_on:
                found.append(f"relearn_{source}: expected {source} in relearn_on as well; nobody is taught it")
            try:
                lessons.read_lessons(Path(name))
            except (OSError, ValueError) as error:
                found.append(f"relearn_{source}: {error}")
        return found

    def count(self, source: str, num_forget: int) -> int:
        """Rows of a source that are taught, of ``num_forget`` rows to forget.

        Raises:
            ValueError: a row to forget is to be taught, and there is but one.
        """
        if self.relearn_rows is not None:
            return self.relearn_rows
        if source == lessons.FORGET and num_forget < 2 and source in self.relearn_on:
            raise ValueError(
                f"relearn_on: forget takes at least 2 rows to forget, one to teach and one to ask about, got "
                f"{num_forget}; give --relearn-on near harmless"
            )
        return min(_ROWS, num_forget // 2) if source == lessons.FORGET else _ROWS

    def file(self, source: str) -> str | None:
        """The user's own text of a source."""
        found: str | None = getattr(self, f"relearn_{source}", None)
        return found


Options = RelearnOptions


def cost(options: RelearnOptions, target: Target) -> str:
    """What it will take, in words."""
    trained = [role for role in target.roles if role != ORIGINAL]
    asked = len(_asked(options, target, *target.words()))
    arms = len(options.relearn_on) * len(options.relearn_rates)
    points = len(target.roles) + len(trained) * arms * len(options.relearn_steps)
    return (
        f"{len(trained) * arms} times {options.relearn_steps[-1]} steps of {options.relearn_batch_size} rows "
        f"({', '.join(trained)}; {', '.join(options.relearn_on)}; {len(options.relearn_rates)} learning rates), "
        f"{points} times {asked} questions"
    )


def settings(options: RelearnOptions, target: Target) -> dict[str, Any]:
    """What the findings depend on."""
    files = {source: options.file(source) for source in lessons.SOURCES}
    texts = {source: lessons.read_lessons(Path(name)) for source, name in files.items() if name}
    taught = {
        source: joined_hash(map(content_hash, _lessons(options, target, source, *target.words())))
        for source in options.relearn_on
    }
    return {**asdict(options), "texts": hash_of([str(texts)]) if texts else None, "taught": taught}


def _lessons(options: RelearnOptions, target: Target, source: str, tokenizer: Any, template: Any) -> list[Encoded]:
    """What is taught."""
    count = options.count(source, len(rows(target, tokenizer, template).forget))
    return lessons.lessons(target, tokenizer, template, source, count, options.relearn_seed, options.file(source))


def run(options: RelearnOptions, target: Target) -> Outcome:
    """Curves over the steps, of every arm."""
    start = {role: _start(options, target, role) for role in target.roles}
    facts = settings(options, target)
    curves: dict[tuple[str, str, float], Points] = {}
    roles = [role for role in target.roles if role != ORIGINAL]
    for role, source, rate in product(roles, options.relearn_on, options.relearn_rates):
        with target.place("relearn", role) as folder:
            place = folder / f"{source}-lr{rate:g}"
            curves[role, source, rate] = _arm(options, target, facts, role, source, rate, place)
    found = [
        _finding(options, source, rate, step, score, start, curves)
        for source, rate, step, score in product(
            options.relearn_on, options.relearn_rates, options.relearn_steps, _SCORES
        )
    ]
    return Outcome(found, {"start": start})


def report(summary: Mapping[str, Any]) -> str:
    """Where the steps before the last are."""
    return "each after its last step; the curves are in the summary, and drawn by gru-fast report --output"


# ---- what is asked ---------------------------------------------------------------------------------------------------

Asked = tuple[Question, Encoded]


def _asked(options: RelearnOptions, target: Target, tokenizer: Any, template: Any) -> list[Asked]:
    """The rows to forget that nobody is taught, as questions and as sequences."""
    forget = rows(target, tokenizer, template).forget
    count = options.count(lessons.FORGET, len(forget))
    taught = {*lessons.taught(len(forget), count, options.relearn_seed)}
    found = [
        (question, forget[question.row])
        for question in questions(target, tokenizer, template)
        if question.row not in taught
    ]
    if not found:
        raise ValueError(
            f"max_rows: all of the first {target.max_rows} rows to forget are among the {count} that "
            "are taught; give more, or fewer --relearn-rows"
        )
    return found


def _measured(target: Target, scorer: Scorer, asked: Sequence[Asked], folder: Path, label: str) -> dict[str, float]:
    """The means of the scores over the rows that are asked about, whose records are kept."""

    def record(question: Question, loss: float, text: str) -> dict[str, Any]:
        return {**scored(question, text), PROBABILITY: math.exp(-loss)}

    def work(some: Sequence[Asked]) -> list[Unwritten]:
        losses = scorer.losses([row for _, row in some])
        return [
            unwritten(question, partial(record, question, loss.loss))
            for (question, _), loss in zip(some, losses, strict=True)
        ]

    own = {"asked": _content(asked)}
    records = RecordFolder(folder, settings_of(scorer.model, own), overwrite=target.unlearned.overwrite)
    of = RowSet("answers", asked, work, [len(row["input_ids"]) for _, row in asked], label)
    score_sets(records, [of], batch_size=scorer.batch_size, write=scorer.writing, progress=target.unlearned.progress)
    found = on_first(lambda: records.read("answers"))
    return {score: mean([row[score] for row in found.values()]) for score in _SCORES}


def _check(target: Target, model: Any, asked: Sequence[Asked]) -> None:
    """Refuses rows that the model cannot read."""
    limits = limits_of(model)
    limits.check_rows("forget", [row for _, row in asked])
    for question, _ in asked:
        where = f"row {question.row}, its prompt"
        limits.check(where, question.ids, question.max_new_tokens, option=None, more_option="--max-new-tokens")


def _start(options: RelearnOptions, target: Target, role: str) -> dict[str, float]:
    """The scores of a model as it is."""
    model, tokenizer, template = target.subjects[role].load()
    asked = _asked(options, target, tokenizer, template)
    _check(target, model, asked)
    scorer = scorer_of(target, model, tokenizer)
    with target.place("relearn", role) as folder:
        return _measured(target, scorer, asked, folder / f"start-{_name_of(asked)}", f"{role}: as it is")


def _content(asked: Sequence[Asked]) -> str:
    """Hash of the questions and of the rows, which may go on where the answer that is looked at ends."""
    return joined_hash([content([question for question, _ in asked]), *(content_hash(row) for _, row in asked)])


def _name_of(asked: Sequence[Asked]) -> str:
    """Of the folder for records of these rows: other options ask about others."""
    return _content(asked)[:8]


# ---- an arm ----------------------------------------------------------------------------------------------------------


def _arm(
    options: RelearnOptions, target: Target, facts: Mapping[str, Any], role: str, source: str, rate: float, folder: Path
) -> Points:
    """The scores of a model after each of the steps; read where they are known, else it is trained.

    Args:
        facts: what :func:`settings` says.
        folder: of the arm.
    """
    tokenizer, template = target.words()
    asked = _asked(options, target, tokenizer, template)
    own = {
        **{name: facts[name] for name in _OF_ARM},
        "rate": rate,
        "taught": facts["taught"][source],
        "asked": _content(asked),
        "model": dict(target.subjects[role].asked),
        "data": asdict(target.data),
    }
    file = folder / _CURVE

    def known() -> Points | None:
        if file.is_file() and not target.unlearned.overwrite and target.subjects[role].is_older_than(file):
            kept = read_json(file)
            found = {int(step): scores for step, scores in kept["points"].items()}
            if not differing(kept["settings"], own) and {*options.relearn_steps} <= {*found}:
                return {step: found[step] for step in options.relearn_steps}
        shutil.rmtree(folder, ignore_errors=True)  # of one that was stopped, or that had other options
        return None

    found = on_first(known)
    if found is not None:
        return found
    points = _trained(options, target, role, source, rate, folder)
    on_first(lambda: write_json(file, {"settings": own, "points": points}))
    return points


_OF_ARM = ("relearn_rows", "relearn_batch_size", "relearn_seed", "texts")


def _trained(options: RelearnOptions, target: Target, role: str, source: str, rate: float, folder: Path) -> Points:
    from transformers import PrinterCallback

    from gru_fast.unlearn.finetune import FinetuneConfig, SameRowsTrainer, finetune_trainer

    model, tokenizer, template = target.train(role)
    asked = _asked(options, target, tokenizer, template)
    learned = _lessons(options, target, source, tokenizer, template)
    _check(target, model, asked)
    config = FinetuneConfig(
        str(folder),
        max_steps=options.relearn_steps[-1],
        learning_rate=rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        per_device_train_batch_size=options.relearn_batch_size,
        gradient_accumulation_steps=1,
        seed=options.relearn_seed,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=str(target.device or "").startswith("cpu"),
    )
    if config.n_gpu > 1:
        config._n_gpu = 1  # else a step would have as many times the rows
    trainer = finetune_trainer(model, config, learned, tokenizer, SameRowsTrainer)
    points: Points = {}

    def measure(step: int) -> None:
        scorer = scorer_of(target, trainer.model, tokenizer)
        label = f"{role}: {source}, learning rate {rate:g}, step {step}"
        points[step] = _measured(target, scorer, asked, folder / f"step-{step}", label)

    trainer.remove_callback(PrinterCallback)  # of seconds and losses, on stdout
    trainer.add_callback(_after(options.relearn_steps, measure))
    trainer.train()
    on_first(lambda: write_json(folder / "rows.json", {"taught": [content_hash(row) for row in learned]}))
    return points


def _after(steps: Sequence[int], work: Any) -> Any:
    from transformers import TrainerCallback as Callback

    class AfterSteps(Callback):
        """Calls ``work`` with the step, after each of some steps."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in steps:
                work(state.global_step)

    return AfterSteps()


# ---- the findings ----------------------------------------------------------------------------------------------------


def _finding(
    options: RelearnOptions,
    source: str,
    rate: float,
    step: int,
    score: str,
    start: Mapping[str, Mapping[str, float]],
    curves: Mapping[tuple[str, str, float], Points],
) -> Finding:
    has_retrained = RETRAINED in start
    return Finding(
        what=f"{source}, learning rate {rate:g}, {step} steps",
        score=score,
        before=start[UNLEARNED][score],
        after=curves[UNLEARNED, source, rate][step][score],
        original=start[ORIGINAL][score] if ORIGINAL in start else None,
        retained_before=start[RETRAINED][score] if has_retrained else None,
        retained_after=curves[RETRAINED, source, rate][step][score] if has_retrained else None,
        at={"source": source, "learning_rate": rate, "step": step},
        is_shown=step == options.relearn_steps[-1],
    )
