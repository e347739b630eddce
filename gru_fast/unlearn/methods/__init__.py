"""Unlearning objectives: ``get("npo")``, ``make("npo", {"beta": 0.1})``, ``names()``. One file each in this folder."""

from gru_fast.unlearn.methods.base import Method, get, hyper, make, names, register

__all__ = ["Method", "get", "hyper", "make", "names", "register"]
