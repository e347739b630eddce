"""What :class:`gru_fast.optim.AdamW` can be asked for, and the words for what it cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.checks import check_gamma, check_tau
from gru_fast.core.ema import RetainEMA
from gru_fast.core.rules import GRU, Rule, rule_of
from gru_fast.core.sharded.shards import check_params

MOMENTS = ("exp_avg", "exp_avg_sq")
RECTIFY = ("gradient", "update", "both")
METRICS = ("euclidean", "adam")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class RectifyOptions:
    """What of a step is rectified, and how."""

    rule: Rule | None = None  # of the gradient; None: it is not rectified
    update: bool = False
    adam: bool = False  # the metric of the update
    gamma: float = 0.0
    tau: float = math.inf
    feed_back: bool = False
    error_if_nonfinite: bool = False

    @staticmethod
    def check_ema(ema: Any) -> RetainEMA:
        """``ema``, or a TypeError if it is no such thing."""
        if not isinstance(ema, RetainEMA):
            raise TypeError(f"ema: expected a RetainEMA or None, got {type(ema).__name__}")
        ema.expect_one("ema")
        return ema

    @classmethod
    def checked(
        cls,
        ema: RetainEMA | Callable[[], RetainEMA] | None,
        gamma: float | None,
        tau: float | None,
        rectify: str | None,
        rule: str | Rule,
        metric: str,
        *,
        feed_back: bool,
        error_if_nonfinite: bool,
    ) -> RectifyOptions:
        """Those of an optimizer, or a TypeError or ValueError that names the culprit."""
        if ema is None:
            given = (
                ("gamma", gamma, None), ("tau", tau, None), ("rectify", rectify, None),
                ("rule", rule, "gru"), ("metric", metric, "euclidean"), ("feed_back", feed_back, False),
            )  # fmt: skip
            for name, value, usual in given:
                if value != usual:
                    raise ValueError(f"{name}: expected an ema beside it, since without one nothing is rectified")
            return cls()
        if not callable(ema):
            cls.check_ema(ema)
        if gamma is None:
            raise ValueError("gamma: expected a number in [0, 1] beside an ema (the paper's is 0.8), got None")
        rectify = "gradient" if rectify is None else rectify
        choices = (("rectify", rectify, RECTIFY), ("metric", metric, METRICS))
        for name, value, known in choices:
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        update = rectify != "gradient"
        chosen = _check_rule(rule, rectify)
        if feed_back and not update:
            raise ValueError('feed_back: expected rectify="update" or "both" beside it, since nothing else feeds back')
        if metric == "adam" and not update:
            raise ValueError('metric: expected rectify="update" or "both" beside "adam", since it is the update\'s')
        return cls(
            rule=None if rectify == "update" else chosen, update=update, adam=metric == "adam",
            gamma=check_gamma(gamma), tau=check_tau(tau), feed_back=feed_back, error_if_nonfinite=error_if_nonfinite,
        )  # fmt: skip


def _check_rule(rule: str | Rule, rectify: str) -> Rule:
    """The rule of the gradient, if it is one for an optimizer that forms the gradient itself."""
    chosen = rule_of(rule)
    if chosen.elementwise:
        raise ValueError(
            f"rule: expected one that goes by sums, got {chosen.name}, which decides element by element; rectify_ by "
            "it, in front of torch.optim.AdamW"
        )
    if rectify == "update" and chosen != GRU():
        raise ValueError(f'rule: expected rectify="gradient" or "both" beside {chosen.name}, got "update"')
    return chosen


def refuse_unoffered(*, amsgrad: bool, differentiable: bool) -> None:
    """Options of torch's AdamW that there is no form of here."""
    for name, value in (("amsgrad", amsgrad), ("differentiable", differentiable)):
        if value:
            raise ValueError(f"{name}: expected False, got {value!r}; only torch.optim.AdamW offers it")


def check_moment_dtype(dtype: torch.dtype | None) -> None:
    """Refuses what moments cannot be."""
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(
            f"moment_dtype: expected None, torch.float32 or torch.bfloat16 (for bfloat16 parameters), got {dtype}"
        )


def check_group(groups: Sequence[Mapping[str, Any]], *, has_ema: bool) -> None:
    """Refuses the last of ``groups`` if it cannot be stepped with the others."""
    group, where = groups[-1], f"param_groups[{len(groups) - 1}]"
    lr, (beta1, beta2) = group["lr"], group["betas"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"{where}: lr: expected a number or a tensor of one element, got shape {tuple(lr.shape)}")
    for name, value in (("lr", lr), ("eps", group["eps"]), ("weight_decay", group["weight_decay"])):
        if not (0.0 <= float(value) < math.inf):
            raise ValueError(f"{where}: {name}: expected a number of at least 0, got {float(value)}")
    for name, value in (("betas[0]", beta1), ("betas[1]", beta2)):
        if not 0.0 <= float(value) < 1.0:
            raise ValueError(f"{where}: {name}: expected a number in [0, 1), got {value}")
    refuse_unoffered(amsgrad=group["amsgrad"], differentiable=group["differentiable"])
    _check_direction(where, group, groups[0], has_ema)
    names = group.get("param_names")
    check_params(group["params"], names=names)
    for index, param in enumerate(group["params"]):
        if param.dtype not in _DTYPES:
            label = f"{where}: params[{index}]" + ("" if names is None else f' "{names[index]}"')
            raise TypeError(f"{label}: expected float32, bfloat16 or float16, got {param.dtype}; convert the model")


def _check_direction(where: str, group: Mapping[str, Any], first: Mapping[str, Any], has_ema: bool) -> None:
    """All groups descend, or all ascend; with an ema they descend."""
    maximize = bool(group.get("maximize", False))
    if maximize != bool(first.get("maximize", False)):
        raise ValueError(f"{where}: maximize: expected {not maximize} as in the first group")
    if maximize and has_ema:
        raise ValueError(
            f"{where}: maximize: expected False with an ema, which says of descending g whether it raises a loss"
        )


def check_state(state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], *, has_ema: bool) -> None:
    """Refuses a ``state_dict`` that does not fit, before anything of it is taken over."""
    missing = {"state", "param_groups"} - set(state)
    if missing:
        raise ValueError(f"state_dict: expected that of an AdamW, missing {sorted(missing)}")
    if any(group.get("amsgrad") for group in state["param_groups"]):
        raise ValueError("state_dict: expected one without amsgrad, got one with it; only torch.optim.AdamW has it")
    for index, group in enumerate(state["param_groups"]):
        _check_direction(f"state_dict: param_groups[{index}]", group, state["param_groups"][0], has_ema)
    saved = [index for group in state["param_groups"] for index in group["params"]]
    params = [param for group in groups for param in group["params"]]
    if len(saved) != len(params):
        raise ValueError(f"state_dict: expected {len(params)} parameters, got {len(saved)}: of another model?")
    for place, (index, param) in enumerate(zip(saved, params, strict=True)):
        entry = state["state"].get(index)
        if entry is None:
            continue
        absent = [name for name in ("step", *MOMENTS) if name not in entry]
        if absent:
            raise ValueError(f"state_dict: parameter {place}: expected step, exp_avg and exp_avg_sq, missing {absent}")
        for name in MOMENTS:
            if entry[name].shape != param.shape:
                raise ValueError(
                    f"state_dict: parameter {place}: {name}: expected shape {tuple(param.shape)}, got "
                    f"{tuple(entry[name].shape)}"
                )
