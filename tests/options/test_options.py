"""Flags, config files and help out of dataclasses: what is read, what wins, what is refused and in which words."""

from __future__ import annotations

import argparse
import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from gru_fast.options import flags as options
from gru_fast.options.coerce import coerce, read_yaml


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class PaintOptions:
    """What to paint."""

    wall: str = field(metadata={"help": "which wall, in 100% of cases"})
    coats: int = 2
    thickness: float | None = None
    dry: bool = False
    color: Color | str = field(default="red", metadata={"help": "the color"})
    method: str = "npo"
    method_options: dict[str, Any] | None = None
    rooms: list[str] | None = None
    sheen: Literal["matt", "gloss"] = "matt"

    def __post_init__(self) -> None:
        if self.coats > 5:
            raise ValueError(f"coats: expected at most 5, got {self.coats}")


@dataclass
class OtherConfig:
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise ValueError(f"speed: expected a number above 0, got {self.speed}")


CLASSES = (PaintOptions, OtherConfig)


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="paint", allow_abbrev=False)
    options.add(parser, *CLASSES)
    return parser.parse_args([str(text) for text in argv])


def resolve(*argv: str) -> Any:
    return options.resolve(parse(*argv), *CLASSES)


def config(folder: Path, text: str) -> str:
    (folder / "house.yaml").write_text(text)
    return str(folder / "house.yaml")


# ---- one value -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("5", int, 5),
        ("1e3", int, 1000),
        (5.0, int, 5),
        ("123456789012345678901", int, 123456789012345678901),
        ("1e-5", float, 1e-5),
        (1, float, 1.0),
        ("inf", float, float("inf")),
        ("none", float | None, None),
        ("null", str | None, None),
        ("none", str | None, "none"),
        (None, int | None, None),
        ("yes", bool, True),
        ("False", bool, False),
        ("off", bool | None, False),
        (True, bool, True),
        ("a=1", dict[str, Any] | None, {"a": 1}),
        (["a=1e-5", "b=x=y"], dict[str, Any], {"a": 1e-5, "b": "x=y"}),
        ('{"a": {"b": [1]}}', dict | str | None, {"a": {"b": [1]}}),
        ("file.json", dict | str | None, "file.json"),
        ({"a": 1}, dict | str | None, {"a": 1}),
        ("q_proj,v_proj", list[str] | None, ["q_proj", "v_proj"]),
        (["q_proj"], list[str], ["q_proj"]),
        ("[a, b]", list[str], ["a", "b"]),
        ("wandb", str | list[str] | None, "wandb"),
        (["wandb", "comet"], str | list[str] | None, ["wandb", "comet"]),
        ("blue", Color, "blue"),
        (Color.BLUE, Color | str, "blue"),
        ("gloss", Literal["matt", "gloss"], "gloss"),
        ("false", str | Literal[False] | None, False),
    ],
)  # fmt: skip
def test_coerce(value: Any, hint: Any, expected: Any) -> None:
    found = coerce(value, hint, {})
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("5.5", int, "expected a whole number, got '5.5'"),
        (True, int, "expected a whole number, got True"),
        (True, float, "expected a number, got True"),
        ("fast", float | None, "expected a number or null, got 'fast'"),
        ("inf", int, "expected a whole number, got 'inf'"),
        ("maybe", bool, "expected true or false, got 'maybe'"),
        (1, bool, "expected true or false, got 1"),
        (5, str, "expected a text, got 5"),
        (None, int, "expected a whole number, got None"),
        ("a", dict[str, Any] | None, "expected key=value or JSON or null, got 'a'"),
        ("{a", dict[str, Any], "expected a JSON object, got '{a'"),
        ("bleu", Color | str, "expected one of red, blue, got 'bleu'; did you mean \"blue\"?"),
        ("x", Literal["matt", "gloss"], "expected one of matt, gloss, got 'x'"),
    ],
)
def test_coerce_refuses(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        coerce(value, hint, {})
    assert str(error.value).startswith(message)


def test_choices_in_metadata_may_hold_none() -> None:
    metadata = {"choices": (None, "float32")}
    assert coerce("none", str | None, metadata) is None
    with pytest.raises(ValueError, match="expected one of none, float32, got 'float64'; did you mean \"float32\""):
        coerce("float64", str | None, metadata)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1e-5", 1e-5), ("1e3", 1000.0), ("5", 5), ("no", "no"), ("on", "on"), ("true", True),
     ("2024-01-01", "2024-01-01"), ("~", None), ("-.5", -0.5), (".inf", float("inf")), ("", None)],
)  # fmt: skip
def test_yaml_is_read_as_1_2(text: str, expected: Any) -> None:
    assert read_yaml(text) == expected
    assert type(read_yaml(text)) is type(expected)


def test_yaml_key_twice_is_refused() -> None:
    with pytest.raises(ValueError, match='line 2: "a" is there twice'):
        read_yaml("a: 1\na: 2")


# ---- layers ----------------------------------------------------------------------------------------------------------


def test_defaults_and_flags() -> None:
    paint, other = resolve("--wall", "north", "--coats", "3", "--dry", "--rooms", "a", "b", "--speed=2")
    assert paint == PaintOptions("north", coats=3, dry=True, rooms=["a", "b"])
    assert other == OtherConfig(2.0)


@pytest.mark.parametrize(
    ("argv", "expected"), [(["--dry"], True), (["--dry", "false"], False), (["--no-dry"], False), ([], False)]
)
def test_bool_flags(argv: list[str], expected: bool) -> None:
    assert resolve("--wall", "north", *argv)[0].dry is expected


def test_flag_beats_method_section_beats_file_beats_default(tmp_path: Path) -> None:
    file = config(
        tmp_path,
        "wall: north\nmethod: ga\ncoats: 3\nthickness: 1e-3\nspeed: 4\n"
        "methods:\n  ga: {coats: 4, speed: 5}\n  npo: {coats: 1}\n",
    )
    paint, other = resolve("--config", file, "--speed", "6")
    assert (paint.coats, paint.thickness, other.speed) == (4, 1e-3, 6.0)
    assert resolve("--config", file, "--method", "npo")[0].coats == 1  # the flag chooses the section
    assert resolve("--config", file, "--method", "gd")[0].coats == 3


def test_null_in_a_section_takes_a_value_back(tmp_path: Path) -> None:
    file = config(tmp_path, "wall: north\nthickness: 2\nmethods: {npo: {thickness: null}}")
    assert resolve("--config", file)[0].thickness is None


def test_mappings_are_joined(tmp_path: Path) -> None:
    file = config(tmp_path, "wall: n\nmethod_options: {a: 1, b: 2}\nmethods: {npo: {method_options: {b: 3}}}")
    assert resolve("--config", file, "--method-options", "c=4")[0].method_options == {"a": 1, "b": 3, "c": 4}


def test_file_keys_may_have_dashes(tmp_path: Path) -> None:
    assert resolve("--config", config(tmp_path, "wall: n\nmethod-options: {a: 1}"))[0].method_options == {"a": 1}


def test_fill_is_weaker_than_everything_but_defaults(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def fill(values: dict[str, Any]) -> dict[str, Any]:
        seen.update(values)
        return {"coats": 5, "speed": 9.0}

    args = parse("--wall", "north", "--coats", "1")
    paint, other = options.resolve(args, *CLASSES, fill=fill)
    assert (paint.coats, other.speed) == (1, 9.0)
    assert (seen["wall"], seen["coats"], seen["speed"], seen["sheen"]) == ("north", 1, 1.0, "matt")


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_all_errors_at_once(tmp_path: Path) -> None:
    file = config(tmp_path, "coats: many\nspede: 3\nspeed: -1\nmethods: {gaa: {coats: 1}, ga: {sheen: shiny}}")
    with pytest.raises(ValueError, match="7 errors") as error:
        resolve("--config", file, "--thickness", "thin")
    text = str(error.value)
    for expected in (
        "coats: expected a whole number, got 'many'",
        'spede: no such option; did you mean "speed"?',
        'methods: no method "gaa"; did you mean "ga"?',
        "methods: ga: sheen: expected one of matt, gloss, got 'shiny'",  # of a method that is not in use
        "--thickness: expected a number or null, got 'thin'",
        "wall: no value; give --wall",
        "speed: expected a number above 0, got -1.0",  # the other class is tried all the same
    ):
        assert expected in text


def test_one_error_stands_alone() -> None:
    with pytest.raises(ValueError, match=r"^coats: expected at most 5, got 6$"):
        resolve("--wall", "n", "--coats", "6")


def test_a_failed_value_is_not_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^.*wall: expected a text, got 5$"):
        resolve("--config", config(tmp_path, "wall: 5"))


def test_a_flag_mends_what_the_file_has_wrong_in_value_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"house\.yaml: coats: expected a whole number"):
        resolve("--wall", "n", "--config", config(tmp_path, "coats: x"), "--coats", "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "expected `option: value` lines, got list"),
        ("a: [", "house.yaml: while parsing"),
        ("wall: n\nmethods: 3", "expected METHOD: {option: value}, got 3"),
        ("wall: n\nmethods: {ga: 3}", "expected METHOD: {option: value}, got 'ga'"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"house\.yaml") as error:
        resolve("--config", config(tmp_path, text))
    assert message in str(error.value)


def test_no_such_config_lists_recipes() -> None:
    with pytest.raises(FileNotFoundError, match='no file and no recipe "tofu-fi-forget05"; did you mean "tofu-phi-f'):
        resolve("--wall", "n", "--config", "tofu-fi-forget05")


def test_sections_need_a_method(tmp_path: Path) -> None:
    file = config(tmp_path, "speed: 2\nmethods: {ga: {speed: 3}}")
    args = argparse.Namespace(config=file)
    with pytest.raises(ValueError, match="this command has no --method"):
        options.resolve(args, OtherConfig)


# ---- out again -------------------------------------------------------------------------------------------------------


def test_config_text_comes_back_the_same(tmp_path: Path) -> None:
    args = parse(
        "--wall", "no", "--thickness", "1e-5", "--method-options", "a=1", "b=[2, x]", "--rooms", "1", "x: y #z"
    )
    first = options.resolve(args, *CLASSES)
    text = options.config_text(first, args)
    assert "thickness: 1.0e-05  # flag" in text
    assert "coats: 2\n" in text
    again = resolve("--config", config(tmp_path, text))
    assert again == first
    assert yaml.safe_load(text)["rooms"] == ["1", "x: y #z"]  # any YAML reader will do


def test_config_text_names_sources(tmp_path: Path) -> None:
    args = parse("--config", config(tmp_path, "wall: n\ncoats: 1\nmethods: {npo: {coats: 3}}"), "--speed", "2")
    lines = options.config_text(options.resolve(args, *CLASSES), args).splitlines()
    assert "wall: n  # house.yaml" in lines
    assert "coats: 3  # house.yaml, methods: npo" in lines
    assert "speed: 2.0  # flag" in lines
    assert lines[0] == "# paint options"


def test_help_is_made_of_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "paint options", "which wall, in 100% of cases", "--coats N", "(default: 2)", "--dry [true|false]",
        "--method-options KEY=VALUE", "--color {red,blue} the color (default: red)", "--sheen {matt,gloss}",
    ):  # fmt: skip
        assert expected in text
    assert "--no-dry" not in text
