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

import re
import shlex
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from gru_fast.study.results import VARIANTS

Options = dict[str, Any]  # of a command, by name
# What a study says itself in the commands of each key; options there would make runs that are not what they are called.
_OWN = {
    "model": ("output_dir", "split", "seed"),
    "finetune": ("model", "data", "subset", "seed", "output_dir"),
    "unlearn": ("model", "benchmark", "data", "split", "method", "seed", "rectify", "output_dir"),
    "evaluate": ("model", "data", "split", "retain_logs", "from_logs", "output_dir"),
    "tv": ("model", "benchmark", "data", "split", "method", "seed", "output_dir"),
    "tru": ("model", "benchmark", "data", "split", "method", "seed", "output_dir"),
    "attacks": (
        "model", "benchmark", "data", "split", "attacks", "original", "retrained", "retain_logs", "evaluate",
        "output_dir", "baselines",
    ),
}  # fmt: skip
LAUNCHED = ("finetune", "unlearn", "tru", "eval", "calibrate")  # what a launcher can start
PARTS = ("along", "variants", "ablation", "sensitivity", "calibration", "attacks")  # keys of a recipe that are a Part
NAMED = ("methods", "splits", "seeds")  # what a part is for


def _key(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _words(line: str) -> list[str]:
    """A command line in words; none where a quotation does not end."""
    try:
        return shlex.split(line)
    except ValueError:
        return []


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
class Excerpt:
    """As much of TOFU as a model can be taught in the time there is: the rows to forget, and so many to keep.

    Real authors and world facts are evaluated and not taught: a pretrained model knows some of them.
    """

    retain_rows: int = _key(400, "rows to keep, those of the evaluation first")

    def problems(self) -> list[str]:
        """What cannot be."""
        return [] if self.retain_rows >= 1 else [f"expected retain_rows of at least 1, got {self.retain_rows}"]


@dataclass(frozen=True)
class Split:
    """What holds for one split alone."""

    unlearn: Options = field(default_factory=dict, metadata={"help": "options of gru-fast unlearn"})
    methods: dict[str, Options] = field(default_factory=dict, metadata={"help": "the same of single methods"})


@dataclass(frozen=True)
class Part:
    """What is done beside the comparison, for some of its runs."""

    methods: list[str] = field(default_factory=list, metadata={"help": "for which methods; empty: all"})
    splits: list[str] = field(default_factory=list, metadata={"help": "for which splits; empty: all"})
    seeds: list[int] = field(default_factory=list, metadata={"help": "for which seeds; empty: all"})

    def holds(self, split: str, seed: int, method: str) -> bool:
        """Whether it is done for a run of the comparison."""
        wanted = ((self.splits, split), (self.seeds, seed), (self.methods, method))
        return all(not named or value in named for named, value in wanted)

    def problems(self) -> list[str]:
        """What cannot be."""
        return []


@dataclass(frozen=True)
class Along(Part):
    """Evaluations after every epoch, beside that of the end."""


@dataclass(frozen=True)
class Variants(Part):
    """Rectified in other ways, beside plain and GRU: by another rule, the update too, with more rows to keep, longer.

    They are calibrated and attacked where plain and GRU are; pairs, counts and verdicts are of plain and GRU alone.
    """

    options: dict[str, Options] = field(
        default_factory=dict,
        metadata={"help": "of each, by its name, e.g. update: {optim: gru_adamw, rectify_update: true}"},
    )

    def problems(self) -> list[str]:
        """What cannot be."""
        found = [] if self.options else ["options: expected at least one, e.g. {pcgrad: {rectifier: pcgrad}}"]
        for name, own in self.options.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9_.]*", name) or name in VARIANTS:
                found.append(f"options: expected names of a-z, 0-9, _ and ., not {', '.join(VARIANTS)}, got {name!r}")
            if not isinstance(own, dict) or not own:
                found.append(f"options: {name}: expected options of gru-fast unlearn, got {own!r}")
        return found


@dataclass(frozen=True)
class Ablation(Part):
    """Each method as it is, clipped to tau alone, and with GRU clipped to the same tau (the paper's Table 8); and how
    good the moving average must be: GRU with more rows to keep a batch, and with an average before the first step.
    """

    tau: float | None = _key(None, "norm to clip to where a method's own options have none")
    retain_batch_sizes: list[int] = field(
        default_factory=list, metadata={"help": "GRU with each of these as retain_batch_size, at its own gamma and tau"}
    )
    warm_up_retain: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "each of them with each of these as warm_up_retain"}
    )

    def problems(self) -> list[str]:
        """What cannot be."""
        found = [f"retain_batch_sizes: expected at least 1, got {n}" for n in self.retain_batch_sizes if n < 1]
        found += [f"warm_up_retain: expected at least 0, got {n}" for n in self.warm_up_retain if n < 0]
        if not self.retain_batch_sizes and self.warm_up_retain != [0]:
            found.append("warm_up_retain: expected retain_batch_sizes beside it, e.g. [4]")
        return found


@dataclass(frozen=True)
class Sensitivity(Part):
    """GRU over gamma at a fixed tau, and over tau at a fixed gamma (the paper's Tables 6 and 7).

    And over gamma with more rows to keep a batch: what a short average loses, a larger batch may give back.
    """

    gammas: list[float] = field(default_factory=list, metadata={"help": "values of gamma"})
    taus: list[float | None] = field(default_factory=list, metadata={"help": "values of tau; null is no clipping"})
    gamma: float | None = _key(None, "gamma while tau varies; by default each method's own")
    tau: float | None = _key(1.0, "tau while gamma varies")
    grid: bool = _key(False, "every gamma with every tau, as gru-fast sweep")
    retain_batch_sizes: list[int] = field(
        default_factory=list, metadata={"help": "every gamma, at tau, with each of these as retain_batch_size"}
    )

    def points(self, own_gamma: float) -> list[tuple[float, float | None]]:
        """All pairs of gamma and tau, each once. ``own_gamma``: the method's own."""
        if self.grid:
            return list(product(self.gammas, self.taus))
        gamma = own_gamma if self.gamma is None else self.gamma
        return list(dict.fromkeys([*((each, self.tau) for each in self.gammas), *((gamma, tau) for tau in self.taus)]))

    def problems(self) -> list[str]:
        """What cannot be."""
        from gru_fast.core.checks import check_gamma, check_tau

        found = [] if self.points(0.5) else ["expected gammas or taus"]
        found += [f"retain_batch_sizes: expected at least 1, got {n}" for n in self.retain_batch_sizes if n < 1]
        if self.retain_batch_sizes and not self.gammas:
            found.append("retain_batch_sizes: expected gammas beside it, e.g. [0.03, 0.1, 0.4]")
        for gamma, tau in self.points(0.5):
            try:
                check_gamma(gamma)
                check_tau(tau)
            except ValueError as error:  # noqa: PERF203 all that is wrong at once
                found.append(str(error))
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Calibration(Part):
    """UWC: how well a run has removed when it keeps so much of the original's utility (Tables 9 and 10)."""

    shares: list[float] = field(default_factory=list, metadata={"help": "shares of the original's utility"})
    resolution: float = _key(0.02, "how well alpha is known in the end")

    def problems(self) -> list[str]:
        """What cannot be."""
        found = [] if self.shares else ["expected shares, e.g. [0.85, 0.9, 0.95]"]
        found += [f"shares: expected numbers in (0, 1], got {share:g}" for share in self.shares if not 0 < share <= 1]
        return found + ([] if 0 < self.resolution <= 1 else [f"resolution: expected (0, 1], got {self.resolution:g}"])


_COMPARED = ("tofu", "muse")  # benchmarks whose evaluation asks for a retrained model


@dataclass(frozen=True)
class Attacks(Part):
    """What comes back of a run, and of its mixtures that keep a share of the original's utility."""

    attacks: list[str] = field(default_factory=list, metadata={"help": "which (gru-fast ls attacks); empty: all"})
    at: list[float] = field(
        default_factory=list,
        metadata={"help": "shares of calibration whose mixtures are attacked too: at equal retention"},
    )
    options: Options = field(default_factory=dict, metadata={"help": "options of gru-fast attack"})

    def problems(self) -> list[str]:
        """What cannot be."""
        from gru_fast import attacks

        found = []
        for name in self.attacks:
            try:
                attacks.get(name)
            except ValueError as error:  # noqa: PERF203 all that is wrong at once
                found.append(str(error))
        return found


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
    benchmark: str = _key("tofu", "tofu, muse, wmdp or own")
    backbone: str = _key("", "the paper's name of the model, where its values are to stand beside")
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "every seed does everything anew"})
    data: str | None = _key(None, "the benchmark's files: hub name or folder; by default its own")
    device: str | None = _key(None, "cpu: not on the accelerator, where there is one")
    toy: Toy | None = field(default=None, metadata={"help": "a model made here, instead of model"})
    excerpt: Excerpt | None = field(default=None, metadata={"help": "a part of TOFU; a toy has its own"})
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
    variants: Variants | None = field(default=None, metadata={"help": "rectified in other ways, beside plain and GRU"})
    ablation: Ablation | None = field(default=None, metadata={"help": "clipping alone, beside plain and GRU"})
    sensitivity: Sensitivity | None = field(default=None, metadata={"help": "values of gamma and tau"})
    calibration: Calibration | None = field(default=None, metadata={"help": "mixtures with the original model"})
    attacks: Attacks | None = field(default=None, metadata={"help": "attacks on the runs: does it come back?"})
    launch: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": f"what starts a command ({', '.join(LAUNCHED)}) on several GPUs, e.g. unlearn: torchrun "
            "--standalone --nproc-per-node 8 -m gru_fast.cli; by default the worker runs it itself, on one (rmu "
            "always). The rows of a step are multiplied by the processes: divide gradient_accumulation_steps by them"
        },
    )
    samples: int = _key(6, "questions of each set whose answers the report shows")

    def __post_init__(self) -> None:
        problems = [
            *self._of_models(), *self._of_what_is_taught(), *self._of_names(), *self._of_numbers(), *self._of_parts(),
            *self._of_options(),
        ]  # fmt: skip
        if problems:
            raise ValueError("; ".join(problems))

    def options(self, split: str, method: str, variant: str = "") -> Options:
        """Options of gru-fast unlearn for a split and a method, and one of :class:`Variants` by its name."""
        own = self.splits[split]
        further = self.variants.options[variant] if self.variants and variant in self.variants.options else {}
        return {**self.unlearn, **own.unlearn, **self.methods[method], **own.methods.get(method, {}), **further}

    def variants_of(self, split: str, method: str, seed: int | None = None) -> list[str]:
        """The names of :class:`Variants` that there are for a method on a split; of one seed, or of any."""
        part = self.variants
        seeds = self.seeds if seed is None else [seed]
        return list(part.options) if part and any(part.holds(split, each, method) for each in seeds) else []

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
        if self.target is not None and self.benchmark in _COMPARED:
            found += [f"retrained: no model for {split}" for split in self.splits if split not in self.retrained]
        return found

    def _of_what_is_taught(self) -> list[str]:
        found: list[str] = []
        if self.toy is not None:
            found += [f"toy: {problem}" for problem in self.toy.problems()]
            if self.finetune is None or "model" in self.model:
                found.append("toy: expected finetune beside it, and no model: it is made here and knows nothing yet")
            if "template" not in self.model:
                found.append("toy: expected model: {template: ...}, e.g. llama2-chat; its tokenizer has none")
        elif self.finetune is not None and "model" not in self.model:
            found.append("model: expected model: {model: NAME}, what finetune begins with")
        if self.excerpt is not None:
            found += [f"excerpt: {problem}" for problem in self.excerpt.problems()]
            if self.finetune is None or self.toy is not None:
                found.append("excerpt: expected finetune beside it, and no toy: it is what finetune teaches")
        return found

    def _of_names(self) -> list[str]:
        from gru_fast import benchmarks
        from gru_fast.options.coerce import nearest
        from gru_fast.unlearn import methods

        found = []
        if self.benchmark not in benchmarks.names():
            found.append(f"benchmark: expected one of {', '.join(benchmarks.names())}, got {self.benchmark!r}")
        places = {"methods": self.methods, **{f"splits: {name}: methods": s.methods for name, s in self.splits.items()}}
        for where, names in places.items():
            known = methods.names() if where == "methods" else list(self.methods)
            found += [f"{where}: no {name!r} there{nearest(name, known)}" for name in names if name not in known]
        for where in ("retrained", "config"):
            found += [
                f"{where}: {name!r} is not among splits" for name in getattr(self, where) if name not in self.splits
            ]
        return found

    def _of_numbers(self) -> list[str]:
        found = [f"seeds: {seed} is there twice" for seed in {s for s in self.seeds if self.seeds.count(s) > 1}]
        if not self.seeds:
            found.append("seeds: expected at least one")
        if self.device not in {None, "cpu"}:
            found.append(f"device: expected cpu, or nothing, got {self.device!r}; --devices chooses among GPUs")
        for name, text in self.launch.items():
            if name not in LAUNCHED or not _words(text):
                found.append(
                    f"launch: expected what starts {', '.join(LAUNCHED)}, as torchrun ... -m gru_fast.cli, got {name}: "
                    f"{text!r}"
                )
        if self.samples < 0:
            found.append(f"samples: expected at least 0, got {self.samples}")
        for where in ("tv", "tru"):
            part = getattr(self, where)
            if part is not None and not part.get("stg"):
                found.append(f"{where}: expected stg, the strengths to subtract with, e.g. stg: [0.7]")
        return found

    def _of_options(self) -> list[str]:
        """Options that are the study's to say."""
        places = {name: getattr(self, name) or {} for name in _OWN if name != "attacks"}
        places["attacks"] = self.attacks.options if self.attacks else {}
        places |= {f"methods: {name}": own for name, own in self.methods.items()}
        if self.variants is not None:
            places |= {f"variants: options: {name}": own for name, own in self.variants.options.items()}
        for name, split in self.splits.items():
            places |= {f"splits: {name}: unlearn": split.unlearn}
            places |= {f"splits: {name}: methods: {method}": own for method, own in split.methods.items()}
        return [
            f"{where}: {name} is the study's to say; leave it out"
            for where, given in places.items()
            for name in _OWN.get(where, _OWN["unlearn"])
            if name in given
        ]

    def _of_parts(self) -> list[str]:
        """Names in a part that the study does not have, and what the part itself refuses."""
        found = []
        for where in PARTS:
            part = getattr(self, where)
            if part is None:
                continue
            found += [f"{where}: {problem}" for problem in part.problems()]
            for key in NAMED:
                there = getattr(self, key)
                named = getattr(part, key)
                found += [f"{where}: {key}: {name!r} is not among {key}" for name in named if name not in there]
        shares = self.calibration.shares if self.calibration else []
        at = self.attacks.at if self.attacks else []
        found += [
            f"attacks: at: {share:g} is not among the shares of calibration" for share in at if share not in shares
        ]
        return found
