"""Stages of a request, one at a time, on a tiny model whose looks are given."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import llama, rows

from gru_fast.data.own import Piece
from gru_fast.forget import run
from gru_fast.forget.exam import Texts
from gru_fast.forget.request import Documents, Request
from gru_fast.forget.watch import KEEP, Point, weights_of
from gru_fast.unlearn.task_vector import save_tensors


def point(step: int, exact: float, kept: float, alpha: float = 1.0) -> Point:
    return Point(step, {"exact_memorization": exact, "probability": exact / 2}, 1, False, kept, {}, alpha)


@pytest.mark.parametrize(
    ("exact_of_best", "said"),
    [(0.2, "taken: step 4: "), (0.8, "mixed with the original to the edge: 50.0% of the change: ")],
)
def test_what_is_taken_is_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_of_best: float, said: str
) -> None:
    work, mixture, best = run.Run.__new__(run.Run), point(8, 0.5, 0.91, 0.5), point(4, exact_of_best, 0.95)
    looks, spoken = [point(8, 0.1, 0.5), best], []  # the last model keeps too little
    work.folder, work.model, work.options = tmp_path, llama(seed=1), SimpleNamespace(keep=0.9, resolution=0.02)
    work.say = spoken.append  # type: ignore[method-assign, assignment]
    work._look = lambda step, alpha: looks.pop(0)  # type: ignore[method-assign]
    monkeypatch.setattr(run, "mixed", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(run, "to_the_edge", lambda *_: (mixture, [point(8, 0.6, 0.99, 0.25), mixture]))
    save_tensors(tmp_path / run.WORK / "best.safetensors", weights_of(llama(seed=2)), best.to_json())
    edge, chosen = work._edge(KEEP)
    assert len(edge) == 2
    assert [text.startswith(said) for text in spoken] == [True]
    taken: Any = llama(seed=2 if chosen is best else 1)
    assert all(torch.equal(a, b) for a, b in zip(work.model.parameters(), taken.parameters(), strict=True))


# ---- going on --------------------------------------------------------------------------------------------------------


def request(**seeds: int) -> Request:
    """Sets of random rows, each by its seed."""
    made = {
        name: [Piece(str(i), 0, row, 0, len(row["input_ids"]), 0, 1) for i, row in enumerate(rows(3, seed))]
        for name, seed in {"forget": 1, "retain": 2, "held": 3, "unseen": 4, **seeds}.items()
    }
    texts = Texts(made["forget"], {"retain": made["held"]}, made["unseen"], "holdout")
    return Request(Documents([], [], [], []), made["forget"], made["retain"], texts)


@pytest.mark.parametrize(
    ("other", "named"),
    [("forget", "forget"), ("retain", "retain"), ("held", r"retain \(measured\)"), ("unseen", "holdout")],
)
def test_a_run_does_not_go_on_with_other_texts(tmp_path: Path, other: str, named: str) -> None:
    then = run.row_hashes(request(), "5a17")
    run.check_rows(request(), then, tmp_path)
    with pytest.raises(ValueError, match=rf"^{named}: the texts are others than when this run began .*--overwrite"):
        run.check_rows(request(**{other: 9}), then, tmp_path)
    assert run.row_hashes(request(), "0b")["forget"] != then["forget"]  # nobody can guess without the salt


def test_nothing_by_which_documents_could_be_guessed_is_left(tmp_path: Path) -> None:
    work = run.Run.__new__(run.Run)
    work.folder = tmp_path
    for name in ("reference_log_probs.json", "work/trained.json", "checkpoint-5/reference_log_probs.json", "run.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    work.finish()
    assert [file.name for file in tmp_path.rglob("*")] == ["run.json"]
