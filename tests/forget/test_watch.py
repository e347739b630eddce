"""When a training ends, on looks that are given: no model is run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import llama

from gru_fast.forget import watch
from gru_fast.forget.exam import Look, Standard, Texts
from gru_fast.forget.level import Level
from gru_fast.forget.measures import Known
from gru_fast.forget.watch import KEEP, REMOVED, STEPS, Watch

LEVEL = Level.of("holdout", [Known(str(i), 9, 0.01 * (i + 1), 0.1 * (i + 1), 0.0) for i in range(3)])
LOST, GONE = Known("a", 9, 0.9, 0.95, 0.5), Known("a", 9, 0.01, 0.1, 0.0)


def watched(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    looks: list[tuple[Known, float]],
    *,
    patience: int = 2,
    steps: int = 20,
    begin_at: int = 0,
    save_at: int | None = None,
) -> tuple[Watch, int]:
    """A training of at most ``steps`` steps, looked at every second; each look: the document, and the perplexity of
    what is kept (10 before). A checkpoint is written at ``save_at``. Returns the callback, and the step it ended at."""
    left = list(looks)

    def look(scorer: Any, texts: Texts) -> Look:
        known, perplexity = left.pop(0)
        return Look([known], {"neutral": perplexity})

    monkeypatch.setattr(watch, "look", look)
    texts = Texts([object()], {}, [], "holdout")  # type: ignore[list-item]
    found = Watch(
        SimpleNamespace(model=llama()),  # type: ignore[arg-type]
        texts,
        texts,
        Standard(LEVEL, {"neutral": 10.0}),
        keep=0.9,
        patience=patience,
        eval_steps=2,
        folder=folder,
    )
    state, control = SimpleNamespace(global_step=begin_at, max_steps=steps), SimpleNamespace(should_training_stop=False)
    found.on_train_begin(None, state, control)
    while not control.should_training_stop and state.global_step < steps:
        state.global_step += 1
        found.on_step_end(None, state, control)
        if state.global_step == save_at:
            found.on_save(None, state, control)
    return found, state.global_step


def test_it_ends_when_the_documents_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, step = watched(tmp_path, monkeypatch, [(LOST, 10.0), (LOST, 10.5), (GONE, 11.0)])
    assert (step, found.reason) == (6, REMOVED)
    assert [point.kept for point in found.points] == pytest.approx([1.0, 10 / 10.5, 10 / 11])
    assert [point.known for point in found.points] == [1, 1, 0]
    assert found.best == found.points[-1]


def test_removed_at_too_high_a_price_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, step = watched(tmp_path, monkeypatch, [(GONE, 12.0), (GONE, 10.1)])
    assert (step, found.reason) == (4, REMOVED)


def test_it_ends_when_too_little_was_kept_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [(LOST, 12.0), (LOST, 10.0), (LOST, 12.0), (LOST, 13.0)]  # once, then it came back
    found, step = watched(tmp_path, monkeypatch, looks)
    assert (step, found.reason) == (8, KEEP)
    assert found.best is not None
    assert found.best.step == 4
    for name, value in llama().named_parameters():
        assert torch.equal(found.best_weights[name], value)


def test_it_ends_with_the_steps_whatever_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, step = watched(tmp_path, monkeypatch, [(LOST, 10.0)] * 3, steps=5)
    assert (step, found.reason) == (5, STEPS)
    assert [point.step for point in found.points] == [2, 4, 5]


def test_of_two_that_keep_enough_the_stronger_removal_is_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaker = Known("a", 9, 0.5, 0.6, 0.0)
    found, _ = watched(tmp_path, monkeypatch, [(weaker, 10.0), (LOST, 10.0)], steps=4)
    assert found.best == found.points[0]


def test_after_a_stop_looks_beyond_the_checkpoint_are_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = watched(tmp_path, monkeypatch, [(LOST, 10.0)] * 3, steps=6)
    state = SimpleNamespace(global_step=4)
    found.on_train_begin(None, state, None)
    assert [point.step for point in found.points] == [2, 4]
    assert [json.loads(line)["step"] for line in (tmp_path / watch.PROGRESS).read_text().splitlines()] == [2, 4]


def test_after_a_stop_the_best_model_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weaker = Known("a", 9, 0.5, 0.6, 0.0)
    found, _ = watched(tmp_path, monkeypatch, [(weaker, 10.0)], steps=2, save_at=2)
    best = found.best
    assert best is not None
    again, _ = watched(tmp_path, monkeypatch, [(LOST, 10.0)], steps=4, begin_at=2)
    assert again.best == best  # the later look is at a weaker removal
    for name, value in llama().named_parameters():
        assert torch.equal(again.best_weights[name], value)


def test_after_a_stop_what_is_trained_again_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched(tmp_path, monkeypatch, [(LOST, 10.0)] * 2, steps=4, save_at=4)
    again, _ = watched(tmp_path, monkeypatch, [], steps=2, begin_at=2)  # the checkpoint of step 4 was not to be read
    assert again.best is None
    assert not (tmp_path / watch.BEST).exists()


def test_weights_are_put_back() -> None:
    model, other = llama(seed=1), llama(seed=2)
    watch.put_weights(model, watch.weights_of(other))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
