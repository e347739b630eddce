"""The settings of an unlearning run: a dataclass of a trainer's GRU switch, and one for all of ``UnlearnTrainer``.

Defaults, help texts and choices of every setting live in the fields here (a method's own options in its file); flags,
YAML keys and ``--help`` are derived from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import transformers
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from gru_fast.core.adamw_options import METRICS
from gru_fast.core.checks import check_gamma, check_tau
from gru_fast.core.granularity import GRANULARITIES
from gru_fast.core.rules import RULES, Rule, rule_of
from gru_fast.core.stats import MAX_VECTORS
from gru_fast.unlearn import methods
from gru_fast.unlearn.methods import Method
from gru_fast.unlearn.references import KL_POSITIONS

EMA_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

RECTIFIERS = tuple(RULES)
AGAINST = ("ema", "retain")
GRU_ADAMW = "gru_adamw"  # of --optim: gru_fast.optim.AdamW
ADAMW_TORCH = ("adamw_torch", "adamw_torch_fused")  # of --optim: torch's


def setting(default: Any, text: str, choices: tuple[Any, ...] = ()) -> Any:
    """A dataclass field with its help text and, where there are few values, its choices."""
    return field(default=default, metadata={"help": text} | ({"choices": choices} if choices else {}))


@dataclass
class GRUOptions:
    """What :class:`~gru_fast.unlearn.mixin.GRUMixin` does with the gradients of each step; see
    :func:`gru_fast.rectify_`.

    Raises:
        ValueError: all wrong settings at once, each with its name and what to give instead.
    """

    rectify: bool = setting(True, "rectify the unlearning gradient (GRU); off: plain training on the objective")
    rectifier: str = setting(
        "gru",
        "the rule by which rectify does it: gru, or one to compare with; `gru-fast ls rectifiers` says what each does",
        RECTIFIERS,
    )
    rectifier_options: dict[str, Any] | None = field(
        default=None, metadata={"help": "options of that rule, by name; `gru-fast ls rectifiers` shows them"}
    )
    rectify_against: str | None = setting(
        None,
        "ema: the moving average of the retain gradients; retain: those of this step alone, where no average is kept "
        "and gamma has no effect. By default as the rule was published: ema for gru, retain for all others",
        (None, *AGAINST),
    )
    retain_sets: list[str] | None = field(
        default=None,
        metadata={
            "help": "parts of a batch, beside retain, that are retain sets too, for the rectifiers gem and subspace. "
            "TOFU has real_authors and world_facts, which its evaluation asks too"
        },
    )
    granularity: str = setting(
        "global",
        "what the rectifier decides for: all parameters as one vector, each tensor, or each layer by itself; finer "
        "keeps the promise in each and takes more of the gradient",
        GRANULARITIES,
    )
    gamma: float = setting(0.8, "weight of the new retain gradient in its moving average, in [0, 1]")
    tau: float | None = setting(
        None, "largest norm of the rectified gradient, above 0; none: no clipping. Trainer's own max_grad_norm is apart"
    )
    ema_dtype: str | None = setting(
        None,
        "dtype of the moving average: float32 (the default), or a 16-bit one for the parameters that have it",
        (None, *EMA_DTYPES),
    )
    stream: bool = setting(
        False,
        "fold each retain gradient into the moving average as backward produces it: one gradient set less in memory",
    )
    monitor: bool = setting(
        False,
        "follow the retain gradient and log its angle to the unlearning gradient, changing nothing: one backward pass "
        "more. For baselines; rectify logs the same by itself",
    )
    warm_up_retain: int = setting(
        0,
        "begin with an average, the mean retain gradient of so many batches of rows to keep on each device, at the "
        "weights before the first step; 0: with none",
    )
    rectify_update: bool = setting(
        False,
        "rectify the step that the optimizer makes too: with AdamW it can raise the retain loss to first order "
        "although every gradient was rectified. With --optim gru_adamw",
    )
    update_metric: str = setting(
        "euclidean",
        "in which sense rectify_update changes the step least: euclidean, or adam, in that of the optimizer",
        METRICS,
    )
    monitor_update: bool = setting(
        False,
        "log whether AdamW's step raises the retain loss to first order (update_cos, update_conflict), changing "
        "nothing: one more pass over gradients, weights and moments. rectify_update logs the same by itself",
    )
    monitor_retain: bool = setting(
        False,
        "log cos_retain, the cosine of the moving average and the retain gradient that comes in: how well it foretells "
        "it. One more pass over both in every step",
    )
    max_skipped_steps: int = setting(
        10, "stop with an explanation after more than so many skipped steps in a row (NaN, Inf or nothing left)"
    )

    def __post_init__(self) -> None:
        raise_all(self.gru_errors())

    @property
    def follows_retain(self) -> bool:
        """Whether the retain gradient is computed in every step."""
        return self.rectify or self.monitor

    def make_rule(self) -> Rule:
        """The rule with its options."""
        return rule_of(self.rectifier, self.rectifier_options)

    @property
    def against(self) -> str:
        """What is rectified against, by the rule where nothing was asked for."""
        published = RULES[self.rectifier].against if self.rectifier in RULES else "ema"
        return self.rectify_against or published

    @property
    def keeps_average(self) -> bool:
        """Whether there is an e. With ``stream`` there is, also where it is r."""
        return self.against == "ema" or self.stream or not self.rectify or bool(self.retain_sets)

    @property
    def ema_gamma(self) -> float:
        """gamma as the moving average takes it: 1, which is none, against the retain gradient itself."""
        return 1.0 if self.against == "retain" else self.gamma

    @property
    def ema_torch_dtype(self) -> torch.dtype | None:
        """``ema_dtype`` as RetainEMA takes it."""
        return None if self.ema_dtype is None else EMA_DTYPES[self.ema_dtype]

    def gru_options(self) -> GRUOptions:
        """The fields of this class alone."""
        return GRUOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(GRUOptions)})

    def _rule_errors(self) -> list[str]:
        if self.rectifier_options is not None and not isinstance(self.rectifier_options, dict):
            return [f"rectifier_options: expected name: value pairs, got {self.rectifier_options!r}"]
        errors = _errors_of(self.make_rule)
        if not errors and self.ema_dtype is not None and not self.keeps_average:
            errors.append(
                f"ema_dtype: expected none, since {self.rectifier} keeps no average here; leave it out, or give "
                "rectify_against: ema"
            )
        return errors

    def _choice_errors(self) -> list[str]:
        errors = []
        if self.granularity not in GRANULARITIES:
            errors.append(f"granularity: expected one of {', '.join(GRANULARITIES)}, got {self.granularity!r}")
        if self.rectifier in RULES and RULES[self.rectifier].elementwise and self.granularity != "global":
            errors.append(f"granularity: expected global with {self.rectifier}, which decides element by element")
        if self.rectify_against not in (None, *AGAINST):
            errors.append(f"rectify_against: expected one of none, {', '.join(AGAINST)}, got {self.rectify_against!r}")
        return errors

    def _update_errors(self) -> list[str]:
        errors = []
        if self.rectify_update and not self.rectify:
            errors.append("rectify_update: expected rectify beside it, which gives it the retain gradient's average")
        if self.rectify_update and self.rectifier != "gru":
            errors.append(f"rectify_update: expected rectifier gru, the one rule for steps, got {self.rectifier}")
        if self.update_metric not in METRICS:
            errors.append(f"update_metric: expected one of {', '.join(METRICS)}, got {self.update_metric!r}")
        if self.monitor_update and not self.follows_retain:
            errors.append(
                "monitor_update: expected rectify or monitor beside it, since nothing else has a retain gradient"
            )
        if (self.monitor_update or self.rectify_update) and self.follows_retain and not self.keeps_average:
            errors.append("monitor_update, rectify_update: expected rectify_against ema, since they go by it")
        if self.rectify_update and self.granularity != "global":
            errors.append(f"granularity: expected global with rectify_update, got {self.granularity}")
        if self.monitor_update and self.rectify_update:
            errors.append("monitor_update: expected without rectify_update, which logs the same")
        return errors

    def gru_errors(self) -> list[str]:
        """What is wrong with these fields, one line each."""
        errors = [*_errors_of(lambda: check_gamma(self.gamma)), *_errors_of(lambda: check_tau(self.tau))]
        if self.rectifier not in RECTIFIERS:
            errors.append(f"rectifier: expected one of {', '.join(RECTIFIERS)}, got {self.rectifier!r}")
        else:
            errors += self._rule_errors()
        errors += self._choice_errors()
        if self.ema_dtype is not None and self.ema_dtype not in EMA_DTYPES:
            errors.append(f"ema_dtype: expected one of none, {', '.join(EMA_DTYPES)}, got {self.ema_dtype!r}")
        if self.stream and not self.follows_retain:
            errors.append("stream: expected rectify or monitor beside it, since nothing else has a retain gradient")
        errors += self._update_errors() + self._monitor_errors() + self._set_errors()
        errors += _whole_number_errors("max_skipped_steps", self.max_skipped_steps, 0)
        errors += _whole_number_errors("warm_up_retain", self.warm_up_retain, 0) or self._warm_up_errors()
        return errors

    def _monitor_errors(self) -> list[str]:
        if not self.monitor_retain:
            return []
        if not self.follows_retain or not self.keeps_average or self.ema_gamma == 1.0:
            return [
                "monitor_retain: expected rectify or monitor, against an average (gamma below 1): nothing foretells"
            ]
        if self.stream:
            return ["monitor_retain: expected without stream, where the retain gradient is never there as a whole"]
        return []

    def _set_errors(self) -> list[str]:
        if self.retain_sets is None:
            return []
        sets = self.retain_sets
        named = isinstance(sets, list) and all(isinstance(name, str) for name in sets)
        if not named or not 0 < len(sets) < MAX_VECTORS or len({"forget", "retain", "idk", *sets}) < len(sets) + 3:
            return [
                f"retain_sets: expected 1 to {MAX_VECTORS - 1} different names of parts beside retain, got {sets!r}"
            ]
        errors = []
        if not self.follows_retain:
            errors.append(
                "retain_sets: expected rectify or monitor beside it, since nothing else has a retain gradient"
            )
        if self.rectify and self.rectifier in RULES and not RULES[self.rectifier].several:
            errors.append(f"rectifier: expected gem or subspace with retain_sets, got {self.rectifier}")
        wanted = {"granularity": "global", "warm_up_retain": 0, "monitor_update": False, "monitor_retain": False}
        errors += [
            f"{name}: expected {value} with retain_sets, got {getattr(self, name)}"
            for name, value in wanted.items()
            if getattr(self, name) != value
        ]
        return errors

    def _warm_up_errors(self) -> list[str]:
        if self.warm_up_retain == 0:
            return []
        if not self.follows_retain:
            return ["warm_up_retain: expected rectify or monitor beside it, since nothing else has an average"]
        if self.ema_gamma == 1.0:
            wanted = "expected gamma below 1, and a rectifier with a moving average"
            return [f"warm_up_retain: {wanted}: each step would replace what it begins with; leave it out"]
        return []


def _errors_of(check: Callable[[], Any]) -> list[str]:
    try:
        check()
    except (TypeError, ValueError) as error:
        return [str(error)]
    return []


def _whole_number_errors(name: str, value: Any, at_least: int) -> list[str]:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        return [f"{name}: expected a whole number of at least {at_least}, got {value!r}"]
    return []


def raise_all(errors: list[str]) -> None:
    """Raises ``ValueError`` with every line of ``errors``; returns if there are none."""
    if len(errors) == 1:
        raise ValueError(errors[0])
    if errors:
        raise ValueError(f"{len(errors)} wrong settings:\n" + "\n".join(f"- {error}" for error in errors))


def optimizer_name(config: TrainingArguments) -> str:
    """What ``optim`` says, which transformers makes an enum of."""
    return str(getattr(config.optim, "value", config.optim))


def steps_in_backward(config: TrainingArguments) -> list[str]:
    """What is wrong with an optimizer that changes weights while a backward pass runs, in one line; else none."""
    name = optimizer_name(config)
    if name in {"lomo", "adalomo"} or name.endswith("_layerwise"):
        return [f"optim: expected one that steps after backward, got {name}; give {_after_backward(name)}"]
    return []


def _after_backward(name: str) -> str:
    return name.removesuffix("_layerwise") if name.endswith("_layerwise") else "adamw_torch"


def splits_sequences(parallelism: Any) -> list[str]:
    """What is wrong with accelerate's ``ParallelismConfig`` (or None) that splits sequences, in one line; else none."""
    names = [f"{name}_size" for name in ("cp", "sp") if getattr(parallelism, f"{name}_size", 1) > 1]
    return [
        f"parallelism_config: expected {name}=1, got {getattr(parallelism, name)}: accelerate splits the sequences of "
        "plain batches alone, and these have parts; use dp_shard_size (FSDP2), and --activation-checkpointing"
        for name in names
    ]


def tries_batch_sizes(config: TrainingArguments, is_spread: bool) -> list[str]:
    """What is wrong with ``auto_find_batch_size``, in one line; else none. ``is_spread``: by FSDP2 or DeepSpeed."""
    if not config.auto_find_batch_size or not is_spread:
        return []
    said = "auto_find_batch_size: not with FSDP2 or DeepSpeed, which spread a model once, not again for a smaller batch"
    return [f"{said}; give per_device_train_batch_size"]


def _errors_of_engines(config: TrainingArguments) -> list[str]:
    """Two engines at once, or no file of DeepSpeed's: transformers' own words do not say which option is meant."""
    launched = {
        name: os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in {"1", "true"}
        for name in ("FSDP", "DEEPSPEED")
    }
    if (config.fsdp or launched["FSDP"]) and (config.deepspeed or launched["DEEPSPEED"]):
        said = "fsdp, deepspeed: expected one of them, got both, as options or from accelerate launch"
        return [f"{said}; leave --fsdp or --deepspeed out, or take another accelerate configuration"]
    if not isinstance(config.deepspeed, str) or not config.deepspeed.endswith(".json"):
        return []
    try:
        json.loads(Path(config.deepspeed).read_text(encoding="utf-8"))
    except OSError as error:
        return [f"deepspeed: {config.deepspeed}: {error.strerror}; expected a DeepSpeed configuration"]
    except ValueError as error:
        return [f"deepspeed: {config.deepspeed}: expected JSON, {error}"]
    return []


def check_transformers() -> None:
    """Raises ``ValueError`` where it is too old for a configuration of this project."""
    if int(transformers.__version__.split(".")[0]) < 5:
        instead = "GRUMixin, in front of a Trainer of your own, works from 4.45 on"
        raise ValueError(f"transformers: expected 5 or later, got {transformers.__version__}; update it ({instead})")


def errors_of_training(config: TrainingArguments) -> list[str]:
    """``TrainingArguments.__post_init__``, and what it has to say; names are those of options."""
    check_transformers()
    if errors := _errors_of_engines(config):
        return errors
    if config.fsdp == "true":  # a text to transformers' types, and a flag to what it does with it
        config.fsdp = cast("Any", True)
    optim: Any = config.optim
    if optim == GRU_ADAMW and isinstance(config, UnlearnConfig):
        config.optim = "adamw_torch"  # transformers knows its own names alone, and makes an enum of them
    try:
        TrainingArguments.__post_init__(config)
        config.optim = optim if optim == GRU_ADAMW else config.optim
    except ValueError as error:
        if "use_cpu" in str(error):  # transformers refuses bf16 by "your setup"
            return ["bf16: no accelerator here computes in it; add --use-cpu to train on the CPU, or --bf16 false"]
        return [str(error)]
    if config.mixed_precision == "fp16" and config.device.type == "cpu":  # accelerate leaves it out without a word
        return ["fp16: a CPU does not compute in it; give --bf16, or leave it out"]
    launched = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if launched > 1 and config.world_size == 1:  # transformers only warns, and every process would train the whole run
        alone = "without an accelerator here transformers has each train alone, in the same folder"
        return [f"use_cpu: {launched} processes were launched, but {alone}; add --use-cpu, or launch one"]
    return tries_batch_sizes(config, config.deepspeed_plugin is not None)


_training_fields = {f.name: f for f in dataclasses.fields(TrainingArguments)}


def _other_default(name: str, default: Any) -> Any:
    """A field of TrainingArguments with another default; its help text stays."""
    return field(default=default, metadata=_training_fields[name].metadata)


@dataclass
class UnlearnConfig(GRUOptions, TrainingArguments):
    """All settings of :class:`~gru_fast.unlearn.trainer.UnlearnTrainer`: those of ``TrainingArguments``, and these.

    Where the paper is silent the defaults of ``TrainingArguments`` are replaced by the public GRU code's: a constant
    learning rate, batches of 4 accumulated 8 times, weight decay 0.01, no clipping but GRU's own. Raises ``ValueError``
    naming every wrong setting at once.

    As in any Trainer, a step does not reach into the next epoch: where the rows of an epoch do not make whole steps,
    its last is of fewer (TOFU's 200 make 6 steps of 32 rows and one of 8). The public code accumulates on and has
    ``floor(epochs * rows / 32)`` steps, 31 in 5 epochs, not 35.

    >>> UnlearnConfig("run", method="npo", method_options={"beta": 0.2}, rectify=True, gamma=0.8, tau=1.0)
    """

    rectify: bool = setting(False, "rectify the unlearning gradient (GRU); off: plain training on the objective")
    method: str = setting("npo", "unlearning objective", tuple(methods.names()))
    method_options: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "hyper-parameters of the method, by name; `gru-fast ls` shows them with their defaults"},
    )
    retain_batch_size: int | None = setting(
        None,
        "rows to keep beside each per_device_train_batch_size rows to forget, run in micro-batches of that many; none: "
        "as many. The more, the less of the retain gradient is chance",
    )
    reference_batch_size: int = setting(
        16, "sequences per forward pass while reference log-probabilities are computed, once before training"
    )
    offload_reference: bool = setting(
        False,
        "keep the copy of the model before unlearning (KL terms, rmu, undial) in the host's memory: its bytes less on "
        "the accelerator, for twice the trainable weights to and from the host in each micro-batch",
    )
    kl_positions: str = setting(
        "all",
        "which positions of the retain rows a KL term averages over: all, prompt and padding included (as TOFU and the "
        "public GRU code), or the attended ones",
        KL_POSITIONS,
    )

    # TrainingArguments with other defaults
    learning_rate: float = _other_default("learning_rate", 1e-5)
    lr_scheduler_type: str = _other_default("lr_scheduler_type", "constant")
    weight_decay: float = _other_default("weight_decay", 0.01)
    num_train_epochs: float = _other_default("num_train_epochs", 5.0)
    per_device_train_batch_size: int = _other_default("per_device_train_batch_size", 4)
    gradient_accumulation_steps: int = _other_default("gradient_accumulation_steps", 8)
    max_grad_norm: float = _other_default("max_grad_norm", 0.0)
    logging_steps: float = _other_default("logging_steps", 1)
    ddp_find_unused_parameters: bool | None = _other_default("ddp_find_unused_parameters", False)
    remove_unused_columns: bool | None = _other_default("remove_unused_columns", False)
    report_to: str | list[str] | None = field(default="none", metadata=_training_fields["report_to"].metadata)
    optim: str = setting(
        _training_fields["optim"].default,
        f"{_training_fields['optim'].metadata['help']} {GRU_ADAMW}: gru_fast's AdamW, which forms the rectified "
        "gradient itself, rounds 16-bit weights and moments stochastically, and can rectify its step (rectify_update).",
        (*(name.value for name in OptimizerNames), GRU_ADAMW),
    )

    def __post_init__(self) -> None:
        check_transformers()
        for name in ("method_options", "rectifier_options"):
            if isinstance(getattr(self, name), str):  # from a command line
                with contextlib.suppress(json.JSONDecodeError):  # what it is not, is reported below
                    setattr(self, name, json.loads(getattr(self, name)))
        errors = self.gru_errors() + self._unlearn_errors()
        errors += errors_of_training(self)
        raise_all(errors)
        if self.device.type == "cpu":
            self.dataloader_pin_memory: bool = False  # there is nothing to pin for: torch would only warn

    def make_method(self) -> Method:
        """The method with its options."""
        return methods.make(self.method, self.method_options)

    def _unlearn_errors(self) -> list[str]:
        errors = []
        if self.method_options is not None and not isinstance(self.method_options, dict):
            errors.append(f"method_options: expected name: value pairs, got {self.method_options!r}")
        else:
            errors += _errors_of(self.make_method)
        errors += _whole_number_errors("reference_batch_size", self.reference_batch_size, 1)
        if self.offload_reference and not errors and not self.make_method().reference_model:
            errors.append(
                f"offload_reference: expected a method that keeps a copy of the model before unlearning, such as "
                f"npo_kl or rmu, got {self.method}; leave it out"
            )
        if self.retain_batch_size is not None:
            errors += _whole_number_errors("retain_batch_size", self.retain_batch_size, 1)
        if self.kl_positions not in KL_POSITIONS:
            errors.append(f"kl_positions: expected one of {', '.join(KL_POSITIONS)}, got {self.kl_positions!r}")
        if self.remove_unused_columns:
            errors.append("remove_unused_columns: expected False, since a batch holds its parts, not a model's inputs")
        if self.label_smoothing_factor:
            errors.append(
                f"label_smoothing_factor: expected 0, since the objectives are of the labels as they are, got "
                f"{self.label_smoothing_factor!r}"
            )
        if self.include_for_metrics:
            errors.append(
                f"include_for_metrics: expected none, since an evaluation while training gives losses alone, got "
                f"{', '.join(self.include_for_metrics)}"
            )
        errors += steps_in_backward(self) + splits_sequences(self.parallelism_config)
        errors += self._optimizer_errors()
        if self.stream and self.fp16:
            errors.append(
                "stream: not with fp16, where an overflow could not be taken back out of the moving average; use bf16, "
                "or leave stream off"
            )
        return errors

    def _optimizer_errors(self) -> list[str]:
        errors = []
        uses_ours = self.optim == GRU_ADAMW
        if self.rectify_update and not uses_ours:
            errors.append(f"rectify_update: expected optim {GRU_ADAMW} beside it, got {self.optim}")
        if uses_ours and self.rectify:
            chosen = {"granularity": self.granularity, "rectify_against": self.against, "retain_sets": self.retain_sets}
            wanted = {"granularity": "global", "rectify_against": "ema", "retain_sets": None}
            if self.rectifier in RULES and RULES[self.rectifier].elementwise:
                errors.append(f"rectifier: expected one that goes by sums with optim {GRU_ADAMW}, got {self.rectifier}")
            errors += [
                f"{name}: expected {wanted[name]} with optim {GRU_ADAMW}, got {value}; take adamw_torch with it"
                for name, value in chosen.items()
                if value != wanted[name]
            ]
        if uses_ours and self.fp16:
            errors.append(
                f"optim: expected another than {GRU_ADAMW} with fp16's loss scale, adamw_torch say; or use bf16"
            )
        if self.monitor_update and optimizer_name(self) not in ADAMW_TORCH:
            errors.append(f"monitor_update: expected optim {' or '.join(ADAMW_TORCH)}, got {optimizer_name(self)}")
        return errors
