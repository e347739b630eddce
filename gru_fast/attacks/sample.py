"""Attack: many answers instead of one. What greedy decoding does not show may be one of ten samples.

leak@k is the best of k answers to a question, in expectation over which k, averaged over the questions: k = 1 is the
mean of the samples, the largest k the worst case. Its interval is a bootstrap's over questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gru_fast.attacks.parts.answers import Record, drawn, greedy, scorer_of
from gru_fast.attacks.parts.outcome import Finding, Outcome
from gru_fast.attacks.parts.questions import SCORES, questions
from gru_fast.attacks.parts.target import ORIGINAL, RETRAINED, UNLEARNED, Target
from gru_fast.metrics.leak import bootstrap_interval, leak_at_k, mean

HELP = "many answers at several temperatures: leak@k, its worst and its mean"


@dataclass
class SampleOptions:
    """The attack sample."""

    samples: int = field(default=16, metadata={"help": "answers to every question at every temperature"})
    temperatures: list[float] = field(
        default_factory=lambda: [0.7, 1.0], metadata={"help": "what logits are divided by"}
    )
    top_p: float = field(default=1.0, metadata={"help": "share of the probability that tokens are drawn from"})
    sample_seed: int = field(default=0, metadata={"help": "of the draws"})

    def __post_init__(self) -> None:
        self.temperatures = list(dict.fromkeys(map(float, self.temperatures)))
        problems = []
        if self.samples < 1:
            problems.append(f"samples: expected at least 1, got {self.samples}")
        if not self.temperatures:
            problems.append("temperatures: expected at least one, such as 1.0")
        problems += [
            f"temperatures: expected numbers above 0, got {value:g} (greedy answers are there anyway)"
            for value in self.temperatures
            if not 0 < value < float("inf")
        ]
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: expected a share in (0, 1], got {self.top_p:g}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def ks(self) -> list[int]:
        """1, 2, 4, ... and the number of samples."""
        return sorted({self.samples, *(2**i for i in range(self.samples.bit_length()))} - {0})


Options = SampleOptions


def cost(options: SampleOptions, target: Target) -> str:
    """What it will take, in words."""
    asked = questions(target, *target.words())
    attacked = [role for role in target.roles if role != ORIGINAL]
    each = options.samples * len(options.temperatures)
    answers = len(asked) * (len(target.roles) + each * len(attacked))
    tokens = sum(one.max_new_tokens for one in asked) * (len(target.roles) + each * len(attacked))
    return (
        f"{len(asked)} questions, greedily to {len(target.roles)} models and {options.samples} times at "
        f"{len(options.temperatures)} temperatures to {len(attacked)} ({', '.join(attacked)}): {answers} answers of "
        f"{tokens} tokens at most"
    )


def settings(options: SampleOptions, target: Target) -> dict[str, Any]:
    """What the findings depend on."""
    return asdict(options)


def run(options: SampleOptions, target: Target) -> Outcome:
    """leak@k at every temperature, beside the greedy answers."""
    plain: dict[str, dict[str, float]] = {}
    found: dict[str, dict[float, list[list[Record]]]] = {}
    for role in target.roles:
        model, tokenizer, template = target.subjects[role].load()
        asked = questions(target, tokenizer, template)
        scorer = scorer_of(target, model, tokenizer)
        with target.place("sample", role) as folder:
            records = greedy(target, scorer, folder / "greedy", asked, f"{role}: greedy")
            plain[role] = {score: mean([row[score] for row in records]) for score in SCORES}
            if role == ORIGINAL:
                continue
            found[role] = {
                temperature: drawn(
                    target, scorer, folder / f"temperature-{temperature:g}", asked, samples=options.samples,
                    temperature=temperature, top_p=options.top_p, seed=options.sample_seed,
                    label=f"{role}: temperature {temperature:g}",
                )
                for temperature in options.temperatures
            }  # fmt: skip
    findings = [
        _finding(k, temperature, score, plain, found)
        for temperature in options.temperatures
        for k in options.ks
        for score in SCORES
    ]
    return Outcome(findings, {"greedy": plain})


def report(summary: Mapping[str, Any]) -> str:
    """Nothing beside the findings."""
    return ""


def _finding(
    k: int,
    temperature: float,
    score: str,
    plain: Mapping[str, Mapping[str, float]],
    found: Mapping[str, Mapping[float, Sequence[Sequence[Record]]]],
) -> Finding:
    leaks = {
        role: [leak_at_k([record[score] for record in rows], k) for rows in of[temperature]]
        for role, of in found.items()
    }
    return Finding(
        what=f"leak@{k}, temperature {temperature:g}",
        score=score,
        before=plain[UNLEARNED][score],
        after=mean(leaks[UNLEARNED]),
        original=plain.get(ORIGINAL, {}).get(score),
        retained_before=plain.get(RETRAINED, {}).get(score),
        retained_after=mean(leaks[RETRAINED]) if RETRAINED in leaks else None,
        interval=bootstrap_interval(leaks[UNLEARNED]),
        at={"k": k, "temperature": temperature},
    )
