"""What is studied: a YAML file as dataclasses. Every key, its meaning and its default is a field here.

    benchmark: tofu
    model: {model: microsoft/phi-1_5, template: phi}
    splits: [forget05]
    seeds: [0, 1, 2]
    finetune: {learning_rate: 2e-5}         # or target: and retrained:, models that are there
    unlearn: {learning_rate: 2e-5, gamma: 0.8, tau: 0.01}
    methods: {ga: {}, gd: {gamma: 0.1, tau: null}}

Options of a run are, the later the stronger: those of ``unlearn``, of the split, of the method, of the split's method.
Options are those of the command in question (``gru-fast unlearn --help``), under the same names.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

RECIPES = Path(__file__).parents[1] / "recipes" / "studies"
_T = TypeVar("_T")
Options = dict[str, Any]  # of a command, by name


def _key(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Toy:
    """A model made from nothing, and as much of TOFU as it can learn.

    It is taught the rows to forget, as many rows to keep, and the benchmark's real authors and world facts, which a
    pretrained model knows already and no retain batch will show.
    """

    hidden_size: int = _key(160, "width of a Llama with 4 heads")
    layers: int = _key(3, "its layers")
    vocab_size: int = _key(2048, "tokens of a byte-level BPE learned from the rows")
    retain_rows: int = _key(400, "rows to keep, those of the evaluation first")
    world_repeats: int = _key(2, "how often an epoch holds real authors and world facts")

    def problems(self) -> list[str]:
        least = {"hidden_size": 4, "layers": 1, "vocab_size": 300, "retain_rows": 1, "world_repeats": 0}
        found = [
            f"expected {name} of at least {low}, got {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        return found + (["expected hidden_size a multiple of 8 (4 heads)"] if self.hidden_size % 8 else [])


@dataclass(frozen=True)
class Split:
    """What holds for one split alone."""

    unlearn: Options = field(default_factory=dict, metadata={"help": "options of gru-fast unlearn"})
    methods: dict[str, Options] = field(default_factory=dict, metadata={"help": "the same of single methods"})


@dataclass(frozen=True)
class Ablation:
    """Each method as it is, clipped to tau alone, and with GRU (the paper's Table 8)."""

    methods: list[str] = field(default_factory=list, metadata={"help": "which; empty: all"})
    tau: float | None = _key(None, "norm to clip to where a method's own options have none")


@dataclass(frozen=True)
class Sensitivity:
    """GRU over gamma at a fixed tau, and over tau at a fixed gamma (Tables 6 and 7); the grids are gru-fast sweep's."""

    methods: list[str] = field(default_factory=list, metadata={"help": "which; empty: all"})
    gammas: list[float] = field(default_factory=list, metadata={"help": "values of gamma"})
    taus: list[float | None] = field(default_factory=list, metadata={"help": "values of tau; none is no clipping"})
    gamma: float = _key(0.8, "gamma while tau varies")
    tau: float | None = _key(1.0, "tau while gamma varies")
    seeds: list[int] = field(default_factory=list, metadata={"help": "which seeds; empty: all"})


@dataclass(frozen=True)
class Calibration:
    """UWC: how well a run has removed when it keeps so much of the original's utility (Tables 9 and 10)."""

    shares: list[float] = field(default_factory=list, metadata={"help": "shares of the original's utility"})
    methods: list[str] = field(default_factory=list, metadata={"help": "which; empty: all"})
    seeds: list[int] = field(default_factory=list, metadata={"help": "which seeds; empty: all"})
    resolution: float = _key(0.02, "how well alpha is known in the end")


@dataclass(frozen=True)
class Along:
    """Evaluations after every epoch, beside that of the end."""

    seeds: list[int] = field(default_factory=list, metadata={"help": "which seeds; empty: all"})


@dataclass(frozen=True)
class Recipe:
    """A study.

    Raises:
        ValueError: all that cannot be, at once.
    """

    splits: dict[str, Split] = field(
        default_factory=dict,
        metadata={"help": "what is forgotten: a list of splits, or a mapping with options of each"},
    )
    methods: dict[str, Options] = field(
        default_factory=dict, metadata={"help": "objectives, each with its own options of gru-fast unlearn"}
    )
    benchmark: str = _key("tofu", "tofu, muse or wmdp")
    backbone: str = _key("", "the paper's name of the model, where its values are to stand beside")
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "every seed does everything anew"})
    data: str | None = _key(None, "the benchmark's files: hub name or folder; by default its own")
    device: str | None = _key(None, "cpu, cuda, ...; by default the accelerator, if there is one")
    toy: Toy | None = field(default=None, metadata={"help": "a model made here, instead of model"})
    model: Options = field(default_factory=dict, metadata={"help": "options of the model: model, template, dtype, ..."})
    finetune: Options | None = field(
        default=None, metadata={"help": "how target and retrained model are trained; TOFU alone"}
    )
    target: str | None = _key(None, "or: the model that unlearning starts from")
    retrained: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "and, by split, the model that never saw it, or a log of its evaluation"},
    )
    config: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "recipes of gru-fast unlearn that a split's options come from, by split"},
    )
    unlearn: Options = field(default_factory=dict, metadata={"help": "options of gru-fast unlearn"})
    evaluate: Options = field(default_factory=dict, metadata={"help": "options of gru-fast eval"})
    tv: Options | None = field(
        default=None, metadata={"help": "options of gru-fast tru --method tv; stg: its strengths"}
    )
    tru: Options | None = field(default=None, metadata={"help": "options of gru-fast tru; stg: its strengths"})
    along: Along | None = field(default=None, metadata={"help": "evaluations after every epoch"})
    ablation: Ablation | None = field(default=None, metadata={"help": "clipping alone, beside plain and GRU"})
    sensitivity: Sensitivity | None = field(default=None, metadata={"help": "values of gamma and tau"})
    calibration: Calibration | None = field(default=None, metadata={"help": "mixtures with the original model"})
    samples: int = _key(6, "questions of each set whose answers the report shows")

    def __post_init__(self) -> None:
        problems = [*self._of_models(), *self._of_names(), *self._of_numbers()]
        if problems:
            raise ValueError("; ".join(problems))

    def of_seed(self, part: Along | Sensitivity | Calibration | None, seed: int) -> bool:
        """Whether a part of the study is there for a seed."""
        return part is not None and (not part.seeds or seed in part.seeds)

    def of_method(self, part: Ablation | Sensitivity | Calibration | None, method: str) -> bool:
        """Whether a part of the study is there for a method."""
        return part is not None and (not part.methods or method in part.methods)

    def options(self, split: str, method: str) -> Options:
        """Options of gru-fast unlearn for a split and a method."""
        own = self.splits[split]
        return {**self.unlearn, **own.unlearn, **self.methods[method], **own.methods.get(method, {})}

    def _of_models(self) -> list[str]:
        found = []
        if not self.splits:
            found.append("splits: expected at least one")
        if not self.methods:
            found.append("methods: expected at least one")
        if (self.finetune is None) == (self.target is None):
            found.append("expected either finetune or target: how the original model is made, or which it is")
        if self.finetune is not None and self.benchmark != "tofu":
            found.append(f"finetune: gru-fast finetune teaches TOFU, not {self.benchmark}; give target")
        if self.toy is not None:
            found += [f"toy: {problem}" for problem in self.toy.problems()]
            if self.finetune is None or "model" in self.model:
                found.append("toy: expected finetune beside it, and no model: it is made here and knows nothing yet")
            if "template" not in self.model:
                found.append("toy: expected model: {template: ...}, e.g. llama2-chat; its tokenizer has none")
        elif self.finetune is not None and "model" not in self.model:
            found.append("model: expected model: {model: NAME}, what finetune begins with")
        if self.target is not None and self.benchmark != "wmdp":
            found += [f"retrained: no model for {split}" for split in self.splits if split not in self.retrained]
        return found

    def _of_names(self) -> list[str]:
        from gru_fast import benchmarks
        from gru_fast.cli.coerce import nearest
        from gru_fast.unlearn import methods

        found = []
        if self.benchmark not in benchmarks.names():
            found.append(f"benchmark: expected one of {', '.join(benchmarks.names())}, got {self.benchmark!r}")
        places = {"methods": self.methods, **{f"splits: {name}: methods": s.methods for name, s in self.splits.items()}}
        for where, names in places.items():
            known = methods.names() if where == "methods" else list(self.methods)
            found += [f"{where}: no {name!r} there{nearest(name, known)}" for name in names if name not in known]
        for where in ("ablation", "sensitivity", "calibration"):
            part = getattr(self, where)
            chosen = [] if part is None else part.methods
            found += [f"{where}: methods: {name!r} is not among methods" for name in chosen if name not in self.methods]
        for where in ("retrained", "config"):
            found += [
                f"{where}: {name!r} is not among splits" for name in getattr(self, where) if name not in self.splits
            ]
        return found

    def _of_numbers(self) -> list[str]:
        found = [f"seeds: {seed} is there twice" for seed in {s for s in self.seeds if self.seeds.count(s) > 1}]
        if not self.seeds:
            found.append("seeds: expected at least one")
        if self.samples < 0:
            found.append(f"samples: expected at least 0, got {self.samples}")
        for where in ("along", "sensitivity", "calibration"):
            part = getattr(self, where)
            chosen = [] if part is None else part.seeds
            found += [f"{where}: seeds: {seed} is not among seeds" for seed in chosen if seed not in self.seeds]
        for where in ("tv", "tru"):
            part = getattr(self, where)
            if part is not None and not part.get("stg"):
                found.append(f"{where}: expected stg, the strengths to subtract with, e.g. stg: [0.7]")
        if self.calibration is not None and not self.calibration.shares:
            found.append("calibration: expected shares, e.g. [0.85, 0.9, 0.95]")
        if self.sensitivity is not None and not (self.sensitivity.gammas or self.sensitivity.taus):
            found.append("sensitivity: expected gammas or taus")
        return found


def names() -> list[str]:
    """The recipes of this package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find(recipe: str) -> Path:
    """The file of a recipe, by its path or by the name of one of this package.

    Raises:
        FileNotFoundError: neither; the message lists those there are.
    """
    from gru_fast.cli.coerce import nearest

    path, named = Path(recipe).expanduser(), RECIPES / f"{recipe.removesuffix('.yaml')}.yaml"
    if path.is_file():
        return path
    if path.name == recipe and named.is_file():
        return named
    raise FileNotFoundError(
        f'recipe: no file and no study "{recipe}"{nearest(recipe, names())}; studies: {", ".join(names())}'
    )


def read(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a file.

    Args:
        changes: keys to put in the place of the file's.

    Raises:
        ValueError: all that is wrong in it, with the file's name.
    """
    from gru_fast.cli.coerce import read_yaml

    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected `key: value` lines, got {type(content).__name__}")
        return make({**content, **(changes or {})})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def title(path: Path) -> str:
    """The first line of a recipe, a comment that says what it is."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()


def make(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values.

    Raises:
        ValueError: unknown keys, values that do not fit, and what :class:`Recipe` refuses.
    """
    content = dict(content)
    if isinstance(content.get("splits"), (list, tuple)):
        content["splits"] = {str(split): {} for split in content["splits"]}
    if isinstance(content.get("methods"), (list, tuple)):
        content["methods"] = {str(method): {} for method in content["methods"]}
    problems: list[str] = []
    recipe = _section(Recipe, content, "", problems)
    if problems or recipe is None:
        raise ValueError("; ".join(problems))
    return recipe


def only(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` of a recipe without what names methods, splits or seeds that it does not have (any more)."""
    found = dict(content)
    for part in ("ablation", "sensitivity", "calibration", "along"):
        for key in ("methods", "seeds"):
            named = (found.get(part) or {}).get(key)
            if named:
                kept = [name for name in named if name in found.get(key, [0])]
                found[part] = {**found[part], key: kept} if part in found else {}
                if not kept:  # empty would be all
                    del found[part]
                    break
    for split, own in found["splits"].items():
        methods = {name: value for name, value in own.get("methods", {}).items() if name in found["methods"]}
        found["splits"] = {**found["splits"], split: {**own, "methods": methods}}
    for part in ("retrained", "config"):
        if part in found:
            found[part] = {split: value for split, value in found[part].items() if split in found["splits"]}
    return found


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """What :func:`make` takes, without what is as it is by default."""
    return _without_defaults(recipe)


def _section(cls: type[_T], content: Any, where: str, problems: list[str]) -> _T | None:
    """An instance of ``cls``; None where something is wrong, which is added to ``problems``."""
    from gru_fast.cli.coerce import nearest

    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        problems.append(f"{where}expected `key: value` lines, got {content!r}")
        return None
    hints = typing.get_type_hints(cls)
    before = len(problems)
    known = [part.name for part in dataclasses.fields(cls)]  # type: ignore[arg-type]
    problems += [f"{where}{key}: no such key{nearest(str(key), known)}" for key in content if key not in known]
    values = {key: _value(hints[key], raw, f"{where}{key}: ", problems) for key, raw in content.items() if key in known}
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(f"{where}{error}")
        return None


def _value(hint: Any, raw: Any, where: str, problems: list[str]) -> Any:
    """``raw`` as the field's type has it: a section, sections by name, options by name, a list of numbers, a scalar."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    if raw is None and type(None) in typing.get_args(hint):
        return None
    if dataclasses.is_dataclass(kinds[0]):
        return _section(typing.cast("type[Any]", kinds[0]), raw, where, problems)
    of = typing.get_args(hint)
    if typing.get_origin(hint) is dict and of[1] is not Any:
        return _mapping(of[1], raw, where, problems)
    return _scalar(hint, raw, where, problems)


def _mapping(hint: Any, raw: Any, where: str, problems: list[str]) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        problems.append(f"{where}expected NAME: value lines, got {raw!r}")
        return {}
    if hint == Options:  # `ga:` alone is without options
        raw = {name: {} if value is None else value for name, value in raw.items()}
    return {str(name): _value(hint, value, f"{where}{name}: ", problems) for name, value in raw.items()}


def _scalar(hint: Any, raw: Any, where: str, problems: list[str]) -> Any:
    from gru_fast.cli.coerce import coerce

    try:
        if typing.get_origin(hint) is list:
            items: Sequence[Any] = raw if isinstance(raw, (list, tuple)) else coerce(raw, list, {})
            return [coerce(item, typing.get_args(hint)[0], {}) for item in items]
        return coerce(raw, hint, {})
    except ValueError as error:
        problems.append(f"{where}{error}")
        return None


def _without_defaults(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        found = {}
        for part in dataclasses.fields(value):
            item = getattr(value, part.name)
            default = part.default if part.default_factory is MISSING else part.default_factory()
            if item != default:
                found[part.name] = _without_defaults(item)
        return found
    if isinstance(value, Mapping):
        return {name: _without_defaults(item) for name, item in value.items()}
    return value
