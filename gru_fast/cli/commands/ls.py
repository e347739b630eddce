"""List what can be chosen: methods and rectifiers with options, recipes, studies, splits, templates, metrics, attacks.

gru-fast ls              everything
gru-fast ls methods      one of methods, rectifiers, recipes, studies, splits, templates, metrics, attacks
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

HELP = "list methods, rectifiers, recipes, studies, splits, templates, metrics and attacks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=list(_SECTIONS), help="by default everything")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    found = {name: section() for name, section in _SECTIONS.items() if args.what in {None, name}}
    print(json.dumps(found, indent=2) if args.json else "\n\n".join(_text(name, rows) for name, rows in found.items()))
    return 0


def _methods() -> list[dict[str, Any]]:
    from gru_fast.unlearn import methods

    found = []
    for name in methods.names():
        method = methods.get(name)
        needs = {
            "reference log-probabilities": bool(method.reference_log_probs),
            "a reference model": method.reference_model,
            "retain rows": "retain" in method.parts,
            "idk answers": "idk" in method.parts,
        }
        options = [
            {"name": field.name, "default": field.default, "help": field.metadata["help"]}
            for field in dataclasses.fields(method)
        ]
        needed = [need for need, needed in needs.items() if needed]
        found.append({"name": name, "title": method.title, "needs": needed, "options": options})
    return found


def _rectifiers() -> list[dict[str, Any]]:
    from gru_fast.core.rules import RULES

    found = []
    for name, rule in RULES.items():
        options = [
            {"name": field.name, "default": field.default, "help": _help_of(field.metadata)}
            for field in dataclasses.fields(rule)
        ]
        said = (rule.__doc__ or "").splitlines()[0].rstrip(".:")
        found.append({"name": name, "help": said, "against": rule.against, "options": options})
    return found


def _help_of(metadata: Mapping[str, Any]) -> str:
    choices = f" ({', '.join(metadata['choices'])})" if metadata["choices"] else ""
    return f"{metadata['help']}{choices}"


def _recipes() -> list[dict[str, Any]]:
    from gru_fast.options.flags import recipes
    from gru_fast.study.load import title

    return [{"name": path.stem, "help": title(path), "path": str(path)} for path in recipes()]


def _studies() -> list[dict[str, Any]]:
    from gru_fast.study import load

    files = [load.find(name) for name in load.names()]
    return [{"name": path.stem, "help": load.title(path), "path": str(path)} for path in files]


def _splits() -> list[dict[str, Any]]:
    from gru_fast import benchmarks

    found = []
    for name in benchmarks.names():
        of = benchmarks.get(name)
        found += [{"name": split, "benchmark": name, "retain": of.retain_of(split)} for split in of.SPLITS]
    return found


def _templates() -> list[dict[str, Any]]:
    from gru_fast.data.templates import TEMPLATES

    return [
        {
            "name": name,
            "prompt": None if t.chat else f"{t.question_start}...{t.question_end}",
            "answer_tag": t.answer_tag,
        }
        for name, t in TEMPLATES.items()
    ]


def _metrics() -> list[dict[str, Any]]:
    from gru_fast.metrics import aggregate, scores

    found = [{"name": name, "help": scores.get(name).help} for name in scores.names()]
    return found + [{"name": name, "help": f"TOFU alone: {text}"} for name, text in aggregate.HELP.items()]


def _attacks() -> list[dict[str, Any]]:
    from gru_fast import attacks

    return [{"name": name, "help": attacks.get(name).HELP} for name in attacks.names()]


_SECTIONS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "methods": _methods,
    "rectifiers": _rectifiers,
    "recipes": _recipes,
    "studies": _studies,
    "splits": _splits,
    "templates": _templates,
    "metrics": _metrics,
    "attacks": _attacks,
}


def _text(name: str, rows: list[dict[str, Any]]) -> str:
    width = max(len(row["name"]) for row in rows)
    lines = [_HEADINGS[name]]
    for row in rows:
        lines.append(f"  {row['name']:<{width}}  {_said(name, row)}".rstrip())
        lines += [f"  {'':<{width}}    {o['name']}={o['default']}  {o['help']}" for o in row.get("options", [])]
    return "\n".join(lines)


_HEADINGS = {
    "methods": "methods: --method NAME --method-options OPTION=VALUE ...; any of them with --rectify",
    "rectifiers": "rectifiers: --rectify --rectifier NAME --rectifier-options OPTION=VALUE ...",
    "recipes": "recipes: gru-fast unlearn, finetune, tru or eval --config NAME",
    "studies": "studies: gru-fast study NAME",
    "splits": "splits: --benchmark BENCHMARK --split NAME forgets it and keeps",
    "templates": "templates: --template NAME",
    "metrics": "optional metrics: gru-fast eval BENCHMARK --metrics NAME ...",
    "attacks": "attacks: gru-fast attack RUN --attacks NAME ...",
}


def _said(name: str, row: dict[str, Any]) -> str:
    if name == "methods":
        return row["title"] + (f" (needs {', '.join(row['needs'])})" if row["needs"] else "")
    if name == "templates":
        prompt = row["prompt"]
        tag = f", answer after {row['answer_tag']!r}" if row["answer_tag"] else ""
        return "the tokenizer's chat template" if prompt is None else f"{prompt!r}{tag}"
    if name == "splits":
        return f"{row['retain']} of {row['benchmark']}"
    return str(row["help"])
