"""What errors say: the known name that was meant, and what another's error says in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], before: str = ", ") -> str:
    """`, did you mean "x"?`, or nothing where no known name is near."""
    near = get_close_matches(name, list(known), n=1)
    return f'{before}did you mean "{near[0]}"?' if near else ""


def as_identifier(name: str) -> str:
    """A name as ours are written, to look for the nearest: "NPO+KL" is near npo_kl."""
    return name.lower().replace("-", "_").replace("+", "_")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop; its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def in_short(error: BaseException) -> str:
    """All that an error says, on one line of 200 letters at most."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
