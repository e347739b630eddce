"""What README.md, docs/ and their kin say: commands parse, links lead somewhere, code imports what exists."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from gru_fast.cli import parse

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md", "bench/NOTES.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SHELL = {"", "sh", "bash", "shell", "console"}
# Words that stand for what a reader puts there.
STANDS_FOR = {"BENCHMARK": "tofu", "METHOD": "ga", "NAME": "tofu", "COMMAND": "info", "RECIPE": "tofu-tiny"}
LAUNCHED = "-m gru_fast.cli "  # torchrun, accelerate launch, python

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def shell_lines(page: Path) -> list[str]:
    """The lines of fenced and of indented blocks that may be commands; a line that ends with a backslash goes on."""
    text = page.read_text(encoding="utf-8")
    lines = [body for language, body in blocks(page) if language in SHELL]
    # A list item goes on indented too: only what follows a blank line and is deep enough is a block.
    rest, previous, inside = BLOCK.sub("", text).splitlines(), "", False
    indented = []
    for line in rest:
        inside = line.startswith("    ") and (inside or not previous.strip())
        if inside:
            indented.append(line[4:])
        previous = line
    return "\n".join([*lines, *indented]).replace("\\\n", " ").splitlines()


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `gru-fast` command of a page, in blocks and in running text."""
    inline = INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
    for line in [*shell_lines(page), *inline]:
        for part in re.split(r"&&|\|\||[|;&]", line):
            text = part.strip()
            if text.startswith("gru-fast "):
                text = text.removeprefix("gru-fast ")
            elif LAUNCHED in text:
                text = text.partition(LAUNCHED)[2]
            else:
                continue
            words = shlex.split(text, comments=True)
            yield [STANDS_FOR.get(word, word) for word in words if word != "..."]


def only_named(argv: list[str]) -> bool:
    """Whether a command is spoken of, not shown: its name alone, which may want more to run."""
    return len(argv) == 1


@each_page
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gru_fast.cli import commands as package
    from gru_fast.options import flags

    known = {path.stem.replace("_", "-") for path in Path(package.__path__[0]).glob("[a-z]*.py")}
    for argv in commands(page):
        if only_named(argv):
            assert argv[0] in known or argv[0] == "--help", argv
            continue
        try:
            args = parse(argv)
        except SystemExit as stop:
            if stop.code == 0:  # --help, --version
                continue
            pytest.fail(f"gru-fast {shlex.join(argv)}: {capsys.readouterr().err}")
        config = getattr(args, "config", None)
        if config and "/" not in config:
            flags.read_config(config)


def anchors(page: Path) -> set[str]:
    """The names that a link to a heading of a page may have, and those of an API page's objects."""
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    slugs = {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = INLINE.sub("`code`", BLOCK.sub("", page.read_text(encoding="utf-8")))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_file(), f"{name_of(page)}: {target}"
        assert not anchor or anchor in anchors(found), f"{name_of(page)}: {target}"


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    first, *parts = dotted.split(".")
    found, so_far = import_module(first), first
    for part in parts:
        so_far += f".{part}"
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = import_module(so_far)
        except ModuleNotFoundError:
            return False
    return True


def names_of_ours(tree: ast.AST) -> Iterator[str]:
    """What a program takes from gru_fast, as dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gru_fast":
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] == "gru_fast")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gru_fast":
            yield f"gru_fast.{node.attr}"


@each_page
def test_python_compiles_and_imports_what_exists(page: Path) -> None:
    for language, body in blocks(page):
        if language == "python":
            for name in names_of_ours(ast.parse(body, name_of(page))):
                assert exists(name), f"{name_of(page)}: there is no {name}"


@each_page
def test_yaml_reads(page: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="needs the extra [unlearn]")
    for language, body in blocks(page):
        if language == "yaml":
            assert isinstance(yaml.safe_load(body), dict)


@each_page
def test_scripts_and_files_named_exist(page: Path) -> None:
    """`bench/...`, `.ci/...` and the like: what is given as a path of this repository is one."""
    text = page.read_text(encoding="utf-8")
    folders = "bench|csrc|docs|examples|gru_fast|tests|\\.ci"
    for path in re.findall(rf"(?<![\w/.\"*-])((?:{folders})/[\w./-]*\w)(?![\w/*]|\.\w)", text):
        there = [base / path for base in (ROOT, page.parent)]
        assert any(found.exists() for found in there), f"{name_of(page)}: {path}"


@each_page
def test_extras_exist(page: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = {*re.findall(r"^(\w+) = ", section, re.MULTILINE), "EXTRA"}
    found = re.findall(r"pip install [\"']?\.\[([\w,]+)\]", page.read_text(encoding="utf-8"))
    assert {name for names in found for name in names.split(",")} <= extras


def test_tables_are_whole() -> None:
    """Every command is in the README's table, every method in that of its page."""
    from gru_fast import rules
    from gru_fast.cli import commands as package
    from gru_fast.unlearn import methods

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    known = {path.stem.replace("_", "-") for path in Path(package.__path__[0]).glob("[a-z]*.py")}
    assert {row.split()[0] for row in re.findall(r"^\| `gru-fast ([^`]+)`", readme, re.MULTILINE)} == known
    assert len(readme.splitlines()) < 200

    page = (ROOT / "docs" / "rectifiers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == set(rules.RULES)
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| `") and "--method" not in row]
    assert {name for row in rows for name in INLINE.findall(row.split("|")[1])} == set(methods.names())


def test_changelog_knows_all_modules_that_have_moved() -> None:
    from gru_fast.moved import MOVED

    rows = re.findall(
        r"^\| `(gru_fast\.[\w.]+)` \| (.+) \|$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {old: tuple(INLINE.findall(new)) for old, new in rows} == MOVED


def test_every_page_is_in_the_sites_list() -> None:
    yaml = pytest.importorskip("yaml", reason="needs the extra [unlearn]")
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", str(nav)))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed == pages | {"index.md"}


# ---- that these tests can fail ---------------------------------------------------------------------------------------


def test_a_command_is_found_wherever_it_stands(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text `gru-fast ls methods`\n\n    A=1 # no\n    gru-fast info --json  # why\n\n"
        "```sh\ntorchrun --nproc-per-node 8 -m gru_fast.cli eval tofu \\\n    --model RUN\n```\n"
        "- item\n  `gru-fast eval BENCHMARK --no-such`\n"
    )
    assert sorted(commands(page)) == [
        ["eval", "tofu", "--model", "RUN"],
        ["eval", "tofu", "--no-such"],
        ["info", "--json"],
        ["ls", "methods"],
    ]


def test_a_name_that_does_not_exist_is_seen() -> None:
    code = "import gru_fast\nfrom gru_fast.unlearn import Nothing\ngru_fast.rectify_(x)"
    names = list(names_of_ours(ast.parse(code)))
    assert names == ["gru_fast", "gru_fast.unlearn.Nothing", "gru_fast.rectify_"]
    assert [exists(name) for name in names] == [True, False, True]
