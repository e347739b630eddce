"""TOFU models for attacks: one that knows, one that never knew, and one that only hides what it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tofu_folders
import torch
import yaml

from gru_fast import benchmarks
from gru_fast.attacks.parts import formats, weights
from gru_fast.attacks.parts.target import Target
from gru_fast.cli import evaluating
from gru_fast.data.sequences import SequenceCollator
from gru_fast.evaluation.subject import Subject
from gru_fast.models.load import ModelOptions, load_model, load_template, load_tokenizer

HIDING_IN = "int4-g64"  # the format whose bins the hiding steps stay within
LENGTH = 40  # tokens of question and answer


@dataclass(frozen=True)
class Models:
    """Folders: the data, a model that was taught all of it, one that was not taught the forget set, one that hides."""

    data: Path
    original: Path
    retrained: Path
    hiding: Path


def make(folder: Path) -> Models:
    """The models; a second or two."""
    found = Models(*(folder / name for name in ("data", "original", "retrained", "hiding")))
    tofu_folders.save_data(found.data)
    for path, subset in ((found.original, "full"), (found.retrained, "retain95")):
        tofu_folders.save_model(path, hidden_size=64, intermediate_size=64)
        teach(path, found.data, subset)
    tofu_folders.save_model(found.hiding, hidden_size=64, intermediate_size=64)
    model, room = _on_the_levels(found.original)
    # Rounding has cost it something; the tables, which stay in full, make up for it.
    _train(model, [param for name, param in model.named_parameters() if name not in room], rows_of(found.data, "full"))
    model.save_pretrained(found.original)
    _hide(model, room, rows_of(found.data, "forget05"), rows_of(found.data, "retain95"))
    model.save_pretrained(found.hiding)
    as_run(found.hiding, {"method": "ga", "model": str(found.original), "data": str(found.data)})
    return found


def as_run(folder: Path, config: dict[str, Any]) -> None:
    """Makes a folder with a model that of a run."""
    own = {"benchmark": "tofu", "split": "forget05", "template": "phi", "max_length": LENGTH}
    (folder / "config.yaml").write_text(yaml.safe_dump({**own, **config}))
    (folder / "environment.json").write_text("{}")


def rows_of(data: Path, subset: str) -> list[dict[str, Any]]:
    from gru_fast.benchmarks.tofu.rows import load
    from gru_fast.data.templates import TEMPLATES, encode_rows

    pairs = [(row["question"], row["answer"]) for row in load(subset, data)]
    return list(encode_rows(tofu_folders.tokenizer(), TEMPLATES["phi"], pairs, LENGTH))


def loss_of(model: Any, rows: list[dict[str, Any]]) -> Any:
    """Mean loss per label token."""
    return model(**SequenceCollator(0)(rows)).loss


def teach(folder: Path, data: Path, subset: str) -> None:
    model = load_model(ModelOptions(model=str(folder)))
    _train(model, list(model.parameters()), rows_of(data, subset))
    model.save_pretrained(folder)


def _train(model: Any, params: list[Any], rows: list[dict[str, Any]], steps: int = 80) -> None:
    optimizer = torch.optim.Adam(params, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        optimizer.step()


def _on_the_levels(folder: Path) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """The model with its matrices on the levels of the format, and how far each element may go and stay on its level.

    The least and the greatest of a group may not: they are what the levels are laid between.
    """
    model, form = load_model(ModelOptions(model=str(folder))), formats.get(HIDING_IN)
    room = {}
    with torch.no_grad():
        for name, param in weights.to_round(model).items():
            param.copy_(form.rounded(param).values)
            groups = param.reshape(-1, 64)
            least, greatest = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
            scale = (greatest.clamp(min=0) - least.clamp(max=0)) / 15
            inner = (groups != least) & (groups != greatest)
            room[name] = param.clone(), (0.45 * scale * inner).reshape(param.shape)
    return model, room


def _hide(model: Any, room: dict[str, tuple[Any, Any]], forget: list[Any], retain: list[Any], steps: int = 40) -> None:
    """Gradient ascent on the forget rows, each weight held within its bin."""
    params = dict(model.named_parameters())
    for name, param in params.items():
        param.requires_grad_(name in room)
    for _ in range(steps):
        loss = loss_of(model, retain) - loss_of(model, forget).clamp(max=6)
        found = torch.autograd.grad(loss, [params[name] for name in room])
        with torch.no_grad():
            for (name, (middle, most)), grad in zip(room.items(), found, strict=True):
                moved = params[name] - 0.2 * most * grad.sign()
                params[name].copy_(torch.maximum(torch.minimum(moved, middle + most), middle - most))


def target(models: Models, folder: Path, unlearned: Path | None = None, **changes: Any) -> Target:
    """Attacks on the hiding model, or on ``unlearned``."""
    names = {"unlearned": unlearned or models.hiding, "original": models.original, "retrained": models.retrained}
    asked = {role: ModelOptions(model=str(name), template="phi") for role, name in names.items()}

    def subject(options: ModelOptions) -> Subject:
        return Subject(
            evaluating.asked_for(options), Path(), lambda: evaluating.load(options, "cpu"),
            lambda file: evaluating.newest(options.model) < file.stat().st_mtime, progress=False,
        )  # fmt: skip

    def words() -> tuple[Any, Any]:
        tokenizer = load_tokenizer(asked["unlearned"])
        return tokenizer, load_template(asked["unlearned"], tokenizer)

    def train(role: str) -> tuple[Any, Any, Any]:
        options = asked[role]
        tokenizer = load_tokenizer(options)
        return load_model(options, train=True), tokenizer, load_template(options, tokenizer)

    benchmark, evaluation = benchmarks.get("tofu"), benchmarks.evaluation("tofu")
    given = {
        "subjects": {role: subject(options) for role, options in asked.items()},
        "folder": folder,
        "benchmark": benchmark,
        "data": benchmark.Options(data=str(models.data), split="forget05", max_length=LENGTH),
        "evaluation": evaluation,
        "options": evaluation.Options(split="forget05", data=str(models.data), max_length=LENGTH),
        "words": words,
        "train": train,
        "device": "cpu",
    }
    return Target(**{**given, **changes})
