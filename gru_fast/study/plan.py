"""From a recipe to jobs, each a list of gru-fast commands, and to the runs that they leave.

OUTPUT_DIR/toy/                           data and untrained models, where the recipe has a toy
OUTPUT_DIR/excerpt/                       data, where it has an excerpt
OUTPUT_DIR/models/original-seed0/         what unlearning starts from
OUTPUT_DIR/models/retrained-forget05-seed0/
OUTPUT_DIR/runs/forget05/seed0/ga-gru/    a run folder as gru-fast unlearn leaves it, with its evaluations
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

from gru_fast.runs.records import Job
from gru_fast.study import results
from gru_fast.study.arguments import Arguments, flags
from gru_fast.study.recipe import Attacks, Calibration, Excerpt, Part, Recipe
from gru_fast.study.render import setting
from gru_fast.study.results import StudyRun
from gru_fast.study.task import CHECKPOINT, launcher_of
from gru_fast.study.toy import TAUGHT_TOO

MODELS, RUNS, TOY, EXCERPT = "models", "runs", "toy", "excerpt"  # folders of a study
_ALONG = {"save_strategy": "epoch", "save_only_model": True}

# Steps of a job, as JSON. See gru_fast/study/task.py.
Step = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """A run and the job that makes it."""

    run: StudyRun
    job: str
    evaluation: str  # its folder


@dataclass
class _Work:
    """A job while it is made."""

    name: str
    steps: list[Step]
    needs: tuple[str, ...] = ()
    planned: list[Planned] = field(default_factory=list)

    def job(self) -> Job:
        return Job(self.name, {"steps": self.steps}, self.needs)


@dataclass(frozen=True)
class Plan:
    """A study.

    Args:
        recipe: what is studied.
        folder: where everything is.
        keep_models: whether the weights of unlearned models stay after their evaluation.
        is_dry: nothing will be run here: what this machine cannot compute is no matter.
        is_done: nothing will be run at all: its runs are asked for, their data and models may be gone.

    Raises:
        ValueError: options that the commands would refuse, all at once, before anything is done.
    """

    recipe: Recipe
    folder: Path
    keep_models: bool = False
    is_dry: bool = False
    is_done: bool = False

    def jobs(self) -> dict[str, list[Job]]:
        """By group, in the order in which they are best done."""
        return {group: [work.job() for work in works] for group, works in self._works.items()}

    def runs(self) -> list[Planned]:
        """All runs, whatever job makes them."""
        return [planned for works in self._works.values() for work in works for planned in work.planned]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of jobs."""
        return tuple(self._works)

    @cached_property
    def _works(self) -> dict[str, list[_Work]]:
        if not self.is_done:
            self._arguments.check()
        settings = [(split, seed) for seed in self.recipe.seeds for split in self.recipe.splits]
        unlearned = [work for at in settings for work in self._unlearned(*at)]
        runs = [work.planned[0].run for work in unlearned]
        is_main = [results.COMPARISON in run.uses for run in runs]
        return {
            "models": list(self._models()),
            "comparison": [work for work, main in zip(unlearned, is_main, strict=True) if main],
            "vectors": [work for at in settings for work in self._vectors(*at)],
            "further": [
                *(work for work, main in zip(unlearned, is_main, strict=True) if not main),
                *(self._calibration(run) for run in runs if self._is_in(self.recipe.calibration, run)),
                *(self._attacked(run) for run in runs if self._is_in(self.recipe.attacks, run)),
            ],
        }

    # ---- the models to begin with ------------------------------------------------------------------------------------

    def _models(self) -> Iterator[_Work]:
        recipe = self.recipe
        if recipe.target is not None:
            for split in recipe.splits:
                if self._has_retrained(split):
                    yield self._given_retrained(split)
                yield self._original(split, None)
            return
        if recipe.excerpt is not None:
            yield _Work(EXCERPT, [self._excerpt(recipe.excerpt)])
        for seed in recipe.seeds:
            if recipe.toy is not None:
                yield _Work(f"toy-seed{seed}", [self._toy(seed)])
            yield self._finetuned(seed)
            for split in recipe.splits:
                yield self._retrained(split, seed)
                yield self._original(split, seed)

    def _excerpt(self, part: Excerpt) -> Step:
        splits = list(self.recipe.splits)
        return {"do": "excerpt", "source": self.recipe.data, "data": self._data, "splits": splits, **asdict(part)}

    def _toy(self, seed: int) -> Step:
        return {
            "do": "toy",
            "toy": asdict(self.recipe.toy),  # type: ignore[arg-type]
            "source": self.recipe.data,
            "data": self._data,
            "splits": list(self.recipe.splits),
            "template": self.recipe.model["template"],
            "seed": seed,
            "model": self._base(seed),
        }

    def _base(self, seed: int) -> str:
        return str(self.folder / TOY / f"base-seed{seed}") if self.recipe.toy else str(self.recipe.model["model"])

    @cached_property
    def _arguments(self) -> Arguments:
        return Arguments(self.recipe, self._data, self.is_dry)

    @property
    def _data(self) -> str | None:
        if self.recipe.toy is not None:
            return str(self.folder / TOY / "data")
        return str(self.folder / EXCERPT) if self.recipe.excerpt is not None else self.recipe.data

    def _finetuned(self, seed: int) -> _Work:
        return _Work(f"original-seed{seed}", [self._finetune("full", seed, self._target(seed))], self._made(seed))

    def _made(self, seed: int) -> tuple[str, ...]:
        """The job that makes the data, and a toy's untrained model."""
        if self.recipe.toy is not None:
            return (f"toy-seed{seed}",)
        return (EXCERPT,) if self.recipe.excerpt is not None else ()

    def _finetune(self, subset: str, seed: int, run: str) -> Step:
        options = {
            **self._arguments.of_model(self._base(seed)),
            **self._arguments.of_data(),
            "subset": subset + (TAUGHT_TOO if self.recipe.toy else ""),
            "seed": seed,
            **self._arguments.on_cpu(),
            "disable_tqdm": True,
            **(self.recipe.finetune or {}),
            "output_dir": run,
        }
        return self._train(["finetune", *flags(options)], run)

    def _retrained(self, split: str, seed: int) -> _Work:
        from gru_fast import benchmarks

        name = f"retrained-{split}-seed{seed}"
        run = str(self.folder / MODELS / name)
        subset = benchmarks.get(self.recipe.benchmark).retain_of(split)
        steps = [self._finetune(subset, seed, run), *self._evaluations_of_retrained(run, run, split)]
        return _Work(name, steps, self._made(seed), [self._reference(results.RETRAINED, name, run, split, seed)])

    def _given_retrained(self, split: str) -> _Work:
        given = self.recipe.retrained[split]
        name = f"retrained-{split}"
        folder = str(self.folder / MODELS / name)
        planned = self._reference(results.RETRAINED, name, folder, split, None)
        if not _is_log(given):
            return _Work(name, self._evaluations_of_retrained(given, folder, split), planned=[planned])
        argv = ["eval", self.recipe.benchmark, "--from-logs", given, "--retain-logs", given, "--split", split, "--json"]
        return _Work(name, [{"do": "print", "argv": argv, "file": f"{planned.evaluation}/summary.json"}], (), [planned])

    def _evaluations_of_retrained(self, model: str, folder: str, split: str) -> list[Step]:
        """Its evaluation, then that against itself, from its records: like it is what a model should become."""
        evaluation = self._evaluation(folder, split)
        first = self._evaluate(model, evaluation, split)
        return [first, self._evaluate(model, evaluation, split, retain_logs=evaluation)]

    def _original(self, split: str, seed: int | None) -> _Work:
        name = f"original-{split}" + ("" if seed is None else f"-seed{seed}")
        folder = str(self.folder / MODELS / "original") if seed is None else self._target(seed)
        planned = self._reference(results.ORIGINAL, name, folder, split, seed)
        step = self._evaluate(self._target(seed), planned.evaluation, split, retain_logs=self._retain_logs(split, seed))
        return _Work(name, [step], self._needs(split, seed), [planned])

    def _reference(self, kind: str, name: str, folder: str, split: str, seed: int | None) -> Planned:
        run = StudyRun(name, kind, kind.capitalize(), split, seed, folder=self._inside(folder))
        return Planned(run, name, self._evaluation(folder, split))

    def _target(self, seed: int | None) -> str:
        return self.recipe.target or str(self.folder / MODELS / f"original-seed{seed}")

    def _needs(self, split: str, seed: int | None) -> tuple[str, ...]:
        """The jobs of the models that a run on a split starts from and is compared with."""
        if self.recipe.target is None:
            return f"original-seed{seed}", f"retrained-{split}-seed{seed}"
        return (f"retrained-{split}",) if self._has_retrained(split) else ()

    def _has_retrained(self, split: str) -> bool:
        """Whether a given retrained model has a row of its own: TOFU's logs have numbers to print, others have not."""
        given = self.recipe.retrained.get(split)
        return given is not None and (self.recipe.benchmark == "tofu" or not _is_log(given))

    def _retain_logs(self, split: str, seed: int | None) -> str | None:
        if self.recipe.target is None:
            return self._evaluation(str(self.folder / MODELS / f"retrained-{split}-seed{seed}"), split)
        given = self.recipe.retrained.get(split)
        if given is None or _is_log(given):
            return given
        return self._evaluation(str(self.folder / MODELS / f"retrained-{split}"), split)

    # ---- unlearning --------------------------------------------------------------------------------------------------

    def _unlearned(self, split: str, seed: int) -> Iterator[_Work]:
        """Every method plain and with GRU; then, where asked for, as variants, clipped, and over gamma and tau."""
        found: dict[str, StudyRun] = {}
        for method in self.recipe.methods:
            for run in self._variants(split, seed, method):
                if run.name in found:
                    known = found[run.name]
                    rows = known.retain_rows if run.retain_rows is None else run.retain_rows
                    warm_up = known.warm_up if run.warm_up is None else run.warm_up
                    found[run.name] = replace(known, uses=[*known.uses, *run.uses], retain_rows=rows, warm_up=warm_up)
                else:
                    found[run.name] = run
        for run in found.values():
            yield self._unlearning(run)

    def _variants(self, split: str, seed: int, method: str) -> Iterator[StudyRun]:
        recipe = self.recipe
        used = self._arguments.settings[split, method]
        folder = f"{RUNS}/{split}/seed{seed}"

        def run(variant: str, use: str, gamma: float | None = None, tau: float | None = None) -> StudyRun:
            is_usual = (gamma, tau) == (used.gamma, used.tau)
            suffix = "" if variant != results.GRU or is_usual else f"-gamma{gamma:g}-tau{setting(tau)}"
            short = method + {results.PLAIN: "", results.CLIPPED: "-clipped", results.GRU: f"-gru{suffix}"}[variant]
            return StudyRun(
                f"{split}-seed{seed}-{short}", results.UNLEARNED, used.make_method().title, split, seed, method,
                variant, [use], gamma, tau, folder=f"{folder}/{short}",
            )  # fmt: skip

        usual = (used.retain_batch_size or used.per_device_train_batch_size, used.warm_up_retain)
        yield run(results.PLAIN, results.COMPARISON)
        yield run(results.GRU, results.COMPARISON, used.gamma, used.tau)
        for variant in recipe.variants_of(split, method, seed):
            own = self._arguments.of_variant(split, method, variant)
            one = run(results.GRU, results.FURTHER, used.gamma, used.tau)
            name, inside = f"{one.name}-{variant}", f"{one.folder}-{variant}"
            yield replace(one, name=name, folder=inside, variant=variant, gamma=own.gamma, tau=own.tau)
        if recipe.ablation is not None and recipe.ablation.holds(split, seed, method):
            yield run(results.PLAIN, results.ABLATION)
            tau = used.tau or recipe.ablation.tau
            yield run(results.CLIPPED, results.ABLATION, tau=tau)
            yield run(results.GRU, results.ABLATION, used.gamma, tau)
            for rows, warm_up in product(recipe.ablation.retain_batch_sizes, recipe.ablation.warm_up_retain):
                one = run(results.GRU, results.RETAIN, used.gamma, used.tau)
                more = "" if (rows, warm_up) == usual else f"-retain{rows}-warm{warm_up}"
                yield replace(one, name=one.name + more, folder=one.folder + more, retain_rows=rows, warm_up=warm_up)
        if recipe.sensitivity is not None and recipe.sensitivity.holds(split, seed, method):
            for gamma, tau in recipe.sensitivity.points(used.gamma):
                yield run(results.GRU, results.SENSITIVITY, gamma, tau)
            for gamma, rows in product(recipe.sensitivity.gammas, recipe.sensitivity.retain_batch_sizes):
                one = run(results.GRU, results.GAMMA_AND_ROWS, gamma, recipe.sensitivity.tau)
                more = "" if rows == usual[0] else f"-retain{rows}"
                yield replace(one, name=one.name + more, folder=one.folder + more, retain_rows=rows)

    def _unlearning(self, run: StudyRun) -> _Work:
        recipe, seed = self.recipe, cast("int", run.seed)  # unlearned runs have one
        folder = str(self.folder / run.folder)
        along = self._is_in(recipe.along, run)
        options = {
            **self._arguments.of_model(self._target(seed)),
            **self._arguments.of_data(),
            **self._arguments.of_benchmark(),
            "split": run.split,
            "method": run.method,
            "seed": seed,
            **self._arguments.on_cpu(),
            "disable_tqdm": True,
            "save_strategy": "no",
            **({"monitor": True} if run.variant in {results.PLAIN, results.CLIPPED} else {}),  # angles for the figures
            **recipe.options(run.split, run.method, run.variant),
            **_of_variant(run),
            **(_ALONG if along else {}),
            "output_dir": folder,
        }
        config = recipe.config.get(run.split)
        evaluation = self._evaluation(folder, run.split)
        logs = self._retain_logs(run.split, seed)
        steps = [self._train(["unlearn", *(["--config", config] if config else []), *flags(options)], folder)]
        if along:
            argv = self._evaluate(CHECKPOINT, f"{folder}/along/{CHECKPOINT}", run.split, retain_logs=logs)["argv"]
            steps.append({"do": "along", "run": folder, "argv": argv})
        steps.append(self._evaluate(folder, evaluation, run.split, retain_logs=logs))
        steps.append({"do": "moved", "run": folder, "start": self._target(seed)})
        if not self._is_in(recipe.calibration, run) and not self._is_in(recipe.attacks, run):
            steps += self._deletion(folder)
        return _Work(run.name, steps, self._needs(run.split, seed), [Planned(run, run.name, evaluation)])

    def _is_in(self, part: Part | None, run: StudyRun) -> bool:
        """Whether something is done for a run; it is for those of the comparison and the recipe's variants alone."""
        is_asked = part is not None and part.holds(run.split, cast("int", run.seed), run.method)
        return is_asked and not {results.COMPARISON, results.FURTHER}.isdisjoint(run.uses)

    def _calibration(self, run: StudyRun) -> _Work:
        """A job of its own: where no share can be kept, the run itself has not failed."""
        folder, logs = str(self.folder / run.folder), self._retain_logs(run.split, run.seed)
        step = self._calibrate(folder, run.split, cast("int", run.seed), logs)
        is_attacked = self._is_in(self.recipe.attacks, run)
        if is_attacked and cast("Attacks", self.recipe.attacks).at:
            step["argv"] += flags({"save_models": True})
        deletion = [] if is_attacked else self._deletion(folder)
        return _Work(calibration_of(run.name), [step, *deletion], (run.name,))

    def _calibrate(self, run: str, split: str, seed: int, logs: str | None) -> Step:
        part = cast("Calibration", self.recipe.calibration)
        options = {
            **self._arguments.of_model(run),
            **self._arguments.of_evaluation(split, logs),
            "original": self._target(seed),
            "target": part.shares,
            "resolution": part.resolution,
            "output_dir": f"{run}/calibration",
        }
        return {"do": "command", "argv": ["calibrate", *flags(options)]}

    def _attacked(self, run: StudyRun) -> _Work:
        """Attacks on a run and on its mixtures, a job of its own; the last that needs the weights."""
        folder, part = str(self.folder / run.folder), cast("Attacks", self.recipe.attacks)
        is_calibrated = self._is_in(self.recipe.calibration, run)
        models = [folder, *(mixture_of(folder, share) for share in part.at if is_calibrated)]
        steps = [self._attack(model, run.split, run.seed) for model in models]
        for model in models:
            steps += self._deletion(model)
        needs = (run.name, *([calibration_of(run.name)] if is_calibrated and part.at else []))
        return _Work(attacks_of(run.name), steps, needs)

    def _attack(self, model: str, split: str, seed: int | None) -> Step:
        part = cast("Attacks", self.recipe.attacks)
        logs = self._retain_logs(split, seed)
        options = {
            **self._arguments.of_model(model),
            "benchmark": self.recipe.benchmark,
            **self._arguments.of_data(),
            "split": split,
            **({"attacks": part.attacks} if part.attacks else {}),
            "original": self._target(seed),
            **{name: value for name, value in self._retrained_model(split, seed).items() if value},
            **({"retain_logs": logs} if logs else {}),
            "baselines": str(self.folder / "baselines"),
            **self._arguments.of_attack(),
            **part.options,
        }
        return {"do": "command", "argv": ["attack", *flags(options)]}

    def _retrained_model(self, split: str, seed: int | None) -> dict[str, str | None]:
        """The retrained model itself, where there is more of it than a log."""
        if self.recipe.target is None:
            return {"retrained": str(self.folder / MODELS / f"retrained-{split}-seed{seed}")}
        given = self.recipe.retrained.get(split)
        return {"retrained": None if given is None or _is_log(given) else given}

    def _deletion(self, folder: str) -> list[Step]:
        return [] if self.keep_models else [{"do": "delete", "run": folder}]

    # ---- task vectors ------------------------------------------------------------------------------------------------

    def _vectors(self, split: str, seed: int) -> Iterator[_Work]:
        for method, own in (("tv", self.recipe.tv), ("tru", self.recipe.tru)):
            if own is not None:
                yield self._vector(split, seed, method, own)

    def _vector(self, split: str, seed: int, method: str, own: Mapping[str, Any]) -> _Work:
        from gru_fast.unlearn.task_vector_options import METHODS, run_of

        name, inside = f"{split}-seed{seed}-{method}", f"{RUNS}/{split}/seed{seed}/{method}"
        folder = str(self.folder / inside)
        options = {
            **self._arguments.of_model(self._target(seed)),
            **self._arguments.of_data(),
            **self._arguments.of_benchmark(),
            "split": split,
            "method": method,
            "seed": seed,
            **self._arguments.on_device(),
            **own,
            "output_dir": folder,
        }
        work = _Work(name, [self._train(["tru", *flags(options)], folder)], self._needs(split, seed))
        for strength in own["stg"]:
            at = run_of(Path(folder), float(strength)).name
            evaluation = self._evaluation(f"{folder}/{at}", split)
            logs = self._retain_logs(split, seed)
            work.steps.append(self._evaluate(f"{folder}/{at}", evaluation, split, retain_logs=logs))
            work.steps += self._deletion(f"{folder}/{at}")
            run = StudyRun(
                f"{name}-{at}", results.VECTOR, METHODS[method], split, seed, method, uses=[results.COMPARISON],
                strength=float(strength), folder=f"{inside}/{at}",
            )  # fmt: skip
            work.planned.append(Planned(run, name, evaluation))
        work.steps += self._deletion(folder)
        return work

    # ---- options of commands -----------------------------------------------------------------------------------------

    def _train(self, argv: list[str], run: str) -> Step:
        launcher = launcher_of(argv, self.recipe.launch)
        return {"do": "train", "argv": argv, "run": run, **({"launch": launcher} if launcher else {})}

    def _evaluation(self, folder: str, split: str) -> str:
        return f"{folder}/eval/{self.recipe.benchmark}-{split}"

    def _evaluate(self, model: str, folder: str, split: str, retain_logs: str | None = None) -> Step:
        options = {
            **self._arguments.of_model(model),
            **self._arguments.of_evaluation(split, retain_logs),
            "output_dir": folder,
        }
        return {"do": "command", "argv": ["eval", self.recipe.benchmark, *flags(options)]}

    def _inside(self, folder: str) -> str:
        return str(Path(folder).relative_to(self.folder))


def calibration_of(run: str) -> str:
    """The job that calibrates a run, by the run's name."""
    return f"{run}-calibrated"


def attacks_of(run: str) -> str:
    """The job that attacks a run, by the run's name."""
    return f"{run}-attacked"


def mixture_of(folder: str, share: float) -> str:
    """The run folder that gru-fast calibrate --save-models leaves for a share."""
    return f"{folder}/calibration/target-{share:g}"


def _of_variant(run: StudyRun) -> dict[str, Any]:
    if results.FURTHER in run.uses:
        return {"rectify": True}
    if run.variant == results.GRU:
        found = {"rectify": True, "gamma": run.gamma, "tau": run.tau}
        more = {"retain_batch_size": run.retain_rows, "warm_up_retain": run.warm_up}
        return found | {name: value for name, value in more.items() if value is not None}
    return {"rectify": False} | ({"max_grad_norm": run.tau} if run.variant == results.CLIPPED else {})


def _is_log(given: str) -> bool:
    """Whether a retrained "model" is a log of its evaluation, or the folder of one."""
    return Path(given).is_file() or (Path(given) / "summary.json").is_file()
