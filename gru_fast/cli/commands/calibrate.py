"""Find how much of an unlearned model keeps a wanted share of the original model's utility (UWC).

    gru-fast calibrate --model runs/tofu-forget05-npo --original runs/tofu-full --target 0.85 0.9 0.95 --retain-logs R

Moves the unlearned model towards the original one, theta = alpha * unlearned + (1 - alpha) * original, and finds for
each target the largest alpha whose utility (TOFU: Model Utility; MUSE: KnowMem on retain; WMDP: MMLU) is at least that
share of the original's, by bisection with the benchmark's own evaluation. Methods calibrated to one utility can be
compared by what they forgot. Every evaluation is kept, and used again: for the next target, after a stop, or at a finer
--resolution; so are those of the two models that gru-fast eval has left in their folders. Processes of torchrun share
the rows of each evaluation, as with gru-fast eval.

Utility need not fall steadily with alpha: the alpha that is found keeps the target, no larger one that was evaluated
does, and one that does not is within --resolution; between the points, a larger one may.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import typing
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HELP = "mix an unlearned model with the original one until it keeps a wanted utility (UWC)"

RESULT = "calibration.json"
_TABLE = "calibration.md"
_DEFAULT = "tofu"


@dataclass
class CalibrateOptions:
    """What to keep, and how finely to look."""

    benchmark: str | None = field(
        default=None, metadata={"help": f"whose utility to keep; by default that of the run of --model, or {_DEFAULT}"}
    )
    original: str | None = field(
        default=None, metadata={"help": "the model before unlearning, as --model; by default what its run started from"}
    )
    target: list[float] = field(
        default_factory=lambda: [0.85, 0.9, 0.95], metadata={"help": "shares of the original's utility to keep"}
    )
    resolution: float = field(default=0.02, metadata={"help": "the bisection ends when alpha is known this well"})
    output_dir: str | None = field(
        default=None, metadata={"help": "folder of the evaluations; by default calibration/... in the model's"}
    )
    save_models: bool = field(
        default=False, metadata={"help": "keep each target's model as a run folder for gru-fast report, target-0.9"}
    )
    overwrite: bool = field(default=False, metadata={"help": "evaluate anew what was evaluated before"})
    batch_size: int = field(default=16, metadata={"help": "rows at a time"})
    device: str | None = field(
        default=None, metadata={"help": "cuda, cuda:1, cpu, ...; by default the accelerator, if there is one"}
    )

    def __post_init__(self) -> None:
        from gru_fast.unlearn.task_vector_options import numbers

        self.target = numbers("target", self.target)
        problems = [
            f"target: expected shares in (0, 1], such as 0.9, got {share:g}"
            for share in self.target
            if not 0 < share <= 1
        ]
        if not self.target:
            problems.append("target: expected at least one share, such as 0.9")
        if not 0 < self.resolution <= 1:
            problems.append(f"resolution: expected a number in (0, 1], got {self.resolution:g}")
        if self.batch_size < 1:
            problems.append(f"batch_size: expected at least 1, got {self.batch_size}")
        if problems:
            raise ValueError("; ".join(problems))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.models.load import ModelOptions
    from gru_fast.options import flags as options

    options.add(parser, CalibrateOptions, _benchmark_flags(), ModelOptions)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    from gru_fast import benchmarks
    from gru_fast.cli import chosen, evaluating
    from gru_fast.models.load import ModelOptions
    from gru_fast.options import flags as options
    from gru_fast.runs import processes

    name = _chosen(args)
    evaluation = benchmarks.evaluation(name)
    chosen.refuse_others(args, name, evaluation.Options, _benchmark_flags())
    classes = (CalibrateOptions, evaluation.Options, ModelOptions)
    instances = options.resolve(args, *classes, fill=lambda values: _fill(evaluation, values))
    instances[0].benchmark = name
    if args.print_config:
        print(options.config_text(instances, args), end="")
        return 0
    work = _Work(evaluation, *instances)
    with processes.joined(instances[0].device) as (rank, _), work:
        if rank > 0:
            evaluating.be_quiet()
        result = work.run()
    if rank == 0:
        print(json.dumps(result, indent=2) if args.json else table(result))
    return 0


# ---- options ---------------------------------------------------------------------------------------------------------


def _benchmark_flags() -> type:
    """The options of all evaluations as one class, for flags and help alone: which are in use is known later."""
    from gru_fast import benchmarks

    found: dict[str, tuple[Any, list[str]]] = {}
    for name in benchmarks.names():
        cls = benchmarks.evaluation(name).Options
        for part in dataclasses.fields(cls):
            hint = typing.get_type_hints(cls)[part.name]
            found.setdefault(part.name, (hint, []))[1].append(f"{name}: {part.metadata['help']}")
    found.pop("from_logs", None)  # a log has no weights to mix
    taken = {part.name for part in dataclasses.fields(CalibrateOptions)}
    fields = [
        (name, hint, dataclasses.field(default=None, metadata={"help": "; ".join(texts)}))
        for name, (hint, texts) in found.items()
        if name not in taken
    ]
    return dataclasses.make_dataclass("EvaluationOptions", fields)


def _chosen(args: argparse.Namespace) -> str:
    """Name of the benchmark: a flag's, the config file's, the run's, or the default."""
    from gru_fast.cli import evaluating
    from gru_fast.options import flags as options

    content = options.read_config(args.config)[0] if args.config else {}
    given = getattr(args, "benchmark", content.get("benchmark"))
    model = getattr(args, "model", content.get("model"))
    return str(given or evaluating.config_of(model).get("benchmark", _DEFAULT))


def _fill(evaluation: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the run of the model says of options that were not given."""
    from gru_fast.cli import evaluating
    from gru_fast.models.load import template_of_run

    config = evaluating.config_of(values.get("model"))
    of_template = template_of_run(config, values.get("template"))
    found = {**evaluation.defaults_of_run(config), **of_template, "original": config.get("model")}
    return {name: value for name, value in found.items() if value is not None}


# ---- the work --------------------------------------------------------------------------------------------------------


class _Work(ExitStack):
    """The two models, loaded only if something is left to evaluate, and what was evaluated."""

    def __init__(self, evaluation: Any, how: CalibrateOptions, chosen: Any, model: Any) -> None:
        from gru_fast.models.load import find

        super().__init__()
        self.evaluation = evaluation
        self.how = how
        self.chosen = chosen
        self.model = model
        if model.load_in_4bit:
            raise ValueError("load_in_4bit: the weights of two models are mixed, which 4 bits cannot be; leave it out")
        if how.original is None:
            raise ValueError(f"original: {model.model} is no run that says what it started from; give --original")
        if how.original == model.model:
            raise ValueError("original: it is --model itself; give the model before unlearning")
        find(how.original)  # its message, before anything is done
        folder = find(model.model)
        title = evaluation.title(chosen)
        if how.output_dir is None and (folder is None or not folder.is_dir()):
            raise ValueError(f"output_dir: {model.model} is no folder that could hold evaluations; give --output-dir")
        self.folder = Path(how.output_dir or f"{folder}/calibration/{title}")
        self.title = title
        self.summaries: dict[float, dict[str, Any]] = {}
        self._loaded: tuple[Any, Any, Any, Callable[[float], None]] | None = None

    def run(self) -> dict[str, Any]:
        """Alpha for each target, written and returned."""
        from gru_fast.runs import processes
        from gru_fast.unlearn.uwc import largest_alpha

        points: dict[float, float] = {}
        original = points[0.0] = self.utility(0.0)
        if math.isnan(original):
            heading = next(iter(self.evaluation.PLANE))
            raise ValueError(
                f"{heading}: the evaluation has no number for it, of which a share could be kept; if there is no text "
                "to keep, give --retain"
            )
        if not original > 0:
            raise ValueError(f"original: its utility is {original:g}, of which no share can be kept")
        rows = []
        for share in sorted(self.how.target):
            alpha = largest_alpha(self.utility, share * original, points, self.how.resolution)
            rows.append({"target": share, "utility_at_least": share * original, **self._row(alpha or 0.0)})
        result = {
            "benchmark": self.how.benchmark,
            "evaluation": self.title,
            "model": self.model.model,
            "original": self.how.original,
            "utility": next(iter(self.evaluation.PLANE)),
            "resolution": self.how.resolution,
            "original_row": self._row(0.0),
            "unlearned_row": self._row(1.0),
            "targets": rows,
            "points": [self._row(alpha) for alpha in sorted(points)],
        }
        processes.on_first(lambda: self._write(result))
        return result

    def _write(self, result: Mapping[str, Any]) -> None:
        from gru_fast import runs

        runs.write_json(self.folder / RESULT, result)
        runs.write_text(self.folder / _TABLE, table(result, markdown=True) + "\n")
        if self.how.save_models:
            for row in result["targets"]:
                self._save(row)

    def utility(self, alpha: float) -> float:
        """Utility at an alpha, evaluated or read. NaN where the summary has none."""
        from gru_fast.runs.processes import here, on_first

        if alpha not in self.summaries:
            on_first(lambda: self._take_over(alpha))
            self.summaries[alpha] = self.evaluation.run(self.chosen, self._subject(alpha))
            shown = [f"{name} {_number(value)}" for name, value in self._columns(alpha).items() if value is not None]
            if here()[0] == 0:
                print(f"alpha {alpha:g}: {', '.join(shown)}", file=sys.stderr)
        value = self._columns(alpha)[next(iter(self.evaluation.PLANE))]
        return float("nan") if value is None else value

    def _columns(self, alpha: float) -> dict[str, float | None]:
        return dict(self.evaluation.columns(self.summaries[alpha]))

    def _row(self, alpha: float) -> dict[str, Any]:
        return {"alpha": alpha, **self._columns(alpha)}

    def _take_over(self, alpha: float) -> None:
        """Takes what `gru-fast eval` has left in the folder of one of the two models, if it answers what is asked."""
        from gru_fast import runs
        from gru_fast.cli import evaluating
        from gru_fast.evaluation.summaries import SUMMARY_FILE, finished, take_over
        from gru_fast.models.load import find

        names = {0.0: str(self.how.original), 1.0: self.model.model}
        folder = find(names[alpha]) if alpha in names else None
        if folder is None or self._point(alpha).exists() or self.how.overwrite:
            return
        alone = dataclasses.replace(self.model, model=names[alpha], revision=self.model.revision if alpha else None)
        wanted = self.evaluation.wanted(self.chosen, evaluating.asked_for(alone))
        for file in sorted(folder.glob(f"eval/*/{SUMMARY_FILE}")):
            if not finished(file.parent, wanted) or evaluating.newest(names[alpha]) >= file.stat().st_mtime:
                continue
            # Else the two ends would be compared with a retrained model, and what is between them with none.
            is_compared = bool(runs.read_json(file)["settings"].get("retain_logs"))
            if not is_compared or self.chosen.retain_logs:
                take_over(file.parent, self._point(alpha), self._asked(alpha))
                return

    def _asked(self, alpha: float) -> dict[str, Any]:
        from gru_fast.cli import evaluating

        return {**evaluating.asked_for(self.model), "original": self.how.original, "alpha": alpha}

    def _subject(self, alpha: float) -> Any:
        from gru_fast.cli import evaluating
        from gru_fast.evaluation.subject import Subject

        names = [self.model.model, str(self.how.original)]
        return Subject(
            asked=self._asked(alpha),
            output_dir=self._point(alpha),
            load=lambda: self._load(alpha),
            is_older_than=lambda file: max(map(evaluating.newest, names)) < file.stat().st_mtime,
            batch_size=self.how.batch_size,
            overwrite=self.how.overwrite,
        )

    def _point(self, alpha: float) -> Path:
        return self.folder / f"alpha-{alpha!r}"

    def _load(self, alpha: float) -> tuple[Any, Any, Any]:
        """The model at an alpha, its tokenizer and template."""
        from gru_fast.cli import evaluating
        from gru_fast.models.load import load_model
        from gru_fast.unlearn.uwc import interpolated

        if self._loaded is None:
            model, tokenizer, template = evaluating.load(self.model, self.how.device)
            original = load_model(dataclasses.replace(self.model, model=str(self.how.original), revision=None))
            set_alpha = self.enter_context(interpolated(model, original))
            self._loaded = model, tokenizer, template, set_alpha
        model, tokenizer, template, set_alpha = self._loaded
        set_alpha(alpha)
        return model, tokenizer, template

    def _save(self, row: Mapping[str, Any]) -> None:
        """The model of a target as a run folder, with its evaluation."""
        import shutil

        from gru_fast import runs
        from gru_fast.cli import evaluating

        config, result = evaluating.config_of(self.model.model), self._result_of_run()
        folder = self.folder / f"target-{row['target']:g}"
        model, tokenizer, template = self._load(row["alpha"])
        settings = {**config, "model": self.model.model, "original": self.how.original, "template": template.name}
        settings |= {
            "template_options": dict(template.options) or None,
            "alpha": row["alpha"],
            "target": row["target"],
            "benchmark": self.how.benchmark,
        }
        runs.start(folder, _yaml(settings), overwrite=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        shutil.copytree(self._point(row["alpha"]), folder / "eval" / self.title)
        said = {"method": config.get("method"), "split": config.get("split"), "rectify": bool(config.get("rectify"))}
        title = f"{result.get('title') or Path(self.model.model).name} + UWC {row['target']:.0%}"
        runs.write_json(
            folder / runs.RESULT,
            {**said, **result, "command": "calibrate", "title": title, "alpha": row["alpha"], "finished": runs.now()},
        )

    def _result_of_run(self) -> dict[str, Any]:
        from gru_fast import runs

        folder = Path(self.model.model)
        found = dict(runs.read_run(folder).result or {}) if runs.is_run(folder) else {}
        # What gru-fast forget said of its model does not hold for a mixture.
        return {name: value for name, value in found.items() if name not in {"verdict", "kept"}}


def _yaml(settings: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))


# ---- the table -------------------------------------------------------------------------------------------------------


def table(result: Mapping[str, Any], *, markdown: bool = False) -> str:
    """Targets against what is left to say of each model: the paper's Tables 9 and 10, a row a target."""
    names = [name for name in result["original_row"] if name != "alpha"]
    names = [name for name in names if any(row[name] is not None for row in result["points"])]
    lines = [["target", "alpha", *names]]
    for said, row in (
        ("original", result["original_row"]),
        *((f"{row['target']:.4g} x {result['utility']}", row) for row in reversed(result["targets"])),
        ("unlearned", result["unlearned_row"]),
    ):
        lines.append([said, f"{row['alpha']:.4g}", *(_number(row[name]) for name in names)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    if markdown:
        rows = [f"| {' | '.join(line)} |" for line in lines]
        return "\n".join([rows[0], "|---|" + "---:|" * (len(widths) - 1), *rows[1:]])
    shown = []
    for line in lines:
        first, *numbers = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        shown.append("  ".join([first.strip().ljust(widths[0]), *numbers]))
    return "\n".join([shown[0], "  ".join("-" * width for width in widths), *shown[1:]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"
