"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(
    total: int, what: str, *, unit: str = "row", initial: int = 0, shown: bool = True
) -> Iterator[Callable[[int], Any]]:
    """A bar of ``total`` units; gives the function that moves it on."""
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=initial, desc=what, unit=unit, disable=not shown) as bar:
        yield bar.update
