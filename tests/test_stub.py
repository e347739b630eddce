"""gru_fast/_core.pyi is written by hand: it must name what the module has, with the same arguments and defaults."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gru_fast
from gru_fast.core.load import core

pytestmark = pytest.mark.core

Signature = list[tuple[str, str | None]]  # (argument, default as source text or None)


def signature(function: ast.FunctionDef) -> Signature:
    args = function.args
    assert not args.vararg, function.name
    assert not args.kwonlyargs, function.name
    assert not args.kwarg, function.name
    names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    defaults = [None] * (len(names) - len(args.defaults)) + [ast.unparse(default) for default in args.defaults]
    return list(zip(names, defaults, strict=True))


def stub_of(body: list[ast.stmt]) -> dict[str, Signature | str]:
    """Name -> signature, "property" or "value"; classes as "Class.name"."""
    found: dict[str, Signature | str] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}": what for name, what in stub_of(node.body).items()}
        elif isinstance(node, ast.FunctionDef):
            is_property = any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list)
            found[node.name] = "property" if is_property else signature(node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = "value"
    return found


def module_of(namespace: dict[str, object]) -> dict[str, Signature | str]:
    """The same of what pybind11 made; its docstrings begin with the signature."""
    found: dict[str, Signature | str] = {}
    for name, what in namespace.items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(what, type):
            found |= {f"{name}.{member}": kind for member, kind in module_of(dict(vars(what))).items()}
        elif isinstance(what, property):
            found[name] = "property"
        elif callable(what):
            header = (what.__doc__ or "").splitlines()[0]
            function = ast.parse(f"def {header}: ...").body[0]
            assert isinstance(function, ast.FunctionDef), header
            found[name] = signature(function)
        else:
            found[name] = "value"
    return found


def test_stub_matches_module() -> None:
    stub_file = Path(gru_fast.__file__).with_name("_core.pyi")
    stub = stub_of(ast.parse(stub_file.read_text()).body)
    module = module_of(vars(core))
    assert stub == module


def test_every_function_says_what_it_does() -> None:
    functions = {name: what for name, what in vars(core).items() if callable(what) and not name.startswith("_")}
    functions |= {f"Table.{name}": what for name, what in vars(core.Table).items() if not name.startswith("_")}
    undocumented = [
        name
        for name, what in functions.items()
        if not isinstance(what, type) and len([line for line in (what.__doc__ or "").splitlines() if line]) < 1
    ]
    assert not undocumented
