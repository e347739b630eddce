"""The models that attacks are tried on, made once."""

from __future__ import annotations

import planted
import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> planted.Models:
    """One that knows, one that never knew, one that hides."""
    return planted.make(tmp_path_factory.mktemp("planted"))
