"""Attack: the weights in fewer bits. A step of unlearning that is smaller than a format's bin is rounded away.

For every format the benchmark evaluates the rounded model, as it does any other. Beside the scores stands how many of
the weights that unlearning changed come to lie on another level of the format, and how much of the step is left. The
retrained model is rounded too: what its scores do is what rounding alone does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gru_fast.attacks.parts import formats, weights
from gru_fast.attacks.parts.outcome import Finding, Outcome
from gru_fast.attacks.parts.target import ORIGINAL, RETRAINED, UNLEARNED, Target, knowledge_headings
from gru_fast.evaluation.subject import Subject
from gru_fast.runs.files import read_json, write_json
from gru_fast.runs.processes import on_first

HELP = "weights in 8 and 4 bits: what unlearning changed by less than a bin comes back"
_SURVIVAL = "survival.json"


@dataclass
class QuantizeOptions:
    """The attack quantize."""

    formats: list[str] = field(
        default_factory=formats.names, metadata={"help": f"number formats of the weights: {', '.join(formats.names())}"}
    )
    quantize_head: bool = field(
        default=False, metadata={"help": "round embeddings and head too, as llama.cpp; the others leave them"}
    )

    def __post_init__(self) -> None:
        problems = []
        if not self.formats:
            problems.append(f"formats: expected some of {', '.join(formats.names())}, got none")
        for name in self.formats:
            try:
                formats.get(name)
            except ValueError as error:  # noqa: PERF203 all that is wrong at once
                problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))


Options = QuantizeOptions


def cost(options: QuantizeOptions, target: Target) -> str:
    """What it will take, in words."""
    rounded = [role for role in target.roles if role != ORIGINAL]
    return (
        f"{len(target.roles)} models evaluated as they are, and {len(rounded)} ({', '.join(rounded)}) in each of "
        f"{len(options.formats)} formats: {len(target.roles) + len(rounded) * len(options.formats)} evaluations at most"
    )


def settings(options: QuantizeOptions, target: Target) -> dict[str, Any]:
    """What the findings depend on."""
    wanted = target.evaluation.wanted(target.options, target.unlearned.asked)  # of documents, what they say
    return {**asdict(options), "evaluate": asdict(target.options), "wanted": wanted}


def run(options: QuantizeOptions, target: Target) -> Outcome:
    """Every score of the benchmark, before and after, in every format."""
    folder = target.folder / "quantize"
    plain = {role: _columns(target, role, "full") for role in target.roles}
    findings: list[Finding] = []
    chosen = list(dict.fromkeys(options.formats))
    left = _survival(chosen, options, target, folder) if ORIGINAL in target.roles else {}
    for name in chosen:
        after = {role: _columns_in(name, role, options, target) for role in (UNLEARNED, RETRAINED) if role in plain}
        findings += _findings(name, plain, after, knowledge_headings(target.evaluation))
    return Outcome(findings, {"survival": left})


def report(summary: Mapping[str, Any]) -> str:
    """What of the step survives, a line a format."""
    rows: Mapping[str, Mapping[str, Any]] = summary["survival"]
    if not rows:
        return ""
    wide = max(map(len, rows))
    lines = [
        f"{'of what unlearning changed':<{wide}}",
        f"{'':<{wide}}  {'on another level':>18}{'step that is left':>20}",
    ]
    for name, row in rows.items():
        cells = ["-" if row[key] is None else f"{100 * row[key]:.2f} %" for key in ("survived", "kept")]
        lines.append(f"{name:<{wide}}  {cells[0]:>18}{cells[1]:>20}")
    first = next(iter(rows.values()))
    return "\n".join([*lines, f"{first['changed']} of {first['weights']} weights changed"])


# ---- parts -----------------------------------------------------------------------------------------------------------


def _columns(target: Target, role: str, name: str, subject: Subject | None = None) -> dict[str, float | None]:
    """The scores of a model as it is, or of ``subject`` in its place."""
    with target.place("quantize", role) as folder:
        return target.columns(target.evaluate(role, folder / name, subject))


def _columns_in(name: str, role: str, options: QuantizeOptions, target: Target) -> dict[str, float | None]:
    """The scores of a model in a format."""
    subject = target.subjects[role]
    asked = {**subject.asked, "quantized": name, **({"head": True} if options.quantize_head else {})}
    place = f"{name}-head" if options.quantize_head else name
    with ExitStack() as stack:

        def load() -> tuple[Any, Any, Any]:
            model, tokenizer, template = subject.load()
            stack.enter_context(weights.rounded(model, formats.get(name), head=options.quantize_head))
            return model, tokenizer, template

        return _columns(target, role, place, replace(subject, asked=asked, load=load))


def _survival(
    chosen: Sequence[str], options: QuantizeOptions, target: Target, folder: Path
) -> dict[str, dict[str, Any]]:
    """Format -> what of the step survives it: read where it is known, else both models are loaded."""
    file = folder / _SURVIVAL
    asked = {
        "models": [dict(target.subjects[role].asked) for role in (ORIGINAL, UNLEARNED)],
        "head": options.quantize_head,
    }

    def known() -> dict[str, dict[str, Any]]:
        subjects = [target.subjects[role] for role in (ORIGINAL, UNLEARNED)]
        if not file.is_file() or target.unlearned.overwrite or not all(one.is_older_than(file) for one in subjects):
            return {}
        kept = read_json(file)
        return dict(kept["formats"]) if kept["settings"] == asked else {}

    found = on_first(known)
    missing = [name for name in chosen if name not in found]
    if missing:
        found |= on_first(lambda: _survivals(missing, options, target))
        on_first(lambda: write_json(file, {"settings": asked, "formats": found}))
    return {name: found[name] for name in chosen}


def _survivals(names: Sequence[str], options: QuantizeOptions, target: Target) -> dict[str, dict[str, Any]]:
    # The original on the CPU: only one of its weights at a time is needed beside the other model.
    original = target.subjects[ORIGINAL].load()[0].cpu()
    model = target.unlearned.load()[0]
    return {
        name: asdict(weights.survival(original, model, formats.get(name), head=options.quantize_head)) for name in names
    }


def _findings(
    name: str,
    plain: Mapping[str, Mapping[str, float | None]],
    after: Mapping[str, Mapping[str, float | None]],
    knowledge: Sequence[str],
) -> list[Finding]:
    """One a score that the model has; those that say what is known first."""
    found = []
    of = plain[UNLEARNED]
    for heading in sorted(of, key=lambda heading: heading not in knowledge):
        if of[heading] is None and after[UNLEARNED].get(heading) is None:
            continue
        found.append(
            Finding(
                what=name,
                score=heading,
                before=of[heading],
                after=after[UNLEARNED].get(heading),
                original=plain.get(ORIGINAL, {}).get(heading),
                retained_before=plain.get(RETRAINED, {}).get(heading),
                retained_after=after.get(RETRAINED, {}).get(heading),
                is_knowledge=heading in knowledge,
                at={"format": name},
            )
        )
    return found
