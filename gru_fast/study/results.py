"""All that has come of a study, as one file, results.json. Tables, figures and the page read nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gru_fast.runs.files import read_json, write_text
from gru_fast.runs.records import DONE

FILE = "results.json"

# What a model of a study is.
ORIGINAL, RETRAINED, UNLEARNED, VECTOR = "original", "retrained", "unlearned", "vector"
# How an unlearned one was trained: as the method is, clipped to tau, with GRU.
PLAIN, CLIPPED, GRU = "plain", "clipped", "gru"
_SHOWN = {PLAIN: "plain", CLIPPED: "clipping only", GRU: "w/ GRU"}
VARIANTS = tuple(_SHOWN)  # others are a recipe's own, by their names
# What a run is in a study for; one run may serve several.
COMPARISON, FURTHER, ABLATION, SENSITIVITY, RETAIN = "comparison", "variants", "ablation", "sensitivity", "retain"
GAMMA_AND_ROWS = "gamma and rows"
CALIBRATION = "calibration"  # what is done with runs of the comparison
# Logged in each optimizer step; kept here.
STEP_VALUES = ("forget_loss", "retain_loss", "cos", "angle_before", "angle_after")


def variant_name(variant: str) -> str:
    """A variant in a table: "plain", "w/ GRU", "w/ update"."""
    return _SHOWN.get(variant, f"w/ {variant}")


@dataclass(frozen=True)
class Sample:
    """A question, its true answer, and what a model has written.

    Args:
        set: where the question is from, e.g. "forget".
    """

    set: str
    question: str
    answer: str
    generation: str


@dataclass(frozen=True)
class Point:
    """The evaluation of a run on its way, after ``epoch`` epochs and ``step`` steps.

    moved: how far from its start, see :func:`gru_fast.models.distance.distance`; None where it is not known.
    """

    epoch: float
    step: int
    scores: Mapping[str, float | None]
    moved: float | None = None


@dataclass(frozen=True)
class Calibrated:
    """The mixture of an unlearned model and the original one that keeps the share ``target`` of its utility (UWC)."""

    target: float
    alpha: float
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class Attacked:
    """What an attack brought back of a run (``at`` None), or of its mixture at a share of the original's utility.

    back, retained_back: the greatest share of the way back to the original, and what the same attack does to the
    retrained model; None where it is not known.
    """

    attack: str
    at: float | None
    back: float | None
    retained_back: float | None


@dataclass(frozen=True)
class StudyRun:
    """One model of a study and its evaluation.

    Args:
        name: of its job, unique.
        kind: original, retrained, unlearned or vector.
        title: the method as the paper has it; "Original", "Retrained".
        split, seed: what was forgotten, and the seed of everything in it; the original has the split that it was
            evaluated on. seed is None of models that were given.
        method: its name; empty of models that have unlearned nothing.
        variant: plain, clipped, gru or a name of the recipe's variants, of an unlearned model.
        uses: what the run is for: comparison, variants, ablation, sensitivity, retain (how good the average must be),
            gamma and rows (sensitivity to both).
        gamma, tau: of GRU; tau also of clipping. None: no clipping.
        retain_rows, warm_up: rows to keep a batch and batches before the first step; None: as the method has them.
        strength: of a task vector.
        state: of its job: done, failed, blocked, waiting, running.
        reason, log: why it, or its calibration, has failed, and the file that says more.
        commands: what was run, as one would type it.
        folder: the run folder, relative to the study's.
        scores: by heading, as gru-fast report has them; None where a number is missing.
        summary: of the evaluation, but its settings.
        points: evaluations along the way, in order; the last is the end.
        steps: logged values by name, one a step; None where it was not logged.
        samples: some questions, and what the model writes.
        calibrated: by target, in order.
        attacked: by model and attack, in order.
        config, result, environment: of the run folder.
    """

    name: str
    kind: str
    title: str
    split: str
    seed: int | None
    method: str = ""
    variant: str = ""
    uses: Sequence[str] = ()
    gamma: float | None = None
    tau: float | None = None
    retain_rows: int | None = None
    warm_up: int | None = None
    strength: float | None = None
    state: str = DONE
    reason: str = ""
    log: str = ""
    commands: Sequence[str] = ()
    folder: str = ""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Point] = ()
    steps: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    calibrated: Sequence[Calibrated] = ()
    attacked: Sequence[Attacked] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether there are scores."""
        return self.state == DONE

    @property
    def is_lacking(self) -> bool:
        """Whether there are no scores, or a part of it has failed."""
        return not self.is_done or bool(self.reason)

    @property
    def label(self) -> str:
        """The method with what was done to it: "GA", "GA + clipping", "GA + GRU"."""
        named = {"": "", PLAIN: "", CLIPPED: " + clipping", GRU: " + GRU"}
        return self.title + named.get(self.variant, f" + {self.variant}")


@dataclass(frozen=True)
class StudyResults:
    """A study.

    Args:
        name: of its recipe.
        title: the recipe's first line.
        benchmark: tofu, muse, wmdp or own.
        backbone: as the paper's tables name it ("Phi-1.5"); empty where it has none like it.
        splits, seeds: in the recipe's order.
        plane: the two scores that count, retention then removal: heading -> which way is better.
        recipe: as it was used.
        command: that makes it again.
        seconds: of all jobs together; workers that ran at the same time count each.
        runs: every one of the recipe, whatever has come of it.
    """

    name: str
    title: str
    benchmark: str
    backbone: str
    splits: Sequence[str]
    seeds: Sequence[int]
    plane: Mapping[str, str]
    recipe: Mapping[str, Any]
    command: str
    seconds: float
    environment: Mapping[str, Any]
    runs: Sequence[StudyRun]

    @property
    def retention(self) -> str:
        """Heading of what is kept, e.g. "MU"; higher is better."""
        return next(iter(self.plane))

    @property
    def removal(self) -> str:
        """Heading of how well it is removed, e.g. "FQ (ln p)"."""
        return list(self.plane)[1]

    def find(self, **wanted: Any) -> Iterator[StudyRun]:
        """The runs with these values, e.g. ``find(split="forget05", variant="gru")``; ``use``: among its uses, or one
        of several.
        """
        use = wanted.pop("use", None)
        used = {use} if isinstance(use, str) else set(use or ())
        for run in self.runs:
            if (not use or not used.isdisjoint(run.uses)) and all(
                getattr(run, name) == value for name, value in wanted.items()
            ):
                yield run


def write(results: StudyResults, folder: Path) -> Path:
    """Writes results.json in ``folder``, a line a run; returns the file. JSON has no NaN and no infinity: null."""
    content = _finite(asdict(results))
    runs = ",\n".join(json.dumps(run, ensure_ascii=False, allow_nan=False) for run in content.pop("runs"))
    head = json.dumps(content, indent=2, ensure_ascii=False).removesuffix("\n}")
    write_text(folder / FILE, f'{head},\n  "runs": [\n{runs}\n  ]\n}}\n')
    return folder / FILE


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> StudyResults:
    """Reads results.json, or that of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not such a file, with its path.
    """
    file = path / FILE if path.is_dir() else path
    content = read_json(file)
    try:
        return StudyResults(**{**content, "runs": [_run(run) for run in content["runs"]]})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file}: expected the results of gru-fast study, got something else: {error}") from None


def _run(content: Mapping[str, Any]) -> StudyRun:
    parts: dict[str, Any] = {"points": Point, "samples": Sample, "calibrated": Calibrated, "attacked": Attacked}
    made = {name: [cls(**item) for item in content.get(name, [])] for name, cls in parts.items()}
    known = {part.name for part in fields(StudyRun)}
    return StudyRun(**{name: value for name, value in content.items() if name in known} | made)
