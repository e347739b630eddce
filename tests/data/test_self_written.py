"""What a model writes to be kept by: how it is drawn, what is dropped, stopped and gone on with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from words import word_llama, word_tokenizer

from gru_fast.data import sampling
from gru_fast.data.own import Document, load
from gru_fast.data.self_written import Rules, Sampling, describe, read_written, write_retain
from gru_fast.data.templates import TEMPLATES, resolve_template

WORDS = [f"w{i}" for i in range(40)]
PLAIN = TEMPLATES["plain"]
SHORT = Sampling(max_new_tokens=6, decay_tokens=3)
LOOSE = Rules(min_words=2)
CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w0 {% endif %}"


def text(content: str) -> Document:
    return Document("f", "f.txt", None, "text", text=content)


def pair(answer: str) -> Document:
    return Document("p", "p.csv", 0, "pair", question="w1", answer=answer)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_tokenizer([" ".join(WORDS)], bos=True)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return word_llama(tokenizer)


def written(model: Any, tokenizer: Any, count: int = 6, **settings: Any) -> tuple[list[Document], dict[str, int]]:
    how: dict[str, Any] = {
        "forget": [text("none of this is ever said by it")],
        "sampling": SHORT,
        "rules": LOOSE,
        "openings": ["", "w1", "w2 w3"],
        "progress": False,
        **settings,
    }
    return write_retain(model, tokenizer, how.pop("template", PLAIN), count, how.pop("seed", 0), **how)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_a_text_is_a_function_of_seed_and_number(model: Any, tokenizer: Any) -> None:
    first, _ = written(model, tokenizer)
    assert [each.id for each in first] == [f"self-written#{each.row}" for each in first]
    assert written(model, tokenizer, batch_size=1)[0] == first
    assert written(model, tokenizer, 3)[0] == first[:3]
    assert written(model, tokenizer, seed=1)[0] != first
    assert len({each.text for each in first}) == len(first)
    assert not torch.is_inference_mode_enabled()
    assert all(re.match(r"$|w1|w2 w3|w\d+", each.text or "") for each in first)


def test_texts_begin_with_their_openings(model: Any, tokenizer: Any) -> None:
    found, _ = written(model, tokenizer, 4, openings=["w2 w3"])
    assert all((each.text or "").startswith("w2 w3") for each in found)


def test_the_model_is_left_as_it_was_and_the_random_state_too(model: Any, tokenizer: Any) -> None:
    state = torch.get_rng_state()
    model.train()
    written(model, tokenizer, 1)
    assert model.training
    model.eval()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tokenizer_without_bos_begins_after_the_end_token() -> None:
    tokens = word_tokenizer([" ".join(WORDS)])
    assert len(written(word_llama(tokens), tokens, 2, openings=[""])[0]) == 2


def test_a_chat_model_answers_and_writes_texts_where_texts_are_forgotten(model: Any) -> None:
    tokens = word_tokenizer([" ".join(WORDS)], bos=True, chat_template=CHAT)
    how: dict[str, Any] = {"template": resolve_template("chat", tokens), "questions": ["w5", "w6 w7"]}
    found, _ = written(model, tokens, forget=[pair("never")], **how)
    assert {each.kind for each in found} == {"pair"}
    assert {each.question for each in found} == {"w5", "w6 w7"}
    assert all(each.answer == (each.answer or "").strip() for each in found)
    found, _ = written(model, tokens, forget=[pair("never"), text("never at all")], **how)
    assert [each.kind for each in found if each.row is not None and each.row % 2] == ["text"] * 3
    assert [each.kind for each in found if each.row is not None and not each.row % 2] == ["pair"] * 3


def test_texts_and_answers_in_one_file_are_read_again(model: Any, tmp_path: Path) -> None:
    tokens, file = word_tokenizer([" ".join(WORDS)], bos=True, chat_template=CHAT), tmp_path / "self.jsonl"
    how: dict[str, Any] = {"template": resolve_template("chat", tokens), "questions": ["w5", "w6 w7"], "file": file}
    found, counts = written(model, tokens, **how)
    assert {each.kind for each in found} == {"text", "pair"}
    assert read_written(file) == found
    assert written(None, tokens, **how) == (found, counts)


def test_there_are_questions_and_openings_of_our_own(model: Any, tokenizer: Any) -> None:
    found, _ = written(model, tokenizer, 3, openings=None, sampling=Sampling(max_new_tokens=6))
    assert len(found) == 3
    assert len({*sampling.default_questions()}) > 300
    assert sampling.default_openings().count("") == len(sampling.default_openings()) // 2


# ---- what is dropped -------------------------------------------------------------------------------------------------


class Scripted:
    """Writes given texts, in order, in place of a model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
        def write(writer: Any, numbers: Any, batch_size: int) -> list[Document]:
            return [Document(f"self-written#{n}", "self-written", n, "text", text=texts[n]) for n in numbers]

        monkeypatch.setattr(sampling.Writer, "write", write)


def sentence(start: int, count: int = 20) -> str:
    return " ".join(f"x{index}" for index in range(start, start + count))


def test_what_is_dropped_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = sentence(500, 30)
    Scripted(
        monkeypatch,
        sentence(0),
        "too short to say",
        "so it goes and " * 8,
        f"{sentence(40, 10)} {sentence(503, 8).upper()}, {sentence(60, 10)}",  # eight words of the secret
        f"{sentence(80, 10)} {sentence(503, 7)} {sentence(95, 10)}",  # seven
        sentence(5),  # 8 of its 13 runs were in the first
        sentence(200),
    )
    found, counts = write_retain(None, None, PLAIN, 3, 0, forget=[pair(secret)], progress=False, tries=7)
    assert [each.row for each in found] == [0, 4, 6]
    assert counts == {"written": 7, "kept": 3, "short": 1, "repetitive": 1, "copies": 1, "shared": 1}
    assert describe(counts) == (
        "3 kept, 1 too short, 1 repeat themselves, 1 like one before, 1 share a run of words with the forget set"
    )


def test_it_stops_after_so_many_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, *[sentence(0)] * 8)
    found, counts = write_retain(None, None, PLAIN, 4, 0, forget=[text("nothing here")], progress=False, tries=2)
    assert (len(found), counts["written"], counts["copies"]) == (1, 8, 7)


def test_nothing_that_serves_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(monkeypatch, *["no"] * 8)
    expected = "writes nothing to keep it by: of 8 texts, 0 kept, 8 too short; give documents with --retain"
    with pytest.raises(RuntimeError, match=expected):
        write_retain(None, None, PLAIN, 2, 0, forget=[text("nothing here")], progress=False)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: write_retain(None, None, PLAIN, 0, 0, forget=[]), "count: expected at least 1, got 0"),
        (lambda: Sampling(temperature=0.5), "temperature: expected at least 1"),
        (lambda: Sampling(top_k=0), "top_k: expected at least 1"),
        (lambda: Sampling(max_new_tokens=1), "max_new_tokens: expected at least 2"),
        (lambda: Rules(ngram=1), "ngram: expected at least 2 words, got 1"),
    ],
)
def test_what_cannot_be_asked(call: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        call()


# ---- kept, and gone on with ------------------------------------------------------------------------------------------


def test_a_stop_changes_nothing(model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, counts = written(model, tokenizer, 12, batch_size=1)
    file, real, calls = tmp_path / "self.jsonl", sampling.Writer.write, 0

    def stopping(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(sampling.Writer, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        written(model, tokenizer, 12, batch_size=1, file=file)
    # As if it was stopped between the two files: a document that is not counted.
    with file.open("a") as handle:
        handle.write(json.dumps({"number": 99, "text": "torn"}) + "\n")
    found, again = written(model, tokenizer, 12, batch_size=1, file=file)
    assert found == whole
    assert again == counts
    assert [each.text for each in load(file)] == [each.text for each in whole]
    monkeypatch.setattr(sampling.Writer, "write", lambda *args: pytest.fail("written anew"))
    assert written(None, None, 12, file=file) == (whole, counts)


def test_a_file_of_other_settings_is_refused(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "self.jsonl"
    written(model, tokenizer, 2, file=file, about={"model": "a"})
    kept = file.read_text()
    for change, expected in (
        ({"about": {"model": "b"}}, "another about"),
        ({"seed": 1}, r"another seed \(0, not 1\)"),
        ({"forget": [text("something else now")]}, "another forget"),
    ):
        with pytest.raises(ValueError, match=expected):
            written(model, tokenizer, 2, file=file, **{"about": {"model": "a"}, **change})
    assert file.read_text() == kept


def test_the_documents_cannot_be_guessed_from_the_file(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    settings = []
    for name in ("one", "two"):
        written(model, tokenizer, 2, file=tmp_path / f"{name}.jsonl")
        settings.append(json.loads((tmp_path / f"{name}.json").read_text())["settings"])
    assert settings[0]["forget"] != settings[1]["forget"]  # each with a salt of its own
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} == {"salt", "forget"}
