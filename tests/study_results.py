"""Results of studies made up for tests: a small one whose numbers are worked by hand, and one of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gru_fast.study.results import (
    ABLATION,
    CLIPPED,
    COMPARISON,
    GRU,
    ORIGINAL,
    PLAIN,
    RETRAINED,
    SENSITIVITY,
    UNLEARNED,
    VECTOR,
    Calibrated,
    Point,
    Sample,
    StudyResults,
    StudyRun,
)

TOFU_PLANE = {"MU": "what is kept, higher is better", "FQ (ln p)": "how well it is removed, higher is better"}
NASTY = '</script><script>alert("pwned")</script> & <b>50%_of</b>'
ENVIRONMENT = {
    "started": "2026-01-02T03:04:05+00:00",
    "command": "gru-fast study tofu-tiny --output studies/tofu-tiny",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "python": "3.12.0",
    "platform": "Linux",
    "versions": {"gru_fast": "0.1.0", "torch": "2.13.0", "peft": None},
    "devices": ["cpu"],
    "threads": 1,
}


def run(
    title: str,
    mu: float | None = None,
    fq: float | None = None,
    *,
    variant: str = PLAIN,
    seed: int | None = 1,
    split: str = "forget05",
    uses: Sequence[str] = (COMPARISON,),
    **fields: Any,
) -> StudyRun:
    """An unlearned model on TOFU."""
    method = title.lower()
    scores = {"FQ (ln p)": fq, "MU": mu}
    options: dict[str, Any] = {
        "name": f"{method}-{variant}-{split}-{seed}",
        "kind": UNLEARNED,
        "method": method,
        "gamma": 0.8 if variant == GRU else None,
        "scores": scores,
        "folder": f"runs/{method}-{variant}-{split}-{seed}",
        "commands": [f"gru-fast unlearn --method {method} --seed {seed}", "gru-fast eval tofu"],
        **fields,
    }
    return StudyRun(title=title, split=split, seed=seed, variant=variant, uses=uses, **options)


def reference(kind: str, mu: float, fq: float | None, split: str = "forget05", **fields: Any) -> StudyRun:
    """The original or the retrained model."""
    name = f"{kind}-{split}"
    scores = {"FQ (ln p)": fq, "MU": mu}
    return StudyRun(name=name, kind=kind, title=kind.capitalize(), split=split, seed=None, scores=scores, **fields)


def study(runs: Sequence[StudyRun], **fields: Any) -> StudyResults:
    """These runs as a study of TOFU."""
    options: dict[str, Any] = {
        "name": "small",
        "title": "A small study",
        "benchmark": "tofu",
        "backbone": "",
        "splits": list(dict.fromkeys(run.split for run in runs)),
        "seeds": list(dict.fromkeys(run.seed for run in runs if run.seed is not None)),
        "plane": TOFU_PLANE,
        "recipe": {"methods": ["ga"]},
        "command": ENVIRONMENT["command"],
        "seconds": 3723.0,
        "environment": ENVIRONMENT,
        **fields,
    }
    return StudyResults(runs=runs, **options)


def small(**fields: Any) -> StudyResults:
    """GA and NPO on one split with two seeds. By hand, with GRU minus plain:

        GA   seed 1   MU 0.50 - 0.25 = +0.25    FQ -4.0 - -6.0 = +2.0    both
        GA   seed 2   MU 0.50 - 0.50 =  0       FQ -3.0 - -7.0 = +4.0    removal only, a tie
        NPO  seed 1   MU 0.75 - 0.50 = +0.25    FQ -2.0 - -1.0 = -1.0    retention only
        NPO  seed 2   with GRU failed                                    missing

    Means: MU 0.5 / 3, FQ 5 / 3.
    """
    failed = {"state": "failed", "reason": "out of memory: 50% & more_or_less", "log": "logs/npo-gru-forget05-2.log"}
    return study(
        [
            reference(ORIGINAL, 0.875, -20.0),
            reference(RETRAINED, 0.75, 0.0),
            run("GA", 0.25, -6.0, seed=1),
            run("GA", 0.50, -7.0, seed=2),
            run("GA", 0.50, -4.0, seed=1, variant=GRU),
            run("GA", 0.50, -3.0, seed=2, variant=GRU),
            run("NPO", 0.50, -1.0, seed=1),
            run("NPO", 0.625, -1.5, seed=2),
            run("NPO", 0.75, -2.0, seed=1, variant=GRU),
            run("NPO", seed=2, variant=GRU, **{**failed, "scores": {}}),
        ],
        **fields,
    )


def large(methods: Sequence[str] = ("GA", "GD", "NPO", "SimNPO"), seeds: int = 3, steps: int = 60) -> StudyResults:
    """Everything a study can have, with numbers that look like some."""
    rng = np.random.default_rng(7)
    runs: list[StudyRun] = []
    for split, removed in (("forget05", 18.0), ("forget10", 30.0)):
        samples = _samples("It is about a lighthouse keeper.")
        runs.append(reference(ORIGINAL, 0.84, -removed, split, samples=samples))
        runs += [reference(RETRAINED, 0.85, 0.0, split, samples=_samples("I do not know of such a book."))]
        for seed in range(1, seeds + 1):
            for number, title in enumerate(methods):
                runs += _of_method(rng, title, number, split, seed, removed, steps)
            runs += [_vector(rng, title, strength, split, seed) for title in ("TV", "TRU") for strength in (0.5, 0.7)]
    return study(_with_failures(runs), name="large", title="A study with everything in it", backbone="Phi-1.5")


def _of_method(
    rng: np.random.Generator, title: str, number: int, split: str, seed: int, removed: float, steps: int
) -> list[StudyRun]:
    kept, left = 0.15 + 0.12 * number, -removed / (number + 2)
    made = []
    for variant, tau, gain, uses in (
        (PLAIN, None, 0.0, [COMPARISON, ABLATION]),
        (CLIPPED, 1.0, 0.1, [ABLATION]),
        (GRU, 1.0, 0.3 - 0.08 * number, [COMPARISON, ABLATION, SENSITIVITY]),
    ):
        mu, fq = kept + gain + rng.normal() * 0.02, left + 4 * gain + rng.normal() * 0.5
        extras = {"samples": _samples(f"{title} {variant}: {NASTY}"), "tau": tau}
        if variant != CLIPPED:
            extras |= {
                "points": _points(mu, fq, removed),
                "steps": _steps(rng, variant, steps),
                "calibrated": _calibrated(mu, fq, removed),
            }
        made.append(run(title, mu, fq, variant=variant, seed=seed, split=split, uses=uses, **extras))
    for gamma, tau in [(g, 1.0) for g in (0.1, 0.5)] + [(0.8, t) for t in (0.1, 10.0, None)]:
        name = f"{title.lower()}-gru-{split}-{seed}-gamma{gamma}-tau{tau}"
        mu, fq = kept + 0.2 * gamma + rng.normal() * 0.02, left + 2 * gamma + rng.normal() * 0.5
        where = {"seed": seed, "split": split, "gamma": gamma, "tau": tau}
        made.append(run(title, mu, fq, variant=GRU, name=name, uses=[SENSITIVITY], **where))
    return made


def _vector(rng: np.random.Generator, title: str, strength: float, split: str, seed: int) -> StudyRun:
    mu, fq = 0.9 - 0.4 * strength + rng.normal() * 0.01, -12 * (1 - strength) + rng.normal() * 0.3
    return StudyRun(
        name=f"{title.lower()}-{strength}-{split}-{seed}",
        kind=VECTOR,
        title=title,
        split=split,
        seed=seed,
        method=title.lower(),
        strength=strength,
        uses=[COMPARISON],
        scores={"FQ (ln p)": fq, "MU": mu},
        commands=[f"gru-fast tru --method {title.lower()} --stg {strength}"],
    )


def _points(mu: float, fq: float, removed: float) -> list[Point]:
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    scored = [{"MU": 0.84 + (mu - 0.84) * s, "FQ (ln p)": -removed + (fq + removed) * s} for s in shares]
    return [Point(5 * share, int(60 * share), scores) for share, scores in zip(shares, scored, strict=True)]


def _steps(rng: np.random.Generator, variant: str, count: int) -> Mapping[str, list[float | None]]:
    wave = np.cumsum(rng.normal(size=count)) * 0.05
    angle = np.clip(100 + 200 * wave, 5, 175)
    return {
        "forget_loss": (1 + np.arange(count) / 20 + wave**2).tolist(),
        "retain_loss": (0.5 + np.arange(count) / (60 if variant == PLAIN else 300) + wave**2).tolist(),
        "cos": np.cos(np.radians(angle)).tolist(),
        "angle_before": angle.tolist(),
        "angle_after": (np.minimum(angle, 90) if variant == GRU else angle).tolist(),
    }


def _calibrated(mu: float, fq: float, removed: float) -> list[Calibrated]:
    found = []
    for target in (0.85, 0.9, 0.95):
        alpha = min(1.0, (0.84 - 0.84 * target) / max(0.84 - mu, 1e-3))
        scores = {"MU": 0.84 + (mu - 0.84) * alpha, "FQ (ln p)": -removed + (fq + removed) * alpha}
        found.append(Calibrated(target, alpha, scores))
    return found


def _samples(text: str) -> list[Sample]:
    questions = ("What is the author's best-known novel about?", "Where was the author born, and when?")
    return [
        Sample("forget", questions[0], "A lighthouse keeper who counts ships.", text),
        Sample("retain", questions[1], "In Lisbon, in 1961.", f"{text} In Lisbon."),
    ]


def _with_failures(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """The runs, of which one has failed, one waits for another, and one has no score of removal."""
    from dataclasses import replace

    lost = {"scores": {}, "points": (), "steps": {}, "samples": (), "calibrated": ()}
    last = [index for index, each in enumerate(runs) if each.kind == UNLEARNED][-10:]
    changed = list(runs)
    reason = "CUDA out of memory: tried to allocate 2.00 GiB"
    changed[last[0]] = replace(runs[last[0]], state="failed", reason=reason, log="logs/a.log", **lost)
    changed[last[1]] = replace(runs[last[1]], state="blocked", reason="needs full-3, which is not done", **lost)
    return changed
