"""From options to a sweep: what its studies are made with, the files that its runs start from, its jobs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.evaluation.judge import JUDGES, Judge
from gru_fast.runs.files import differences, read_json, write_json
from gru_fast.runs.records import Job
from gru_fast.sweep.options import SweepOptions

if TYPE_CHECKING:
    from gru_fast.models.load import ModelOptions
    from gru_fast.unlearn import UnlearnConfig

ORIGINAL = "original"  # the job of the model that unlearning starts from
SETTINGS, RUNS = "settings", "runs"  # folders of a sweep
_EVALUATION, _SETTINGS = "eval.yaml", "sweep.json"  # in SETTINGS, beside METHOD.yaml
_OWN = ("model", "output_dir", "split", "data", "retain_logs", "from_logs", "overwrite")  # of eval_options, the sweep's
# An evaluation loads the model in the same way.
_OF_MODEL = ("template", "template_options", "dtype", "attn_implementation", "trust_remote_code")
_PER_RUN = ("output_dir", "gamma", "tau")


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Args:
        folder: where its files and runs are.
        options: what is swept and how it is judged.
        model, data: the original model, and what it is to forget.
        configs: the training of each method, by name; gamma, tau and the folder come with each run.
    """

    folder: Path
    options: SweepOptions
    model: ModelOptions
    data: Any
    configs: Mapping[str, UnlearnConfig]

    @property
    def judge(self) -> Judge:
        """What the runs are judged by: the benchmark's."""
        return JUDGES[self.data.benchmark]

    @property
    def needs_original(self) -> bool:
        """Whether runs ask for the original model's utility while they are made."""
        return self.options.prune or self.options.sampler == "tpe"

    def check(self) -> None:
        """Refuses what would fail in every run, before anything is written.

        Raises:
            ValueError, FileNotFoundError, FileExistsError: no such model or log, evaluation options that cannot be, a
                folder with something else in it.
        """
        from gru_fast.jobs.driver import is_free
        from gru_fast.metrics.logs import read_log
        from gru_fast.models.load import find

        self.check_version()
        if not (self.folder / SETTINGS).is_dir() and not is_free(self.folder):
            raise FileExistsError(f"output folder {self.folder} is not empty, and no sweep made it; choose another")
        if self.judge.benchmark != "tofu":
            self._refuse_of_tofu()
        elif self.options.retain_logs is None:
            raise ValueError(
                "retain_logs: no value; give --retain-logs, the retrained model's run or log, which Forget Quality "
                "compares with"
            )
        find(self.model.model)
        if self.options.retain_logs is not None:
            read_log(self.options.retain_logs, self.data.split)
        self.evaluation()

    def _refuse_of_tofu(self) -> None:
        """Refuses options that other benchmarks have no use for."""
        for name in ("retain_logs", "prune"):
            if getattr(self.options, name):
                raise ValueError(
                    f"{name}: is for TOFU's evaluation, not for that of {self.judge.benchmark}; leave it out"
                )

    def check_version(self) -> None:
        """Refuses a folder of gru_fast 0.1: FileExistsError."""
        if (self.folder / "sweep.db").exists():
            raise FileExistsError(
                f"{self.folder}/sweep.db is of gru_fast 0.1, which kept its jobs there: delete it and start the same "
                "command again, which finds what is whole in runs/ and does the rest"
            )

    def check_same(self) -> None:
        """Refuses a folder whose sweep was made with other options: ValueError, naming what differs."""
        file = self.folder / SETTINGS / _SETTINGS
        made = read_json(file) if file.is_file() else {}
        for group, wanted in self.settings().items():
            changed = differences(made[group], wanted) if group in made else []
            if changed:
                raise ValueError(
                    f'{self.folder}: "{group}" was made with {"; ".join(changed)}: give the same options, or another '
                    "--output-dir"
                )

    def evaluation(self) -> dict[str, Any]:
        """Options of gru-fast eval, of every model.

        Raises:
            ValueError: ``eval_options`` that cannot be.
        """
        from gru_fast import benchmarks
        from gru_fast.options import flags as options
        from gru_fast.options.coerce import nearest
        from gru_fast.options.commands import EvalOptions

        given = {str(name).replace("-", "_"): value for name, value in self.options.eval_options.items()}
        evaluation: type = benchmarks.evaluation(self.judge.benchmark).Options
        known = [field.name for cls in (evaluation, EvalOptions) for field in dataclasses.fields(cls)]
        for name in given:
            if name in _OWN:
                raise ValueError(f"eval_options: {name} is the sweep's to say; leave it out")
            if name not in known:
                raise ValueError(
                    f'eval_options: gru-fast eval {self.judge.benchmark} has no option "{name}"{nearest(name, known)}'
                )
        loading = {name: getattr(self.model, name) for name in _OF_MODEL}
        found = {
            **self._documents(evaluation),
            **({"retain_logs": self.options.retain_logs} if self.judge.benchmark == "tofu" else {}),
            **{name: value for name, value in loading.items() if value not in (None, False)},
            **given,
        }
        try:
            asked = {**(found if self.judge.benchmark != "tofu" else given), "config": None}
            options.resolve(argparse.Namespace(**asked), evaluation, EvalOptions)
        except ValueError as error:
            raise ValueError(f"eval_options: {error}") from None
        return found

    def _documents(self, evaluation: type) -> dict[str, Any]:
        """What training and evaluation are told alike: where the rows are, and of own documents how they are cut."""
        if self.judge.benchmark == "tofu":
            return {"split": self.data.split, "data": self.data.data}
        both = {field.name for field in dataclasses.fields(evaluation)}
        found = {field.name: getattr(self.data, field.name) for field in dataclasses.fields(self.data)}
        return {name: value for name, value in found.items() if name in both and value is not None}

    def settings(self) -> dict[str, dict[str, Any]]:
        """What each study is made with: all that its numbers depend on."""
        from gru_fast import runs
        from gru_fast.options.flags import to_dict

        common = {
            "model": self.model.model,
            "split": self.data.split,
            "evaluation": {name: value for name, value in self.evaluation().items() if name != "batch_size"},
        }
        judged: dict[str, Any] = (
            {"share": self.options.share, "prune": self.options.prune} if self.needs_original else {}
        )
        swept: dict[str, Any] = {
            "sampler": self.options.sampler,
            "gammas": self.options.gammas,
            "taus": self.options.taus,
            **judged,
        }
        found = {ORIGINAL: common}
        for method, config in self.configs.items():
            training = runs.what_counts(to_dict((self.model, self.data, config)))
            for name in (*_PER_RUN, *common):
                training.pop(name, None)
            found[method] = {**common, **swept, **training}
        return found

    def jobs(self) -> list[Job]:
        """The original model's evaluation, then the runs of each method."""
        points = self._grid if self.options.sampler == "grid" else self._slots
        return [Job(ORIGINAL), *(job for method in self.configs for job in points(method))]

    def _grid(self, method: str) -> list[Job]:
        return [
            self._job(
                method, f"gamma{gamma:g}-tau{'none' if tau is None else f'{tau:g}'}", {"gamma": gamma, "tau": tau}
            )
            for gamma in self.options.gammas
            for tau in self.options.taus
        ]

    def _slots(self, method: str) -> list[Job]:
        """Jobs whose gamma and tau are drawn when their turn has come."""
        return [self._job(method, f"tpe{index:03d}", {"number": index}) for index in range(self.options.trials)]

    def _job(self, method: str, name: str, spec: Mapping[str, Any]) -> Job:
        needs = (ORIGINAL,) if self.needs_original else ()
        return Job(f"{method}-{name}", {"method": method, **spec}, needs)

    def write_settings(self) -> None:
        """The files that commands of every run start from, METHOD.yaml and eval.yaml, and what all was made with."""
        import yaml

        from gru_fast.options.flags import config_text
        from gru_fast.runs.files import write_text

        for method, config in self.configs.items():
            lines = config_text((self.model, self.data, config)).splitlines(keepends=True)
            own = tuple(f"{name}:" for name in _PER_RUN)
            write_text(self.folder / SETTINGS / f"{method}.yaml", "".join(x for x in lines if not x.startswith(own)))
        write_text(evaluation_file(self.folder), yaml.safe_dump(self.evaluation(), sort_keys=False))
        file = self.folder / SETTINGS / _SETTINGS
        write_json(file, {**(read_json(file) if file.is_file() else {}), **self.settings()})


def evaluation_file(folder: Path) -> Path:
    """Options of the evaluations of a sweep."""
    return folder / SETTINGS / _EVALUATION


def training_file(folder: Path, method: str) -> Path:
    """Options of the runs of a method."""
    return folder / SETTINGS / f"{method}.yaml"


def read_settings(file: Path) -> dict[str, Any]:
    """The content of one of these files."""
    from gru_fast.options.flags import read_config

    return read_config(str(file))[0]
