"""Options of the commands of a study, and what these would refuse."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gru_fast.study.recipe import Recipe


@dataclass(frozen=True)
class Arguments:
    """What the commands are given.

    Args:
        recipe: what is studied.
        data: the benchmark's files; None: its own default.
        is_dry: nothing will be run here.
    """

    recipe: Recipe
    data: str | None
    is_dry: bool = False

    def of_evaluation(self, split: str, retain_logs: str | None) -> dict[str, Any]:
        """Those that the benchmark's evaluation has: not every one knows splits, or compares with another model."""
        from gru_fast import benchmarks

        known = {part.name for part in fields(benchmarks.evaluation(self.recipe.benchmark).Options)}
        found = {**self.of_data(), "split": split, **({"retain_logs": retain_logs} if retain_logs else {})}
        own = {name: value for name, value in found.items() if name in known}
        return {**own, **self.on_device(), **self.recipe.evaluate}

    def of_attack(self) -> dict[str, Any]:
        """What evaluations are given, as gru-fast attack has it: some of it are its own options."""
        from gru_fast import benchmarks

        known = {part.name for part in fields(benchmarks.evaluation(self.recipe.benchmark).Options)}
        own = {name: value for name, value in self.recipe.evaluate.items() if name not in known}
        of_evaluation = {name: value for name, value in self.recipe.evaluate.items() if name in known}
        return {**({"evaluate": of_evaluation} if of_evaluation else {}), **own, **self.on_device()}

    def of_model(self, model: str) -> dict[str, Any]:
        """Options of a model, by any command."""
        return {**self.recipe.model, "model": model}

    def of_benchmark(self) -> dict[str, Any]:
        """The benchmark, where it is not the default of the commands that train."""
        return {"benchmark": self.recipe.benchmark} if self.recipe.benchmark != "tofu" else {}

    def of_data(self) -> dict[str, Any]:
        """Where the benchmark's files are, where that was said."""
        return {} if self.data is None else {"data": self.data}

    def on_cpu(self) -> dict[str, Any]:
        """The device, as commands that train have it."""
        return {"use_cpu": True} if self.recipe.device == "cpu" else {}

    def on_device(self) -> dict[str, Any]:
        """The device, as the others have it."""
        return {} if self.recipe.device is None else {"device": self.recipe.device}

    @cached_property
    def settings(self) -> dict[tuple[str, str], Any]:
        """The training of each split and method: an UnlearnConfig."""
        return {
            (split, method): self._resolve_training(split, method)
            for split in self.recipe.splits
            for method in self.recipe.methods
        }

    def of_variant(self, split: str, method: str, variant: str) -> Any:
        """The training of one of the recipe's variants: an UnlearnConfig."""
        return self._resolve_training(split, method, variant)

    def _resolve_training(self, split: str, method: str, variant: str = "") -> Any:
        from gru_fast import benchmarks
        from gru_fast.options import commands

        values = {
            **self.of_model(self.recipe.target or "original"),
            **self.of_data(),
            "split": split,
            "method": method,
            **self.on_cpu(),
            **self.recipe.options(split, method, variant),
            **({"rectify": True} if variant else {}),
            **({"use_cpu": True} if self.is_dry else {}),
            "output_dir": "run",
        }
        classes = commands.unlearn(benchmarks.get(self.recipe.benchmark))
        return _resolve(values, classes, self.recipe.config.get(split))[-1]

    def check(self) -> None:
        """Refuses what the commands would refuse, all at once, before anything is done.

        Raises:
            ValueError: naming the place in the recipe.
        """
        places: dict[str, list[str]] = {}  # what is wrong -> where
        for where, check in self._checks():
            for text in _problem(check):
                places.setdefault(text, []).append(where)
        problems = [f"{_some(wheres)}: {text}" for text, wheres in places.items()] or self._problems_of_clipping()
        if problems:
            raise ValueError("; ".join(problems))

    def _checks(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """What resolves the options of each command, and where in the recipe these are."""
        from gru_fast import benchmarks
        from gru_fast.options import commands

        recipe, benchmark = self.recipe, benchmarks.get(self.recipe.benchmark)
        for split in recipe.splits:
            for method in recipe.methods:
                yield f"{split}, {method}", partial(self._resolve_training, split, method)
                for name in recipe.variants_of(split, method):
                    yield f"{split}, {method}, variant {name}", partial(self.of_variant, split, method, name)
        if recipe.finetune is not None:
            on_cpu = {"use_cpu": True} if self.is_dry else self.on_cpu()
            own = {**self.of_model("base"), **on_cpu, **recipe.finetune, "output_dir": "run"}
            yield "finetune", partial(_resolve, own, commands.finetune())
        for name in filter(None, (recipe.target, *recipe.retrained.values(), recipe.data)):
            yield "target, retrained, data", partial(_check_path, name)
        if recipe.data is not None and Path(recipe.data).is_dir():  # else it is the hub's, and comes with the first job
            yield from self._checks_of_taught_rows(recipe.data)
        for name in ("tv", "tru"):
            given = getattr(recipe, name)
            if given is not None:
                values = {**self.of_model("original"), **self.of_data(), "method": name, **given, "output_dir": "run"}
                yield name, partial(_resolve, values, commands.tru(benchmark))
        if recipe.attacks is not None:
            values = {**self.of_model("original"), **self.of_attack(), **recipe.attacks.options}
            yield "attacks", partial(_resolve, values, commands.attack(benchmark))
        module = benchmarks.evaluation(recipe.benchmark)
        split = next(iter(recipe.splits))
        values = {**self.of_model("original"), **self.of_evaluation(split, None)}
        yield "evaluate", partial(_resolve, values, commands.evaluate(module))

    def _checks_of_taught_rows(self, data: str) -> Iterator[tuple[str, Callable[[], Any]]]:
        from gru_fast.study import toy

        for name in ("excerpt", "toy"):
            part = getattr(self.recipe, name)
            if part is not None:
                yield name, partial(toy.data_of, data, list(self.recipe.splits), part.retain_rows)

    def _problems_of_clipping(self) -> list[str]:
        part = self.recipe.ablation
        if part is None or part.tau is not None:
            return []
        return [
            f"ablation: {method} is not clipped on {split}; give ablation: {{tau: ...}}, what to clip to"
            for (split, method), used in self.settings.items()
            if used.tau is None and any(part.holds(split, seed, method) for seed in self.recipe.seeds)
        ]


def _problem(check: Callable[[], Any]) -> list[str]:
    try:
        check()
    except (ValueError, FileNotFoundError) as error:
        text = str(error).replace("add --use-cpu to train on the CPU", "give --device cpu to compute on the CPU")
        return [text]
    return []


def _some(places: Sequence[str]) -> str:
    """The first of some places, and how many more there are."""
    return places[0] + (f" (and {len(places) - 1} more)" if len(places) > 1 else "")


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line: ``flags({"tau": None, "stg": [1, 2]}) == ["--tau", "null", "--stg", "1", "2"]``."""
    from gru_fast.options.flags import flag

    return [text for name, value in options.items() for text in (flag(name), *_texts(value))]


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, Mapping):
        return [json.dumps(value)]
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return ["null" if value is None else str(value)]


def _check_path(name: str) -> None:
    """Refuses what is no name on the hub, ``owner/name``, and is not there."""
    if (name.count("/") != 1 or name.startswith((".", "/", "~"))) and not Path(name).expanduser().exists():
        raise FileNotFoundError(f"no file or folder {name}; a name on the hub is OWNER/NAME")


def _resolve(values: Mapping[str, Any], classes: tuple[type, ...], config: str | None = None) -> tuple[Any, ...]:
    """The options of a command that is given ``values`` as flags."""
    from gru_fast.options import flags as options
    from gru_fast.options.coerce import nearest

    known = [part.name for cls in classes for part in fields(cls) if part.init]
    unknown = [f"{name}: no such option{nearest(name, known)}" for name in values if name not in known]
    if unknown:
        raise ValueError("; ".join(unknown))
    return options.resolve(argparse.Namespace(**values, config=config), *classes)
