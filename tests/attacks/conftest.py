"""The models that attacks are tried on, made once."""

from __future__ import annotations

import gc

import planted
import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> planted.Models:
    """One that knows, one that never knew, one that hides."""
    found = planted.make(tmp_path_factory.mktemp("planted"))
    # Every train() calls gc.collect(), which over all that was imported takes longer than to train these.
    gc.collect()
    gc.freeze()
    return found
