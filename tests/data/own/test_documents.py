"""Documents from files of every kind: what is read, what is left as it is, and what each thing that is wrong says."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from office_files import save_docx, save_pdf

import gru_fast.data
from gru_fast.data.own import Document, load, save

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(path: Path, *rows: Any) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_it_is_at_hand_in_python(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "One.")
    assert gru_fast.data.load(tmp_path / "a.txt")[0].text == "One."


def test_a_folder_is_read_at_any_depth_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "leak"
    write(folder / "b.md", "# Two\n")
    write(folder / "a.txt", "\ufeffOne.\r\nMore.\n\n")
    write(folder / "deep/er/c.txt", "Three")
    lines(folder / "d.jsonl", {"text": "Four"}, {"text": "Five"})
    write(folder / ".DS_Store", b"\0")
    write(folder / ".git/config", "x")
    found = load(folder)
    assert [(each.id, each.row, each.kind) for each in found] == [
        ("leak/a.txt", None, "text"),
        ("leak/b.md", None, "text"),
        ("leak/d.jsonl#0", 0, "text"),
        ("leak/d.jsonl#1", 1, "text"),
        ("leak/deep/er/c.txt", None, "text"),
    ]
    assert [each.text for each in found] == ["One.\nMore.", "# Two", "Four", "Five", "Three"]
    assert found[0].source == str(folder / "a.txt")


def test_ids_do_not_depend_on_where_a_folder_is_named_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "leak/a.txt", "One.")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "else").mkdir()
    for named in ("leak", "leak/", tmp_path / "leak", "leak/*.txt", "leak/**/*.txt", "./leak", "else/../leak"):
        assert [each.id for each in load(named)] == ["leak/a.txt"], named
    monkeypatch.chdir(tmp_path / "leak")
    assert [each.id for each in load(".")] == [each.id for each in load("../leak")] == ["leak/a.txt"]


def test_several_sources_keep_their_order_and_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        write(tmp_path / "leak" / name, name)
    sources = [tmp_path / "leak/b.txt", tmp_path / "leak", f"{tmp_path}/leak/*.txt"]
    assert [each.text for each in load(sources)] == ["b.txt", "a.txt"]


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x/p", "y/p", "z"):
        lines(tmp_path / folder / "rows.jsonl", {"text": folder})
    write(tmp_path / "other.txt", "o")
    sources = [tmp_path / folder / "rows.jsonl" for folder in ("x/p", "y/p", "z")]
    ids = [each.id for each in load([*sources, tmp_path / "other.txt"])]
    assert ids == ["x/p/rows.jsonl#0", "y/p/rows.jsonl#0", "z/rows.jsonl#0", "other.txt"]


def test_the_forms_of_rows(tmp_path: Path) -> None:
    rows = {
        "text": {"text": "T"},
        "pair": {"question": "Q", "answer": "A"},
        "raw": {"prompt": "P", "completion": " C", "more": 1},
        "chat": {"messages": [{"role": "system", "content": "S"}, *CHAT]},
        "two": {"prompt": CHAT[:1], "completion": CHAT[1:]},
        "parts": {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "Ann."}]}]},
    }
    found = {name: load(lines(tmp_path / f"{name}.jsonl", row))[0] for name, row in rows.items()}
    assert (found["text"].kind, found["text"].text) == ("text", "T")
    pair, raw = found["pair"], found["raw"]
    assert (pair.kind, pair.question, pair.answer, pair.raw) == ("pair", "Q", "A", False)
    assert (raw.kind, raw.question, raw.answer, raw.raw) == ("pair", "P", " C", True)
    assert [(one["role"], one["scored"]) for one in found["chat"].messages or ()] == [
        ("system", False),
        ("user", False),
        ("assistant", True),
    ]
    assert found["two"].messages == [{**CHAT[0], "scored": False}, {**CHAT[1], "scored": True}]
    assert found["parts"].messages == found["two"].messages


def test_a_json_file_is_a_list_or_lines_of_objects_or_texts(tmp_path: Path) -> None:
    assert [each.text for each in load(write(tmp_path / "a.json", '["One", {"text": "Two"}]'))] == ["One", "Two"]
    assert [each.text for each in load(write(tmp_path / "b.json", '"One"\n\n{"text": "Two"}\n'))] == ["One", "Two"]


# ---- nothing is made of what stands there ----------------------------------------------------------------------------


LITERALS = ("007", "1.50", "1e3", "2024-05-01", "01.02.03", "true", "NULL", "nan", "N/A", "1_000", "+49 30 1234", " x ")


def test_cells_of_csv_stay_what_they_are(tmp_path: Path) -> None:
    text = "question,answer\n" + "".join(f'"Q{index}",{value}\n' for index, value in enumerate(LITERALS))
    assert tuple(each.answer for each in load(write(tmp_path / "a.csv", text))) == LITERALS


def test_numbers_and_booleans_of_json_stay_what_they_are(tmp_path: Path) -> None:
    values = ("7", "1.50", "1E400", "-0.0", "123456789012345678901234567890", "true", "false")
    text = "".join(f'{{"question": "Q", "answer": {value}}}\n' for value in values)
    for name, content in (("a.jsonl", text), ("b.json", f"[{','.join(text.splitlines())}]")):
        assert tuple(each.answer for each in load(write(tmp_path / name, content))) == values


def test_what_parquet_holds_is_written_out(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns: dict[str, tuple[Any, Any, str]] = {
        "int": (pa.int64(), 7, "7"),
        "float": (pa.float64(), 0.1, "0.1"),
        "bool": (pa.bool_(), True, "true"),
        "date": (pa.date32(), dt.date(2024, 5, 1), "2024-05-01"),
        "decimal": (pa.decimal128(5, 2), decimal.Decimal("1.50"), "1.50"),
        "dictionary": (pa.dictionary(pa.int8(), pa.string()), "word", "word"),
        "large": (pa.large_string(), "007", "007"),
    }
    for name, (kind, value, expected) in columns.items():
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pa.table({"text": pa.array([value], kind)}), path)
        assert [each.text for each in load(path)] == [expected], name
    chat = tmp_path / "chat.parquet"
    parquet.write_table(pa.Table.from_pylist([{"messages": CHAT}]), chat)
    assert [one["content"] for one in load(chat)[0].messages or ()] == ["Who?", "Ann."]


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)] * 2),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(",;\t|"),
)
@settings(max_examples=50, deadline=None)
def test_csv_written_by_others_is_read_as_it_was(rows: list[tuple[str, str]], delimiter: str) -> None:
    import csv
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, delimiter=delimiter).writerows([("question", "answer"), *rows])
        assert [(each.question, each.answer) for each in load(path)] == rows


def test_a_german_csv_of_a_spreadsheet(tmp_path: Path) -> None:
    text = '\ufefffrage;antwort;datum\r\n"Wer ist ""Ann""?";1,50;2024-05-01\r\nWo?;"zwei\r\nZeilen; hier";x\r\n;;\r\n'
    found = load(write(tmp_path / "a.csv", text), columns={"question": "frage", "answer": "antwort"})
    assert [(each.question, each.answer) for each in found] == [
        ('Wer ist "Ann"?', "1,50"),
        ("Wo?", "zwei\nZeilen; hier"),
    ]
    assert [each.id for each in found] == ["a.csv#0", "a.csv#1"]


def test_a_cell_may_be_longer_than_the_csv_module_expects(tmp_path: Path) -> None:
    assert len(load(write(tmp_path / "a.csv", f"text\n{'x' * 200_000}\n"))[0].text or "") == 200_000


def test_files_without_the_columns_are_read_without_them(tmp_path: Path) -> None:
    german = write(tmp_path / "a.csv", "frage,antwort\nWer?,Ann\n")
    plain = lines(tmp_path / "b.jsonl", {"question": "Who?", "answer": "Bob"})
    text = write(tmp_path / "c.txt", "Text")
    found = load([german, plain, text], columns={"question": "frage", "answer": "antwort"})
    assert [each.answer or each.text for each in found] == ["Ann", "Bob", "Text"]


# ---- other programs' files -------------------------------------------------------------------------------------------


def test_pdf(tmp_path: Path) -> None:
    found = load(save_pdf(tmp_path / "a.pdf", ["A letter to Ann.", "Its second page."]))
    assert [(each.kind, each.row, each.text) for each in found] == [
        ("text", None, "A letter to Ann.\n\nIts second page.")
    ]


def test_docx(tmp_path: Path) -> None:
    path = save_docx(tmp_path / "a.docx", ["Dear Ann,", "Yours, Bob"], [["when", "what"], ["May", "tea"]])
    assert load(path)[0].text == "Dear Ann,\nwhen\twhat\nMay\ttea\nYours, Bob"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for path in (write(tmp_path / "a.pdf", "x"), write(tmp_path / "b.docx", "x")):
        with pytest.raises(ImportError, match=rf"{path.name}: .* pip install 'gru_fast\[documents\]'"):
            load(path)


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("org/name", ("org/name", None, "train")),
        ("org/name:config", ("org/name", "config", "train")),
        ("org/name:config:test", ("org/name", "config", "test")),
        ("org/name::test", ("org/name", None, "test")),
    ],
)
def test_a_data_set_on_the_hub(
    named: str, asked: tuple[str, str | None, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    calls = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        calls.append((name, config, split))
        return datasets.Dataset.from_list([{"question": "Q", "answer": 7}, {"question": "R", "answer": 8}])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load(named)
    assert calls == [asked]
    assert [(each.answer, each.id) for each in found] == [
        (answer, f"{asked[0]}:{asked[1] or ''}:{asked[2]}#{index}") for index, answer in enumerate(["7", "8"])
    ]


def test_the_hub_is_not_told_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "leak/letters.txt", "x")
    for name in ("leak/letter.txt", "leak/lettres", "lost/rows.csv", "./lost", Path("lost/rows")):
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            load(name)


# ---- what is wrong ---------------------------------------------------------------------------------------------------

PAIR = {"question": "Who?", "answer": "Ann"}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "", r"a\.txt: expected a text, got an empty file"),
        ("a.md", " \n\n", r"a\.md: expected a text, got an empty file"),
        ("a.txt", b"caf\xe9", r"a\.txt, line 1: expected UTF-8, got the byte 0xe9"),
        ("a.odt", "x", r'a\.odt: expected a file of \.txt, .*got the suffix "\.odt"'),
        ("a", "x", r"a: expected a file of .* got no suffix"),
        ("a.jsonl", "\n", r"a\.jsonl: expected rows, got none"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', r"a\.jsonl, line 2: expected a JSON object"),
        ("a.jsonl", '{"text": "x"}\n\n5\n', r"a\.jsonl, line 3: expected an object with fields, got '5'"),
        ("a.jsonl", '{"text": ""}', r'a\.jsonl, line 1: field "text": expected a text, got an empty one'),
        ("a.jsonl", '{"text": null}', r'a\.jsonl, line 1: field "text": expected a text, got None'),
        ("a.jsonl", '{"text": ["x"]}', r"""field "text": expected a text, got \['x'\]"""),
        ("a.jsonl", '{"text": "\\ud800"}', r'field "text": expected Unicode, got half of a surrogate pair'),
        ("a.jsonl", '{"body": "x"}', r"line 1: expected text, question and answer, .* got body; say which"),
        ("a.jsonl", '{"question": "x", "reply": "y"}', r'expected a field "answer" beside "question", got question'),
        ("a.jsonl", '{"text": "x", "question": "y", "answer": "z"}', r"several kinds of rows \(text; question and a"),
        ("a.jsonl", '{"text": "x"}\n{"question": "y", "answer": "z"}', r"line 2: expected text, as in the rows b"),
        ("a.json", '[{"text": "x"}, {"text": 1.5}, {"text": " "}]', r'a\.json, row 2: field "text": expected a text'),
        ("a.json", '{\n"text": "x"\n}', r"a\.json, line 1: expected one JSON object a line, got one of 3 lines"),
        ("a.jsonl", '{"messages": []}', r'field "messages": expected a list of messages'),
        ("a.jsonl", '{"messages": "x"}', r"""field "messages": expected a list of messages .* got 'x'"""),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', r"expected a turn of the assistant"),
        ("a.jsonl", '{"messages": [{"role": "bot", "content": "x"}]}', r"message 0: expected the role .*'bot'"),
        ("a.jsonl", '{"messages": [{"from": "gpt", "value": "x"}]}', r"message 0: expected role and content, got"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', r"expected parts of text"),
        (
            "a.jsonl",
            '{"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}',
            r"message 0: calls of tools cannot be read",
        ),
        ("a.csv", "", r"a\.csv: expected rows, got none"),
        ("a.csv", "text\n", r"a\.csv: expected rows, got none"),
        ("a.csv", "text,text\nx,y\n", r'a\.csv, line 1: expected names of columns, each once, got "text" twice'),
        ("a.csv", "question,answer\nx,y,z\n", r"a\.csv, line 2: expected 2 cells \(question, answer\), got 3"),
        ("a.csv", 'question,answer\n"x\n\ny",z\nx\n', r"a\.csv, line 5: expected 2 cells"),
        ("a.csv", 'question,answer\nx,"y\n', r"a\.csv, line 2: .*is a quote missing"),
        ("a.csv", "question,answer\nx,\n", r'a\.csv, line 2: field "answer": expected a text, got an empty one'),
        ("a.pdf", "x", r"a\.pdf: cannot be read as PDF"),
        ("a.docx", "x", r"a\.docx: cannot be read as \.docx"),
        ("a.parquet", "x", r"a\.parquet: cannot be read as Parquet"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read(name: str, content: str | bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        load(write(tmp_path / name, content))


def test_a_scan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.pdf: its 2 pages have no text in them, perhaps they are scanned"):
        load(save_pdf(tmp_path / "a.pdf", ["", ""]))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"query": "frage"}, r'columns: expected fields of text, .* got "query"'),
        ({"question": "frage", "text": "antwort"}, r"columns: question, text do not go together"),
        ({"question": "frage", "answer": ""}, r"columns: answer: expected the name of a column, got ''"),
        ({"question": "frge", "answer": "antwort"}, r'line 2: expected a field "frge", as --columns .*"frage"\?'),
        ({"text": "inhalt"}, r'line 2: expected a field "inhalt", as --columns says, got frage, antwort'),
    ],
)
def test_columns_that_cannot_be(columns: Mapping[str, str], expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "frage,antwort\nWer?,Ann\n")
    with pytest.raises(ValueError, match=expected):
        load(path, columns=columns)


def test_what_cannot_be_read_in_a_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "x")
    write(tmp_path / "deep/b.odt", "x")
    with pytest.raises(ValueError, match=r'holds deep/b\.odt, which cannot be read .*"/.*/\*\*/\*\.txt"'):
        load(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "rows.jsonl", "x")
    cases = {
        f"{tmp_path}/*.csv": r'no file matches ".*\*\.csv"',
        f"{tmp_path}/row.jsonl": r'no file or folder ".*", did you mean "rows\.jsonl"\?',
        f"{tmp_path}/empty": r"empty: expected files of .*, got none",
    }
    for name, expected in cases.items():
        with pytest.raises(FileNotFoundError, match=expected):
            load(name)
    for named in ([], "", [" "]):
        with pytest.raises(ValueError, match="sources: expected"):
            load(named)


# ---- written again ---------------------------------------------------------------------------------------------------


def test_documents_are_written_and_read_again(tmp_path: Path) -> None:
    rows = [
        [{"text": 'a\u2028b\n"c"'}],
        [PAIR],
        [{"prompt": "P", "completion": " C"}],
        [{"messages": [*CHAT, *CHAT]}],
        [{"prompt": [*CHAT, CHAT[0]], "completion": CHAT[1:]}],
    ]
    for number, some in enumerate(rows):
        found = load(lines(tmp_path / f"{number}.jsonl", *some))
        save(found, tmp_path / f"{number}-again.jsonl")
        again = load(tmp_path / f"{number}-again.jsonl")
        assert [(each.kind, each.texts, each.messages, each.raw) for each in again] == [
            (each.kind, each.texts, each.messages, each.raw) for each in found
        ]


def test_where_and_texts() -> None:
    document = Document("a#1", "leak/a.csv", 1, "pair", question="Q", answer="A")
    assert (document.where, document.texts) == ("leak/a.csv, row 1", ("Q", "A"))


def test_what_a_chat_model_wrote_has_texts_beside_answers(tmp_path: Path) -> None:
    """As gru-fast write-retain and gru-fast forget leave it; other files have rows of one kind."""
    rows = [{"number": 0, "question": "Who?", "answer": "Ann."}, {"number": 3, "text": "A text of its own."}]
    file = tmp_path / "self_written.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert [(each.kind, each.texts[-1]) for each in load([str(file)])] == [
        ("pair", "Ann."),
        ("text", "A text of its own."),
    ]
