"""Attack a model that has unlearned: does what it should have forgotten come back?

  gru-fast attack RUN --retain-logs RETAINED_RUN
  gru-fast attack RUN --attacks quantize sample --max-rows 50
  gru-fast attack RUN --retain-logs RETAINED_RUN --baselines baselines   the same for every run: half the work
  gru-fast attack MODEL --benchmark muse --data DIR --original MODEL --output-dir attacks

quantize   weights in 8 and 4 bits, the benchmark's own scores again
relearn    a few steps of fine-tuning on some rows to forget, on text near them, on harmless text
sample     many answers at several temperatures: leak@k
extract    beginnings of growing length, other wordings, "repeat the text", prompts that ask to ignore what was learned

Beside each score stands the share of the way back to the original model that the attack got, and what the same attack
does to the retrained model, which never knew: only more than that has come back. RUN says which benchmark it was, what
it was to forget and what it started from; a model that is no run is told by the flags. Scored rows are kept as
they come: the same command goes on after a stop. `--dry-run` says what it will take. The report of a run of
`gru-fast forget` is made anew with what came of it.

Several processes (torchrun) share the rows that are asked about.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_fast.attacks.parts.target import Target
    from gru_fast.models.load import ModelOptions
    from gru_fast.options.attack import AttackOptions

HELP = "attack an unlearned model: quantize, relearn, sample, extract"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    *of_attacks, _, model = commands.attack()
    options.add(parser, *of_attacks, commands.data_of_all(), model)
    parser.usage = "%(prog)s [RUN] [--config FILE] [options]"
    parser.add_argument("model", nargs="?", metavar="RUN", default=argparse.SUPPRESS, help="the same as --model")
    parser.add_argument("--dry-run", action="store_true", help="say what it will take, and stop")
    parser.add_argument("--json", action="store_true", help="print the summaries as one JSON object")


def run(args: argparse.Namespace) -> int:
    from gru_fast import attacks
    from gru_fast.attacks.parts import outcome
    from gru_fast.cli import chosen, evaluating, training
    from gru_fast.options import commands
    from gru_fast.options import flags as options
    from gru_fast.runs import processes

    args.benchmark = _benchmark_name(args)
    benchmark = chosen.benchmark(args)
    classes = commands.attack(benchmark)
    how, *instances, data, model = options.resolve(args, *classes, fill=lambda values: _fill(benchmark, values))
    settings = dict(zip(attacks.names(), instances, strict=True))
    if args.print_config:
        print(options.config_text((how, *instances, data, model), args), end="")
        return 0
    summaries = {}
    with processes.joined(how.device) as (rank, _):
        if rank > 0:
            evaluating.be_quiet()
        training.fit_lengths(benchmark, model, data, shown=rank == 0)
        target = _target(how, benchmark, data, model)
        for name in how.attacks:
            if rank == 0:
                print(f"{name}: {attacks.get(name).cost(settings[name], target)}", file=sys.stderr)
        for name in [] if args.dry_run else how.attacks:
            summaries[name] = outcome.carried_out(attacks.get(name), settings[name], target)
            if rank == 0 and not args.json:
                more = attacks.get(name).report(summaries[name])
                print("\n".join(filter(None, [outcome.report(summaries[name]), more])) + "\n")
        if summaries:
            processes.on_first(lambda: _renew_dossier(Path(model.model), target.folder))
    if rank == 0 and args.json:
        print(json.dumps(summaries, indent=2))
    return 0


def check(chosen: Mapping[str, Any]) -> None:
    """Raises ValueError, with all that is wrong, for options of attacks that could not be."""
    from gru_fast.options import commands
    from gru_fast.options import flags as options
    from gru_fast.runs.messages import nearest

    *classes, _, _ = commands.attack()
    known = {part.name for cls in classes for part in dataclasses.fields(cls)}
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f'gru-fast attack has no option "{unknown[0]}"{nearest(unknown[0], known)}')
    options.resolve(argparse.Namespace(config=None, **chosen), *classes)


def _renew_dossier(run: Path, attacks: Path) -> None:
    """Where the attacks lie in a run of `gru-fast forget`, its reports say what came of them."""
    from gru_fast.forget import attacked, dossier, manifest

    if (run / manifest.MANIFEST).is_file() and attacks.resolve().parent == (run / attacked.FOLDER).resolve():
        dossier.write(run, manifest.read(run))


# ---- options ---------------------------------------------------------------------------------------------------------


def _benchmark_name(args: argparse.Namespace) -> str:
    """Of a flag, the config file, the run, or the default."""
    from gru_fast.cli import evaluating
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    content = options.read_config(args.config)[0] if args.config else {}
    given = getattr(args, "benchmark", content.get("benchmark"))
    model = getattr(args, "model", content.get("model"))
    return str(given or evaluating.config_of(model).get("benchmark", commands.DEFAULT_BENCHMARK))


def _fill(benchmark: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the run of the model says of options that were not given."""
    from gru_fast import benchmarks
    from gru_fast.cli import evaluating
    from gru_fast.models.load import template_of_run

    config = evaluating.config_of(values.get("model"))
    name = values["benchmark"]
    found: dict[str, Any] = {}
    if config.get("benchmark", name) == name:
        known = {part.name for part in dataclasses.fields(benchmark.Options)} - {"idk_file", "alternates"}
        of_run = benchmarks.evaluation(name).defaults_of_run(config)
        found |= {key: value for key, value in {**of_run, **config}.items() if key in known}
    found |= template_of_run(config, values.get("template"))
    if "method" in config:  # else it is a model before unlearning, whose run says what that was taught on
        found["original"] = config.get("original") or config.get("model")
    return {key: value for key, value in found.items() if value is not None}


# ---- the target ------------------------------------------------------------------------------------------------------


def _target(how: AttackOptions, benchmark: Any, data: Any, model: ModelOptions) -> Target:
    """The model and those beside it, none of them loaded."""
    from gru_fast import benchmarks
    from gru_fast.attacks.parts.target import ORIGINAL, RETRAINED, UNLEARNED, Target
    from gru_fast.cli import evaluating
    from gru_fast.models.load import find

    retrained = how.retrained or _model_of(how.retain_logs)
    names = {UNLEARNED: model.model, ORIGINAL: how.original, RETRAINED: retrained}
    _check_names(names)
    evaluation = benchmarks.evaluation(data.benchmark)
    of_evaluation = evaluating.options_of(data, how.retain_logs, how.evaluate, "evaluate")
    title = evaluation.title(of_evaluation)
    folder = find(model.model)
    if how.output_dir is None and (folder is None or not folder.is_dir()):
        raise ValueError(f"output_dir: {model.model} is no folder that could hold the attacks; give --output-dir")
    models = _Models({role: _asked(model, role, name) for role, name in names.items() if name}, how)
    return Target(
        subjects={role: models.subject(role) for role in models.options},
        folder=Path(how.output_dir or f"{folder}/attacks/{title}"),
        benchmark=benchmark,
        data=data,
        evaluation=evaluation,
        options=of_evaluation,
        words=models.words,
        train=models.train,
        homes={role: _home(options.model, title) for role, options in models.options.items()},
        device=how.device,
        max_rows=how.max_rows or None,
        max_new_tokens=how.max_new_tokens,
        prefix_tokens=how.prefix_tokens,
        baselines=Path(how.baselines) if how.baselines else None,
    )


def _check_names(names: Mapping[str, str | None]) -> None:
    """Refuses models that are not there, or that are one another, before anything is done."""
    from gru_fast.models.load import find

    for role, name in names.items():
        if name is None:
            continue
        try:
            find(name)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{role}: {error}") from None
    unlearned = names["unlearned"]
    for role, name in names.items():
        if role != "unlearned" and name == unlearned:
            raise ValueError(f"{role}: it is the model under attack itself, {name}; give the {role} model")


def _model_of(retain_logs: str | None) -> str | None:
    """The retrained model where its evaluation was named by its folder; None of a log."""
    from gru_fast.models.load import find

    if retain_logs is None or not Path(retain_logs).is_dir():
        return None
    try:
        find(retain_logs)
    except (FileNotFoundError, ValueError):
        return None
    return retain_logs


def _home(model: str, title: str) -> Path | None:
    """Where gru-fast eval would have left an evaluation of a model."""
    from gru_fast.models.load import find

    folder = find(model)
    return folder / "eval" / title if folder is not None and folder.is_dir() else None


def _asked(model: ModelOptions, role: str, name: str) -> ModelOptions:
    """The options of a model beside the one under attack: all are asked in the same words."""
    return model if role == "unlearned" else dataclasses.replace(model, model=name, revision=None, base_model=None)


class _Models:
    """The models, one of them in memory at a time."""

    def __init__(self, options: Mapping[str, ModelOptions], how: AttackOptions) -> None:
        self.options = options
        self.how = how
        self._loaded: tuple[str, Any] | None = None
        self._words: tuple[Any, Any] | None = None

    def subject(self, role: str) -> Any:
        from gru_fast.cli import evaluating
        from gru_fast.evaluation.subject import Subject

        options = self.options[role]
        return Subject(
            asked=evaluating.asked_for(options),
            output_dir=Path(),
            load=lambda: self.load(role),
            is_older_than=lambda file: evaluating.newest(options.model) < file.stat().st_mtime,
            batch_size=self.how.batch_size,
            overwrite=self.how.overwrite,
        )

    def load(self, role: str) -> tuple[Any, Any, Any]:
        """A model on its device, its tokenizer and template; the one before it is let go."""
        from gru_fast.cli import evaluating

        if self._loaded is None or self._loaded[0] != role:
            self._loaded = None
            self._loaded = role, evaluating.load(self.options[role], self.how.device)
        found: tuple[Any, Any, Any] = self._loaded[1]
        return found

    def words(self) -> tuple[Any, Any]:
        """Tokenizer and template of the model under attack."""
        from gru_fast import models

        if self._words is None:
            options = self.options["unlearned"]
            tokenizer = models.load_tokenizer(options)
            self._words = tokenizer, models.load_template(options, tokenizer)
        return self._words

    def train(self, role: str) -> tuple[Any, Any, Any]:
        """A model made ready to train, on the CPU, anew at every call."""
        from gru_fast import models

        self._loaded = None
        options = self.options[role]
        tokenizer = models.load_tokenizer(options)
        template = models.load_template(options, tokenizer)
        model = models.load_model(options, train=True)
        models.check_vocabulary(model, tokenizer)
        return model, tokenizer, template
