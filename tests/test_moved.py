"""Modules that have moved can be imported under their old names for one version, with a word on where they are."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

import gru_fast
from gru_fast.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_what_is_at_the_new_place(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"^{old}: import from {MOVED[old][0]}"):
        found = import_module(old)
    for place in MOVED[old]:
        module = import_module(place)
        public = [name for name in vars(module) if not name.startswith("_")]
        assert public
        assert all(getattr(found, name) is getattr(module, name) for name in public)


def test_a_name_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("gru_fast.nothing")


def test_names_that_people_use_stay() -> None:
    from gru_fast.benchmarks import tofu
    from gru_fast.unlearn import GRUMixin, UnlearnConfig, UnlearnDataset, UnlearnTrainer
    from gru_fast.vectors import accumulate_task_vector_

    assert gru_fast.vectors.accumulate_task_vector_ is accumulate_task_vector_
    assert gru_fast.ops.backend_name  # type: ignore[truthy-function]
    assert all(map(callable, (tofu.unlearning_data, GRUMixin, UnlearnConfig, UnlearnDataset, UnlearnTrainer)))
