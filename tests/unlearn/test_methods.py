"""The unlearning objectives: values worked by hand, gradients against other formulations, and the registry's contract.

A method added to gru_fast/unlearn/methods needs an entry in OBJECTIVES; the rest of this file finds it by itself.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from math import exp, log
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical
from torch.distributions import kl_divergence as exact_kl
from torch.nn import functional as F

from gru_fast.models.scores import LabelLogits, Scores, label_logits, label_scores
from gru_fast.unlearn import methods
from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.methods import Method, base
from gru_fast.unlearn.methods.rmu import control_vector
from gru_fast.unlearn.references import kl_divergence

NAMES = methods.names()


def objective(method: Method, batch: Batch) -> Tensor:
    """The whole objective, put together as a trainer does."""
    loss = method.forget_loss(batch)
    weight = method.retain_nll_weight(batch)
    if weight != 0.0:
        loss = loss + weight * batch.retain.mean_nll
    further = method.retain_loss(batch)
    return loss if further is None else loss + further


# ---- values worked by hand -------------------------------------------------------------------------------------------
# log p of the label tokens of two sequences per part. The means over tokens, over sequence sums and over sequence means
# all differ: forget 2, 3 and 2.25; retain 1, 1.5 and 0.875; idk 0.75, 1.125 and 0.6875.

LITERAL = {
    "forget": [[-1.0, -2.0], [-3.0]],
    "retain": [[-0.5], [-1.5, -1.0]],
    "idk": [[-0.25], [-0.5, -1.5]],
}
REFERENCE = {"forget": [-2.0, -4.0], "idk": [-1.25, -1.0]}  # log-ratios -1, +1 and +1, -1
RETAIN_KL = 0.3
# Hidden states of one number, a constant and a multiple of the position. The direction of norm 1 is then 1.
HIDDEN = {"forget": [2.0, 3.0, 4.0], "retain": [1.0, 2.0, 3.0]}
REFERENCE_HIDDEN = {"retain": [1.0, 2.5, 1.0]}
# Logits where the three label tokens of forget, 0, 2 and 1, are predicted, as logarithms of what p is proportional to.
LOGITS = {"forget": [[log(2), log(1), log(1)], [log(1), log(2), log(5)], [log(1), log(6), log(1)]]}
REFERENCE_LOGITS = {"forget": [[log(4), log(1), log(1)], [log(1), log(1), log(8)], [log(1), log(2), log(1)]]}
DUAL = 7.0


def literal_batch() -> Batch:
    def part(name: str) -> dict[str, Tensor]:
        rows = LITERAL[name]
        labels = torch.full((len(rows), 3), -100)
        for index, row in enumerate(rows):
            labels[index, 1 : 1 + len(row)] = 7
        values = {
            "labels": labels,
            "log_probs": torch.tensor([value for row in rows for value in row], dtype=torch.float64),
            "rows": torch.tensor([index for index, row in enumerate(rows) for _ in row]),
        }
        if name in REFERENCE:
            values["reference_log_probs"] = torch.tensor(REFERENCE[name], dtype=torch.float64)
        return values

    def forward(values: Mapping[str, Tensor]) -> Scores:
        return Scores(values["log_probs"], values["rows"], 2, values.get("reference_log_probs"))

    def states(values: dict[str, list[float]]) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda held: torch.tensor(values[str(held["name"])])[None, :, None].expand(2, 3, 1)

    def picked(values: dict[str, list[list[float]]]) -> Callable[[Mapping[str, Tensor]], LabelLogits]:
        return lambda held: LabelLogits(
            torch.tensor(values[str(held["name"])], dtype=torch.float64), torch.tensor([0, 2, 1]), held["rows"]
        )

    return Batch(
        {name: {**part(name), "name": name} for name in LITERAL},  # type: ignore[dict-item]
        forward,
        lambda _: torch.tensor(RETAIN_KL),
        hidden=states(HIDDEN),
        reference_hidden=states(REFERENCE_HIDDEN),
        logits=picked(LOGITS),
        reference_logits=picked(REFERENCE_LOGITS),
        dual=DUAL,
    )


def log1pexp(x: float) -> float:
    return log(1 + exp(x))


NPO_BETA_HALF = 4 * (log1pexp(-0.5) + log1pexp(0.5)) / 2  # (2 / beta) * mean softplus(beta * log-ratio)
# Mean NLL per token 1.5 and 3: -(2 / beta) * mean log sigmoid(beta * (NLL - delta)) with beta 2, delta 0.5.
SIMNPO_BETA_2 = (log1pexp(-2.0) + log1pexp(-5.0)) / 2
# Margins of the log-ratios, idk less forget: +2 and -2.
DPO_BETA_HALF = 4 * (log1pexp(-1.0) + log1pexp(1.0)) / 2

# Labels at positions 1, 2 and 1 (forget), 1 and 1, 2 (retain). Against 0.5: 2.5, 3.5 and 2.5. Against REFERENCE_HIDDEN:
# -0.5 and -0.5, 2. A mean per row, then over rows.
RMU_FORGET = ((2.5**2 + 3.5**2) / 2 + 2.5**2) / 2
RMU_RETAIN = (0.5**2 + (0.5**2 + 2.0**2) / 2) / 2

# exp(-beta) = 1/2 turns 4, 1, 1 into 2, 1, 1; 1, 1, 8 into 1, 1, 4; 1, 2, 1 into 1, 1, 1. CE of these and p.
UNDIAL_HALF = (
    -(2 * log(1 / 2) + log(1 / 4) + log(1 / 4)) / 4
    - (log(1 / 8) + log(2 / 8) + 4 * log(5 / 8)) / 6
    - (log(1 / 8) + log(6 / 8) + log(1 / 8)) / 3
) / 3
# Without the true token: 1/2, 1/2 of p 1/4, 1/4; then 1/3, 2/3 of 1/8, 2/8; then 1/2, 1/2 of 1/8, 1/8.
CEU_TOKENS = [-log(1 / 4), -(log(1 / 8) + 2 * log(2 / 8)) / 3, -log(1 / 8)]

PDU_FORGET = ((2 / 3 * log(2)) ** 2 + (log(5) - log(10) / 3) ** 2 + (2 / 3 * log(6)) ** 2) / 3  # max less mean, squared


def satimp(beta1: float, beta2: float) -> float:
    """Of log p -1, -2, -3."""
    return sum(exp(beta1 * x) * (1 - exp(x)) ** beta2 * x for x in (-1.0, -2.0, -3.0)) / 3


BY_HAND: list[tuple[str, dict[str, float], float]] = [
    ("ga", {}, -2.0),
    ("gd", {}, -2.0 + 1.0),
    ("gd", {"retain_weight": 0.25}, -2.0 + 0.25),
    ("gd", {"retain_weight": 0.0}, -2.0),
    ("wga", {}, -(exp(-1) + 2 * exp(-2) + 3 * exp(-3)) / 3),
    ("wga", {"beta": 0.5}, -(exp(-0.5) + 2 * exp(-1) + 3 * exp(-1.5)) / 3),
    ("wga", {"beta": 0.0}, -2.0),
    ("wga_gd", {}, -(exp(-1) + 2 * exp(-2) + 3 * exp(-3)) / 3 + 1.0),
    ("wga_gd", {"beta": 0.5, "retain_weight": 0.25}, -(exp(-0.5) + 2 * exp(-1) + 3 * exp(-1.5)) / 3 + 0.25),
    ("npo", {"beta": 0.5}, NPO_BETA_HALF),
    ("npo", {}, 20 * (log1pexp(-0.1) + log1pexp(0.1)) / 2),
    ("npo_gd", {"beta": 0.5}, NPO_BETA_HALF + 1.0),
    ("npo_gd", {"beta": 0.5, "retain_weight": 3.0}, NPO_BETA_HALF + 3.0),
    ("npo_kl", {"beta": 0.5}, NPO_BETA_HALF + 0.3),
    ("npo_kl", {"beta": 0.5, "kl_weight": 2.0}, NPO_BETA_HALF + 0.6),
    ("simnpo", {"beta": 2.0, "delta": 0.5}, SIMNPO_BETA_2),
    ("simnpo", {}, (2 / 4.5) * (log1pexp(-4.5 * 1.5) + log1pexp(-4.5 * 3.0)) / 2),
    ("simnpo_gd", {"beta": 2.0, "delta": 0.5}, 0.125 * SIMNPO_BETA_2 + 1.0),
    ("simnpo_gd", {"beta": 2.0, "delta": 0.5, "forget_weight": 1.0, "retain_weight": 0.1}, SIMNPO_BETA_2 + 0.1),
    ("ga_kl", {}, -2.0 + 0.3),
    ("ga_kl", {"kl_weight": 5.0}, -2.0 + 1.5),
    ("idk", {}, (0.25 + 0.5 + 1.5 + 0.5 + 1.5 + 1.0) / 6),
    ("dpo", {"beta": 0.5}, DPO_BETA_HALF + 1.0),
    ("dpo", {"beta": 0.5, "retain_weight": 0.0}, DPO_BETA_HALF),
    ("wga_kl", {"beta": 0.0, "kl_weight": 5.0}, -2.0 + 1.5),
    ("simnpo_kl", {"beta": 2.0, "delta": 0.5}, 0.125 * SIMNPO_BETA_2 + 0.3),
    ("dpo_kl", {"beta": 0.5, "kl_weight": 2.0}, DPO_BETA_HALF + 0.6),
    ("satimp", {}, satimp(5.0, 1.0) + 0.1),
    ("satimp", {"beta1": 0.5, "beta2": 2.0, "forget_weight": 0.1, "retain_weight": 1.0}, 0.1 * satimp(0.5, 2.0) + 1.0),
    ("satimp", {"beta1": 0.0, "beta2": 0.0, "retain_weight": 0.0}, -2.0),
    ("undial", {"beta": log(2)}, UNDIAL_HALF),
    ("undial_gd", {"beta": log(2), "retain_weight": 0.5}, UNDIAL_HALF + 0.5),
    ("ceu", {"skip": 0}, sum(CEU_TOKENS) / 3),
    ("ceu", {}, CEU_TOKENS[1]),  # without the first token of each sequence
    ("ceu", {"skip": 2}, 0.0),  # nothing is left
    ("pdu", {}, PDU_FORGET + 7.0 * 1.0),  # its retain_weight is where the dual variable begins, not what it is
    ("pdu", {"forget_weight": 0.5}, 0.5 * PDU_FORGET + 7.0),
    ("rmu", {"steering": 0.5}, RMU_FORGET + 100.0 * RMU_RETAIN),
    ("rmu", {"steering": 0.5, "alpha": 3.0}, RMU_FORGET + 3.0 * RMU_RETAIN),
    ("rmu", {"steering": 0.5, "alpha": 0.0}, RMU_FORGET),
]


@pytest.mark.parametrize(("name", "options", "expected"), BY_HAND)
def test_by_hand(name: str, options: dict[str, float], expected: float) -> None:
    method = methods.make(name, options)
    assert objective(method, literal_batch()).item() == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_every_method_is_worked_by_hand() -> None:
    assert {name for name, _, _ in BY_HAND} == set(NAMES)


def test_idk_is_one_mean_over_unequal_parts() -> None:
    # Two micro-batches with other label counts than the literal one: the share follows them.
    batch = Batch(
        {
            "idk": {"labels": torch.tensor([[0, 1, -100]])},
            "retain": {"labels": torch.tensor([[0, 1, 1], [0, -100, 1]])},
        },
        lambda part: label_scores(torch.zeros(*part["labels"].shape, 4), part["labels"]),
    )
    assert methods.make("idk").retain_nll_weight(batch) == 0.75


# ---- gradients against other formulations ----------------------------------------------------------------------------
# A bigram model, logits = weight[input_ids], in float64. The other formulations go sequence by sequence through
# F.cross_entropy with its ignore_index, and write the losses with probability ratios, as their papers do.

VOCABULARY = 13
Data = dict[str, dict[str, Tensor]]


@pytest.fixture(name="data")
def make_data() -> Data:
    generator = torch.Generator().manual_seed(3)
    data: Data = {}
    for part, lengths in {"forget": [6, 4, 3], "retain": [5, 6, 2], "idk": [3, 4, 5]}.items():
        ids = torch.randint(0, VOCABULARY, (3, max(lengths)), generator=generator)
        labels = ids.clone()
        labels[:, 0] = -100  # the prompt
        for row, length in enumerate(lengths):
            labels[row, length:] = -100  # padding
        data[part] = {"input_ids": ids, "labels": labels}
    return data


@pytest.fixture(name="weights")
def make_weights() -> tuple[Tensor, Tensor]:
    """The model in training and the one before it."""
    generator = torch.Generator().manual_seed(4)
    reference = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, generator=generator)
    moved = reference + 0.3 * torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, generator=generator)
    return moved.requires_grad_(), reference


def batch_of(data: Data, weight: Tensor, reference: Tensor) -> Batch:
    def scored(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = label_scores(reference[part["input_ids"]], part["labels"])
        return {**part, "reference_log_probs": scores.sequence_log_probs}

    return Batch(
        {name: scored(part) for name, part in data.items()},
        lambda part: label_scores(weight[part["input_ids"]], part["labels"], part["reference_log_probs"]),
        lambda part: kl_divergence(weight[part["input_ids"]], reference[part["input_ids"]]),
        hidden=lambda part: weight[part["input_ids"]],
        reference_hidden=lambda part: reference[part["input_ids"]],
        logits=lambda part: label_logits(weight[part["input_ids"]], part["labels"]),
        reference_logits=lambda part: label_logits(reference[part["input_ids"]], part["labels"]),
        dual=DUAL,
    )


def nll(part: Mapping[str, Tensor], weight: Tensor, row: int) -> Tensor:
    """Sum of -log p over the labels of one sequence."""
    targets = part["labels"][row, 1:]
    return F.cross_entropy(weight[part["input_ids"][row, :-1]], targets, reduction="sum", ignore_index=-100)


def ce(weight: Tensor, *parts: Mapping[str, Tensor]) -> Tensor:
    """Mean of -log p over all labels of one or more parts together."""
    logits = torch.cat([weight[part["input_ids"][:, :-1]].flatten(0, 1) for part in parts])
    targets = torch.cat([part["labels"][:, 1:].flatten() for part in parts])
    return F.cross_entropy(logits, targets, ignore_index=-100)


def ratio(part: Mapping[str, Tensor], weight: Tensor, reference: Tensor, row: int) -> Tensor:
    """p / p_ref of one sequence."""
    return torch.exp(-nll(part, weight, row)) / torch.exp(-nll(part, reference, row))


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def npo(data: Data, weight: Tensor, reference: Tensor, beta: float) -> Tensor:
    ratios = [ratio(data["forget"], weight, reference, row) for row in range(3)]
    return mean([(2 / beta) * torch.log(1 + r**beta) for r in ratios])


def simnpo(data: Data, weight: Tensor, beta: float, delta: float) -> Tensor:
    part = data["forget"]
    lengths = [int((part["labels"][row, 1:] != -100).sum()) for row in range(3)]
    rewards = [-(beta / lengths[row]) * nll(part, weight, row) for row in range(3)]
    return mean([-(2 / beta) * torch.log(1 / (1 + torch.exp(reward + beta * delta))) for reward in rewards])


def dpo(data: Data, weight: Tensor, reference: Tensor, beta: float) -> Tensor:
    won = [ratio(data["idk"], weight, reference, row) ** beta for row in range(3)]
    lost = [ratio(data["forget"], weight, reference, row) ** beta for row in range(3)]
    return mean([-(2 / beta) * torch.log(w / (w + x)) for w, x in zip(won, lost, strict=True)])


def wga(data: Data, weight: Tensor, beta: float) -> Tensor:
    """Its gradient is that of an antiderivative without detached weights: mean of p^beta / beta."""
    part = data["forget"]
    probabilities = weight[part["input_ids"][:, :-1]].softmax(-1)
    targets = part["labels"][:, 1:]
    picked = probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    scored = (targets != -100).double()
    return (scored * picked**beta / beta).sum() / scored.sum()


def satimp_parts(data: Data, weight: Tensor, beta1: float) -> Tensor:
    """At beta2 = 1 its gradient is that of the mean of p^beta1 / beta1 - p^(beta1 + 1) / (beta1 + 1)."""
    return wga(data, weight, beta1) - wga(data, weight, beta1 + 1)


def tokens(data: Data, skip: int = 0) -> list[tuple[int, int]]:
    """What is before each label token of forget, and that token; without the first ``skip`` of each answer."""
    found = []
    for ids, labels in zip(data["forget"]["input_ids"].tolist(), data["forget"]["labels"].tolist(), strict=True):
        found += [(ids[t - 1], labels[t]) for t in range(1, len(ids)) if labels[t] != -100][skip:]
    return found


def undial(data: Data, weight: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Token by token, the target from probabilities: that of the true token times exp(-beta), all over their sum."""
    losses = []
    for before, true in tokens(data):
        target = reference[before].softmax(-1).clone()
        target[true] *= exp(-beta)
        losses.append(-(target / target.sum() * weight[before].softmax(-1).log()).sum())
    return mean(losses)


def ceu(data: Data, weight: Tensor, skip: int) -> Tensor:
    """Token by token; the target is p of the others over 1 - p of the true one."""
    losses = []
    for before, true in tokens(data, skip):
        p = weight[before].softmax(-1)
        others = [j for j in range(VOCABULARY) if j != true]
        target = p[others].detach() / (1 - p[true].detach())
        losses.append(-(target * p[others].log()).sum())
    return mean(losses)


def kl(data: Data, weight: Tensor, reference: Tensor) -> Tensor:
    ids = data["retain"]["input_ids"]
    return exact_kl(Categorical(logits=reference[ids]), Categorical(logits=weight[ids])).mean()


def retain(data: Data, weight: Tensor) -> Tensor:
    return ce(weight, data["retain"])


def rmu(data: Data, weight: Tensor, reference: Tensor, steering: float, alpha: float) -> Tensor:
    """Token by token; the hidden state of a token is its row of the weight."""

    def mean_of(part: Mapping[str, Tensor], target: Callable[[int], Tensor]) -> Tensor:
        of_rows = []
        for ids, labels in zip(part["input_ids"].tolist(), part["labels"].tolist(), strict=True):
            counted = [token for token, label in zip(ids, labels, strict=True) if label != -100]
            of_rows.append(mean([F.mse_loss(weight[token], target(token)) for token in counted]))
        return mean(of_rows)

    direction = steering * control_vector(VOCABULARY, 0).double()
    return mean_of(data["forget"], lambda _: direction) + alpha * mean_of(
        data["retain"], lambda token: reference[token]
    )


# name: (options, the objective of (data, weight, reference)), its gradient alone in the case of wga and satimp
OBJECTIVES: dict[str, tuple[dict[str, float], Callable[[Data, Tensor, Tensor], Tensor]]] = {
    "ga": ({}, lambda d, w, _: -ce(w, d["forget"])),
    "gd": ({"retain_weight": 0.7}, lambda d, w, _: -ce(w, d["forget"]) + 0.7 * retain(d, w)),
    "wga": ({"beta": 1.5}, lambda d, w, _: wga(d, w, 1.5)),
    "wga_gd": ({"beta": 1.5, "retain_weight": 0.7}, lambda d, w, _: wga(d, w, 1.5) + 0.7 * retain(d, w)),
    "npo": ({"beta": 0.3}, lambda d, w, ref: npo(d, w, ref, 0.3)),
    "npo_gd": ({"beta": 0.3, "retain_weight": 0.7}, lambda d, w, ref: npo(d, w, ref, 0.3) + 0.7 * retain(d, w)),
    "npo_kl": ({"beta": 0.3, "kl_weight": 0.7}, lambda d, w, ref: npo(d, w, ref, 0.3) + 0.7 * kl(d, w, ref)),
    "simnpo": ({"beta": 0.8, "delta": 0.2}, lambda d, w, _: simnpo(d, w, 0.8, 0.2)),
    "simnpo_gd": (
        {"beta": 0.8, "delta": 0.2, "forget_weight": 0.4, "retain_weight": 0.7},
        lambda d, w, _: 0.4 * simnpo(d, w, 0.8, 0.2) + 0.7 * retain(d, w),
    ),
    "ga_kl": ({"kl_weight": 5.0}, lambda d, w, ref: -ce(w, d["forget"]) + 5.0 * kl(d, w, ref)),
    "idk": ({}, lambda d, w, _: ce(w, d["idk"], d["retain"])),
    "dpo": ({"beta": 0.3, "retain_weight": 0.7}, lambda d, w, ref: dpo(d, w, ref, 0.3) + 0.7 * retain(d, w)),
    "wga_kl": ({"beta": 1.5, "kl_weight": 0.7}, lambda d, w, ref: wga(d, w, 1.5) + 0.7 * kl(d, w, ref)),
    "simnpo_kl": (
        {"beta": 0.8, "delta": 0.2, "forget_weight": 0.4, "kl_weight": 0.7},
        lambda d, w, ref: 0.4 * simnpo(d, w, 0.8, 0.2) + 0.7 * kl(d, w, ref),
    ),
    "dpo_kl": ({"beta": 0.3, "kl_weight": 0.7}, lambda d, w, ref: dpo(d, w, ref, 0.3) + 0.7 * kl(d, w, ref)),
    "satimp": (
        {"beta1": 1.5, "forget_weight": 0.4, "retain_weight": 0.7},
        lambda d, w, _: 0.4 * satimp_parts(d, w, 1.5) + 0.7 * retain(d, w),
    ),
    "undial": ({"beta": 2.0}, lambda d, w, ref: undial(d, w, ref, 2.0)),
    "undial_gd": (
        {"beta": 2.0, "retain_weight": 0.7},
        lambda d, w, ref: undial(d, w, ref, 2.0) + 0.7 * retain(d, w),
    ),
    "ceu": ({"skip": 2}, lambda d, w, _: ceu(d, w, 2)),
    "pdu": (
        {"forget_weight": 0.4},
        lambda d, w, _: (
            0.4 * mean([(max(w[before]) - sum(w[before]) / VOCABULARY) ** 2 for before, _ in tokens(d)])
            + DUAL * retain(d, w)
        ),
    ),
    "rmu": ({"steering": 2.0, "alpha": 0.7}, lambda d, w, ref: rmu(d, w, ref, 2.0, 0.7)),
}


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_another_formulation(name: str, data: Data, weights: tuple[Tensor, Tensor]) -> None:
    weight, reference = weights
    options, formulation = OBJECTIVES[name]
    loss = objective(methods.make(name, options), batch_of(data, weight, reference))
    expected = formulation(data, weight, reference)
    if name not in {"wga", "wga_gd", "wga_kl", "satimp"}:  # whose two forms share the gradient only
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss, weight)
    (expected_gradient,) = torch.autograd.grad(expected, weight)
    assert expected_gradient.norm() > 1e-3
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-13)


# What the unified framework's own functions (commit d3d7cf9) give for these data in float64: the loss and the norm of
# its gradient, without a retain term.
FRAMEWORKS = [
    ("wga", {"beta": 1.5}, -0.037236504906325386, 0.006730862677659558),
    ("wga_gd", {"beta": 1.5, "retain_weight": 0.0}, -0.037236504906325386, 0.006730862677659558),
    ("satimp", {"retain_weight": 0.0}, -1.2145091189618377e-05, 3.8019096868572792e-06),
    ("npo", {}, 13.604785528031275, 1.2893657247392107),
    ("dpo", {"retain_weight": 0.0}, 13.66061964014629, 1.6203216137266812),
    ("simnpo", {}, 5.158010024788837e-07, 1.2854190639578607e-06),
    ("ceu", {}, 1.9507355100444639, 0.02719696882320824),
    ("ceu", {"skip": 0}, 1.9494662164545677, 0.024192323301341568),
    ("undial", {"all labels": True}, 1.9845537973030953, 0.04175537393970379),  # where all positions are label tokens
]


@pytest.mark.parametrize(("name", "options", "value", "norm"), FRAMEWORKS)
def test_value_and_gradient_are_the_unified_frameworks(
    name: str, options: dict[str, Any], value: float, norm: float, data: Data, weights: tuple[Tensor, Tensor]
) -> None:
    weight, reference = weights
    if options.pop("all labels", False):
        data["forget"]["labels"] = data["forget"]["input_ids"].clone()
    loss = objective(methods.make(name, options), batch_of(data, weight, reference))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert loss.item() == pytest.approx(value, rel=1e-10)
    assert gradient.norm().item() == pytest.approx(norm, rel=1e-10)


@pytest.mark.parametrize("name", ["npo", "npo_gd", "npo_kl"])
def test_npo_at_the_reference(name: str, data: Data, weights: tuple[Tensor, Tensor]) -> None:
    """Loss 2 ln 2 / beta = 13.8629, gradient that of minus the mean sequence NLL: weight 1 exactly."""
    _, reference = weights
    weight = reference.clone().requires_grad_()
    loss = methods.make(name).forget_loss(batch_of(data, weight, reference))
    assert loss.item() == pytest.approx(13.862943611198906, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, weight)
    (expected,) = torch.autograd.grad(-mean([nll(data["forget"], weight, row) for row in range(3)]), weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_dpo_at_the_reference(data: Data, weights: tuple[Tensor, Tensor]) -> None:
    """Loss 2 ln 2 / beta; gradient of the mean NLL of the idk answers less that of the true ones."""
    _, reference = weights
    weight = reference.clone().requires_grad_()
    loss = methods.make("dpo").forget_loss(batch_of(data, weight, reference))
    assert loss.item() == pytest.approx(13.862943611198906, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, weight)
    margin = mean([nll(data["idk"], weight, row) - nll(data["forget"], weight, row) for row in range(3)])
    torch.testing.assert_close(gradient, torch.autograd.grad(margin, weight)[0], rtol=1e-10, atol=1e-14)


def test_kl_terms_have_no_pull_at_the_reference(data: Data, weights: tuple[Tensor, Tensor]) -> None:
    _, reference = weights
    weight = reference.clone().requires_grad_()
    loss = methods.make("ga_kl").retain_loss(batch_of(data, weight, reference))
    assert loss is not None
    assert abs(loss.item()) < 1e-12
    assert torch.autograd.grad(loss, weight)[0].abs().max() < 1e-14


def test_npo_tends_to_ga_on_sums_as_beta_falls(data: Data, weights: tuple[Tensor, Tensor]) -> None:
    weight, reference = weights
    loss = methods.make("npo", {"beta": 1e-6}).forget_loss(batch_of(data, weight, reference))
    (gradient,) = torch.autograd.grad(loss, weight)
    (expected,) = torch.autograd.grad(-mean([nll(data["forget"], weight, row) for row in range(3)]), weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["npo", "dpo"])
def test_references_get_no_gradient_into_the_model(name: str, data: Data, weights: tuple[Tensor, Tensor]) -> None:
    weight, reference = weights
    reference = reference.clone().requires_grad_()
    batch = batch_of(data, weight, reference.detach())
    methods.make(name).forget_loss(batch).backward()
    assert reference.grad is None
    assert weight.grad is not None


# ---- properties ------------------------------------------------------------------------------------------------------


def two_sequences(first: float, second: float, **reference: list[float]) -> tuple[Tensor, Batch]:
    """One label token per sequence, so that log p of the tokens and of the sequences are the same two numbers."""
    log_probs = torch.tensor([first, second], requires_grad=True)
    scores = Scores(log_probs, torch.tensor([0, 1]), 2, torch.tensor(reference["of"]) if reference else None)
    return log_probs, Batch({"forget": {}}, lambda _: scores)


@given(st.floats(-3e4, 0.0), st.floats(-3e4, 0.0), st.floats(1e-3, 10.0))
def test_npo_is_finite_and_its_weights_are_between_0_and_2(first: float, reference: float, beta: float) -> None:
    log_probs, batch = two_sequences(first, reference, of=[reference, reference])
    loss = methods.make("npo", {"beta": beta}).forget_loss(batch)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert torch.isfinite(loss)
    assert loss >= 0
    # Per sequence 2 * sigmoid(beta * log-ratio) / B: 1 / 2 at the reference, less below it.
    assert 0 <= gradient[0] <= 1.00001
    assert gradient[1] == pytest.approx(0.5, rel=1e-5)
    if first < reference:
        assert gradient[0] <= 0.50001
    elif first > reference:
        assert gradient[0] >= 0.49999


@given(st.floats(-3e4, 0.0), st.floats(1e-3, 10.0))
def test_wga_weights_fall_with_the_probability(first: float, beta: float) -> None:
    log_probs, batch = two_sequences(first, 0.0)
    (gradient,) = torch.autograd.grad(methods.make("wga", {"beta": beta}).forget_loss(batch), log_probs)
    assert 0 <= gradient[0] <= gradient[1] == 0.5


@pytest.mark.parametrize("name", ["npo", "simnpo", "wga", "ga"])
@pytest.mark.parametrize("log_p", [-1e6, -1.0, 0.0])
def test_extremes_stay_finite(name: str, log_p: float) -> None:
    log_probs, batch = two_sequences(log_p, -0.5, of=[-0.5, -1e6])
    loss = methods.make(name).forget_loss(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert log_probs.grad is not None
    assert torch.isfinite(log_probs.grad).all()
    assert (log_probs.grad >= 0).all()  # descent lowers the likelihood of what is to be forgotten


def test_simnpo_of_a_sequence_without_labels_is_constant() -> None:
    log_probs = torch.tensor([-1.0], requires_grad=True)
    batch = Batch({"forget": {}}, lambda _: Scores(log_probs, torch.tensor([1]), 2))
    loss = methods.make("simnpo").forget_loss(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(log_probs.grad).all()  # type: ignore[union-attr]


# ---- the registry's contract -----------------------------------------------------------------------------------------


def test_all_methods_of_the_paper_and_the_benchmarks_are_there() -> None:
    paper = {"ga", "wga", "gd", "npo", "npo_kl", "npo_gd", "simnpo", "simnpo_gd", "rmu"}
    held = {"ga_kl", "wga_kl", "simnpo_kl", "dpo_kl"}
    assert set(NAMES) == {*paper, *held, "idk", "dpo", "wga_gd", "satimp", "undial", "undial_gd", "ceu", "pdu"}
    assert set(OBJECTIVES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_class_is_as_registered(name: str) -> None:
    cls = methods.get(name)
    assert cls.name == name
    assert cls.__module__ == f"gru_fast.unlearn.methods.{name}"
    assert cls.__bases__ == (Method,)  # no inheritance between methods
    assert cls.__doc__
    assert cls.title
    assert set(cls.parts) <= {"forget", "retain", "idk"}
    assert set(cls.reference_log_probs) <= set(cls.parts)


def test_titles_are_unique() -> None:
    assert len({methods.get(name).title for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_have_help_range_and_a_default_within(name: str) -> None:
    method = methods.make(name)
    assert methods.make(name, {}) == methods.make(name, None) == method
    for field in dataclasses.fields(method):
        assert field.metadata["help"]
        assert type(field.default) in {float, int, str}
    options = dataclasses.asdict(method)
    assert methods.make(name, options) == method
    assert pickle.loads(pickle.dumps(method)) == method
    assert hash(method) == hash(methods.make(name))


@pytest.mark.parametrize("name", NAMES)
def test_reads_what_it_declares_and_nothing_else(name: str, data: Data, weights: tuple[Tensor, Tensor]) -> None:
    cls = methods.get(name)
    weight, reference = weights
    whole = batch_of(data, weight, reference)
    used: set[str] = set()

    def forward(part: Mapping[str, Tensor]) -> Scores:
        used.update(key for key in part if key in data)
        return label_scores(weight[part["input_ids"]], part["labels"], part.get("reference_log_probs"))

    def divergence(part: Mapping[str, Tensor]) -> Tensor:
        used.update({"kl", *(key for key in part if key in data)})
        return kl_divergence(weight[part["input_ids"]], reference[part["input_ids"]])

    def declared(part: str) -> dict[str, Tensor]:
        held = {**data[part], part: torch.empty(0)}
        if part in cls.reference_log_probs:
            held["reference_log_probs"] = whole._parts[part]["reference_log_probs"]
        return held

    def hidden(table: Tensor, what: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
        def read(part: Mapping[str, Tensor]) -> Tensor:
            used.update({what, *(key for key in part if key in data)})
            return table[part["input_ids"]]

        return read

    def predicted(table: Tensor, what: str) -> Callable[[Mapping[str, Tensor]], LabelLogits]:
        read = hidden(table, what)
        return lambda part: label_logits(read(part), part["labels"])

    batch = Batch(
        {part: declared(part) for part in cls.parts},
        forward,
        divergence if cls.reference_model and not (cls.hidden_states or cls.logits) else None,
        hidden=hidden(weight, "hidden") if cls.hidden_states else None,
        reference_hidden=hidden(reference, "reference") if cls.hidden_states and cls.reference_model else None,
        logits=predicted(weight, "logits") if cls.logits else None,
        reference_logits=predicted(reference, "reference") if cls.logits and cls.reference_model else None,
        dual=DUAL if cls.has_dual else None,
    )
    loss = objective(cls(), batch)
    assert loss.shape == ()
    assert loss.requires_grad
    own = [what for what, reads in (("hidden", cls.hidden_states), ("logits", cls.logits)) if reads]
    compared = (["reference"] if own else ["kl"]) if cls.reference_model else []
    assert used == {*cls.parts, *own, *compared}


@pytest.mark.parametrize("name", NAMES)
def test_forget_loss_leaves_the_retain_part_alone(name: str, data: Data, weights: tuple[Tensor, Tensor]) -> None:
    """So that a trainer has one graph at a time."""
    weight, reference = weights
    batch = batch_of(data, weight, reference)
    loss = methods.make(name).forget_loss(batch)
    assert "retain" not in vars(batch)
    assert "retain_kl" not in vars(batch)
    loss.backward()
    assert isinstance(methods.make(name).retain_nll_weight(batch), float)
    assert "retain" not in vars(batch)  # the weight is known before, and without, the forward pass


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "0.1", None, True])
def test_hyper_parameters_out_of_all_range(name: str, bad: Any) -> None:
    for field in dataclasses.fields(methods.get(name)):
        if isinstance(bad, str) and isinstance(field.default, str):
            continue
        with pytest.raises((ValueError, TypeError), match=rf"^{name}\.{field.name}: expected .*, got"):
            methods.make(name, {field.name: bad})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("npo", {"beta": 0.0}, r"^npo.beta: expected a number above 0, got 0.0"),
        ("npo_gd", {"beta": -1}, r"^npo_gd.beta: expected a number above 0, got -1"),
        ("simnpo", {"beta": 0}, r"^simnpo.beta: expected a number above 0, got 0"),
        ("dpo", {"beta": -0.1}, r"^dpo.beta: expected a number above 0, got -0.1"),
        ("wga", {"beta": -0.5}, r"^wga.beta: expected a number of at least 0, got -0.5"),
        ("gd", {"retain_weight": -1.0}, r"^gd.retain_weight: expected a number of at least 0, got -1"),
        ("npo", {"betta": 0.1}, r'^method_options: npo takes beta, got "betta"; did you mean "beta"\?$'),
        ("ga", {"beta": 0.1}, r'^method_options: ga takes no options, got "beta"$'),
        ("rmu", {"layer": -2}, r"^rmu.layer: expected a number of at least -1, got -2"),
        ("rmu", {"trained": "("}, r"^rmu.trained: expected a regular expression, got '\(' "),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.make(name, options)


@pytest.mark.parametrize("near", ["NPO", "npo-gd", "npo+gd", "simnpo_dg"])
def test_unknown_method_lists_the_known_and_the_nearest(near: str) -> None:
    with pytest.raises(
        ValueError, match=r"^method: expected one of ceu, dpo, .*, wga_kl, got .*, did you mean \"\w+\"\?$"
    ):
        methods.get(near)


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_methods", dict(base._methods))

    @methods.register("mine", title="Mine")
    @dataclasses.dataclass(frozen=True)
    class Mine(Method):
        parts: ClassVar[tuple[str, ...]] = ("forget",)
        mode: str = methods.hyper("slow", "pace", choices=("slow", "fast"))

        def forget_loss(self, batch: Batch) -> Tensor:
            return batch.forget.log_probs.mean()

    assert "mine" in methods.names()
    assert methods.make("mine", {"mode": "fast"}) == Mine("fast")
    with pytest.raises(ValueError, match=r"^mine.mode: expected one of 'slow', 'fast', got 'quick'"):
        methods.make("mine", {"mode": "quick"})
    with pytest.raises(ValueError, match=r'^method "mine": registered twice'):
        methods.register("mine", title="Again")(Mine)
