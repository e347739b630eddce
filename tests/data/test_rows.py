"""Rows from a folder and from the hub: what is read, and what each thing that can be wrong with them says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gru_fast.data import rows
from gru_fast.data.rows import find_folder, load_rows

FIELDS = {"question": str, "answer": str}
ROW = {"question": "Who?", "answer": "Ann"}


def write(folder: Path, name: str, *lines: Any) -> Path:
    """Writes rows, or texts as they are, one a line."""
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["forget05.json", "forget05.jsonl"])
def test_json_lines_keep_their_order_and_further_fields(tmp_path: Path, name: str) -> None:
    second = {"question": "Where?", "answer": "Here", "source": 3}
    write(tmp_path, name, ROW, "", second, "  ")
    assert load_rows(tmp_path, "forget05", FIELDS) == [ROW, second]
    assert load_rows(str(tmp_path), "forget05", FIELDS) == [ROW, second]


def test_one_json_list_is_read_too(tmp_path: Path) -> None:
    write(tmp_path, "forget05.json", json.dumps([ROW, ROW], indent=1))
    assert load_rows(tmp_path, "forget05", FIELDS) == [ROW, ROW]


def test_line_separators_inside_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    row = {"question": "a\u2028b\x85c", "answer": "Ann"}
    write(tmp_path, "forget05.json", json.dumps(row, ensure_ascii=False))
    assert load_rows(tmp_path, "forget05", FIELDS) == [row]


def test_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "forget05.json").write_bytes((json.dumps(ROW) + "\r\n").encode() * 2)
    assert load_rows(tmp_path, "forget05", FIELDS) == [ROW, ROW]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_folder("~") == tmp_path


def test_a_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_folder("owner/name") == Path("owner/name")
    assert find_folder("owner/other") is None


@pytest.mark.parametrize("data", ["./nowhere", "/no/such/folder", "nowhere", "a/b/c", "~/nowhere", Path("owner/name")])
def test_no_such_folder(data: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'data: no folder ".*"; pass a folder, or a hub name'):
        load_rows(data, "forget05", FIELDS)


def test_a_file_instead_of_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "forget05.json", ROW)
    with pytest.raises(
        NotADirectoryError, match=r"data: expected a folder of JSON files, got the file .*forget05\.json"
    ):
        load_rows(path, "forget05", FIELDS)


def test_a_missing_file_lists_those_there_and_the_nearest(tmp_path: Path) -> None:
    for name in ("retain95.json", "forget05.json", "full.jsonl", "notes.txt"):
        write(tmp_path, name, ROW)
    expected = r'has forget05, full, retain95, but no "forget5", did you mean "forget05"\?$'
    with pytest.raises(FileNotFoundError, match=expected):
        load_rows(tmp_path, "forget5", FIELDS)
    with pytest.raises(FileNotFoundError, match=r'but no "zebra"$'):
        load_rows(tmp_path, "zebra", FIELDS)


def test_a_folder_without_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no JSON files; expected forget05\.json or forget05\.jsonl in it"):
        load_rows(tmp_path, "forget05", FIELDS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"forget05\.json: expected rows, got an empty file"),
        (["[]"], r"forget05\.json: expected rows, got an empty file"),
        ([ROW, "", "{oops"], r"forget05\.json, line 3: expected a JSON object, got '\{oops'"),
        (["[1,", "2"], r"forget05\.json, line \d: expected a JSON list"),
        ([ROW, "17"], r"forget05\.json, row 1: expected an object with question, answer, got int"),
        ([ROW, {"question": "Who?", "anwser": "Ann"}], r'row 1: expected a field "answer", got question, anwser'),
        ([{}], r'row 0: expected a field "question", got none'),
        ([{"question": "Who?", "answer": None}], r'row 0: field "answer": expected a text, got None'),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, lines: list[Any], message: str) -> None:
    write(tmp_path, "forget05.json", *lines)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path, "forget05", FIELDS)


@pytest.mark.parametrize("value", ["a text", [], [1, 2], None])
def test_a_list_field_holds_texts(tmp_path: Path, value: Any) -> None:
    write(tmp_path, "forget05.json", {"wrong": value})
    with pytest.raises(ValueError, match=r'row 0: field "wrong": expected a list of texts, got '):
        load_rows(tmp_path, "forget05", {"wrong": list})


# ---- other encodings, and what is no text ----------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "forget05.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\n")
    assert load_rows(tmp_path, "forget05", FIELDS) == [ROW]
    (tmp_path / "forget05.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([ROW]).encode())
    assert load_rows(tmp_path, "forget05", FIELDS) == [ROW]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "forget05.json").write_bytes((json.dumps(ROW) + "\n").encode(encoding))
    with pytest.raises(ValueError, match=r"forget05\.json, line 1: expected UTF-8, got UTF-16; convert it: iconv"):
        load_rows(tmp_path, "forget05", FIELDS)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_latin_1_is_named_with_its_line(tmp_path: Path, mark: bytes) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in (ROW, {"question": "Une fée?", "answer": "Un café"})]
    content = f"{lines[0]}\n".encode() + lines[1].encode("latin-1")
    (tmp_path / "forget05.json").write_bytes(mark + content)
    with pytest.raises(ValueError, match=r"forget05\.json, line 2: expected UTF-8, got the byte 0xe9 after '.*Une f'"):
        load_rows(tmp_path, "forget05", FIELDS)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"question": "Who \ud83d?"}, "question"),
        ({"answer": "\ude00"}, "answer"),
        ({"further": ["sound", {"deep": "half \ud83d"}]}, "further"),
    ],
)
def test_half_of_a_surrogate_pair_is_named_with_its_row(tmp_path: Path, fields: dict[str, Any], field: str) -> None:
    write(tmp_path, "forget05.json", {**ROW, "answer": "a whole one: \U0001f600"}, {**ROW, **fields})
    with pytest.raises(ValueError, match=rf'forget05\.json, row 1: field "{field}": expected Unicode, got half of a'):
        load_rows(tmp_path, "forget05", FIELDS)


def test_objects_over_several_lines_say_what_was_expected(tmp_path: Path) -> None:
    message = r"forget05\.json, line 2: expected one JSON object a line, got one of 4 lines; .*jq -c \. FILE"
    write(tmp_path, "forget05.json", ROW, json.dumps(ROW, indent=2), json.dumps(ROW, indent=2))
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path, "forget05", FIELDS)


def test_lists_that_must_be_as_long_in_every_row(tmp_path: Path) -> None:
    write(tmp_path, "rows.json", {"wrong": ["a", "b"]}, {"wrong": ["a", "b"]}, {"wrong": ["a", "b", "c"]})
    assert len(load_rows(tmp_path, "rows", {"wrong": list})) == 3
    with pytest.raises(ValueError, match=r'rows\.json, row 2: field "wrong": expected 2 texts, as in row 0, got 3'):
        load_rows(tmp_path, "rows", {"wrong": list}, even=["wrong"])


# ---- the hub: the datasets library on a repository that lies in a folder ---------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set with configs forget05 and retain95, read by `datasets` as it reads one of the hub."""
    datasets = pytest.importorskip("datasets")
    repository = tmp_path / "hub"
    repository.mkdir()
    for name in ("forget05", "retain95"):
        write(repository, f"{name}.json", {"question": f"Who in {name}?", "answer": "Ann"}, ROW)
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.json\n" for name in ("forget05", "retain95"))
    (repository / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rows, "find_folder", lambda data: None)
    return str(repository)


def test_a_config_of_the_hub(hub: str) -> None:
    assert load_rows(hub, "forget05", FIELDS) == [{"question": "Who in forget05?", "answer": "Ann"}, ROW]


def test_an_unknown_config_lists_those_there(hub: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=r'has forget05, retain95, but no "forget5", did you mean "forget05"\?$'
    ):
        load_rows(hub, "forget5", FIELDS)


def test_an_unknown_split_of_a_config(hub: str) -> None:
    with pytest.raises(ValueError, match=r'config "forget05": Unknown split "test"'):
        load_rows(hub, "forget05", FIELDS, split="test")


def test_a_row_of_the_hub_is_checked(hub: str) -> None:
    with pytest.raises(ValueError, match=r'config "forget05", row 0: expected a field "title", got question, answer'):
        load_rows(hub, "forget05", {"title": str})


def raising(error: Exception) -> Callable[..., Any]:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    return load_dataset


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (
            ConnectionError("Couldn't reach 'locuslab/TOFU' on the Hub (OfflineModeIsEnabled)"),
            ConnectionError,
            r'data: cannot get "forget05" of "locuslab/TOFU" from the hub \(.*OfflineModeIsEnabled\)\), and no folder',
        ),
        (
            FileNotFoundError("Dataset 'locuslab/TOFU' doesn't exist on the Hub or cannot be accessed.\nmore"),
            FileNotFoundError,
            r'data: "locuslab/TOFU" is neither a folder here nor a data set on the hub \(Dataset .* accessed\)$',
        ),
    ],
)
def test_the_hub_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception], message: str
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", raising(error))
    with pytest.raises(expected, match=message):
        load_rows("locuslab/TOFU", "forget05", FIELDS)


def test_a_config_that_fails_and_a_hub_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", raising(ValueError("Couldn't find cache for locuslab/TOFU")))
    monkeypatch.setattr(datasets, "get_dataset_config_names", raising(ConnectionError("offline")))
    with pytest.raises(ValueError, match=r'locuslab/TOFU, config "forget05": Couldn.t find cache for locuslab/TOFU$'):
        load_rows("locuslab/TOFU", "forget05", FIELDS)
