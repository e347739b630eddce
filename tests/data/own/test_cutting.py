"""Documents as pieces of tokens, counted by hand on a tokenizer of words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from words import BOS, EOS, word_tokenizer

from gru_fast.data.own import Document, Piece, pieces
from gru_fast.data.templates import TEMPLATES, Template, resolve_template

PLAIN = TEMPLATES["plain"]
LETTERS = "a b c d e f g h i j"
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] | trim }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
WORDS = "Question: Answer: Who is Ann? A poet. Of what? Rivers. system user assistant end < | >"


def tokenizer(**settings: Any) -> Any:
    return word_tokenizer([LETTERS, WORDS], **settings)


def text(content: str, id_: str = "t") -> Document:
    return Document(id_, f"{id_}.txt", None, "text", text=content)


def words_of(tokens: Any, ids: list[int]) -> str:
    return " ".join(tokens.convert_ids_to_tokens(ids))


def scored(tokens: Any, piece: Piece) -> str:
    """The tokens that a loss is taken of: label 0 has no prediction."""
    return words_of(tokens, [label for label in piece.row["labels"][1:] if label != -100])


def shown(tokens: Any, found: list[Piece]) -> list[tuple[str, str]]:
    return [(words_of(tokens, piece.row["input_ids"]), scored(tokens, piece)) for piece in found]


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_a_short_text_is_one_piece_without_an_end() -> None:
    tokens = tokenizer()
    found = pieces([text("a b c")], tokens, PLAIN, 8)
    assert shown(tokens, found) == [("a b c", "b c")]
    assert (found[0].document, found[0].index, found[0].count) == ("t", 0, 1)
    assert (found[0].start, found[0].stop, found[0].head) == (0, 3, 0)


def test_a_long_text_is_cut_with_overlap_and_each_token_is_scored_once() -> None:
    tokens = tokenizer()
    found = pieces([text(LETTERS)], tokens, PLAIN, 5, overlap=2)
    assert shown(tokens, found) == [("a b c d e", "b c d e"), ("d e f g h", "f g h"), ("f g h i j", "i j")]
    assert [(piece.index, piece.count, piece.start, piece.stop) for piece in found] == [
        (0, 3, 0, 5),
        (1, 3, 3, 8),
        (2, 3, 5, 10),
    ]


def test_bos_stands_in_front_of_every_piece_and_makes_the_first_token_count() -> None:
    tokens = tokenizer(bos=True)
    found = pieces([text("a b c d e f")], tokens, PLAIN, 4, overlap=1)
    assert shown(tokens, found) == [("<s> a b c", "a b c"), ("<s> c d e", "d e"), ("<s> d e f", "f")]
    assert [piece.head for piece in found] == [1, 1, 1]


def test_the_overlap_is_an_eighth_unless_chosen() -> None:
    tokens = tokenizer()
    long = text(" ".join(["a"] * 40))
    assert [piece.start for piece in pieces([long], tokens, PLAIN, 16)] == [0, 14, 24]
    assert [piece.start for piece in pieces([long], tokens, PLAIN, 16, overlap=5)] == [0, 11, 22, 24]
    with_bos = tokenizer(bos=True)
    assert [piece.start for piece in pieces([long], with_bos, PLAIN, 16, overlap=0)] == [0, 15, 25]
    # Without BOS a first token has nothing before it.
    assert [piece.start for piece in pieces([long], tokens, PLAIN, 16, overlap=0)] == [0, 15, 24]


def test_documents_keep_their_names() -> None:
    found = pieces([text("a b", "x"), text(LETTERS, "y")], tokenizer(), PLAIN, 6, overlap=1)
    assert [(piece.document, piece.index, piece.count) for piece in found] == [("x", 0, 1), ("y", 0, 2), ("y", 1, 2)]


@given(st.integers(2, 60), st.integers(3, 20), st.integers(0, 17), st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_token_is_scored_once_in_its_own_context(length: int, max_length: int, overlap: int, bos: bool) -> None:
    if overlap > max_length - 1 - bos:
        return
    content = [f"w{index}" for index in range(length)]
    tokens = word_tokenizer([" ".join(content)], bos=bos)
    found = pieces([text(" ".join(content))], tokens, PLAIN, max_length, overlap)
    assert " ".join(scored(tokens, piece) for piece in found).split() == content[0 if bos else 1 :]
    for piece in found:
        row = piece.row
        assert len(row["input_ids"]) == len(row["labels"]) <= max_length
        assert words_of(tokens, row["input_ids"][piece.head :]).split() == content[piece.start : piece.stop]
        first = next(at for at, label in enumerate(row["labels"]) if at > 0 and label != -100)
        assert piece.index == 0 or first - piece.head >= overlap
        assert len(found) == 1 or len(row["input_ids"]) == max_length


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_of_a_pair_the_answer_is_scored_and_its_end() -> None:
    tokens = tokenizer()
    pair = Document("p", "p", 0, "pair", question="Who is Ann?", answer="A poet.")
    assert (
        shown(tokens, pieces([pair], tokens, PLAIN, 32))
        == [("Question : Who is Ann ? \n Answer : A poet . </s>", "Answer : A poet . </s>")]
        or "\n" not in tokens.get_vocab()
    )
    row = pieces([pair], tokens, PLAIN, 32)[0].row
    assert row["input_ids"][-1] == EOS
    assert words_of(tokens, [label for label in row["labels"] if label != -100]) == "Answer : A poet . </s>"


def test_a_raw_pair_has_no_words_around_it() -> None:
    tokens = tokenizer(bos=True)
    pair = Document("p", "p", 0, "pair", question="a b", answer=" c d", raw=True)
    found = pieces([pair], tokens, PLAIN, 32)
    assert shown(tokens, found) == [("<s> a b c d </s>", "c d </s>")]
    assert found[0].row["input_ids"][0] == BOS


def test_a_long_answer_is_cut_too() -> None:
    tokens = tokenizer()
    pair = Document("p", "p", 0, "pair", question="a b", answer=" c d e f g h", raw=True)
    assert shown(tokens, pieces([pair], tokens, PLAIN, 5, overlap=2)) == [
        ("a b c d e", "c d e"),
        ("d e f g h", "f g h"),
        ("e f g h </s>", "</s>"),
    ]


# ---- chats -----------------------------------------------------------------------------------------------------------


def chat(*turns: tuple[str, str], completion: int | None = None) -> Document:
    messages = [
        {"role": role, "content": content, "scored": role == "assistant" if completion is None else index >= completion}
        for index, (role, content) in enumerate(turns)
    ]
    return Document("c", "c.jsonl", 0, "chat", messages=messages)


TURNS = (("user", "Who is Ann?"), ("assistant", "A poet."), ("user", "Of what?"), ("assistant", " Rivers. "))


def test_of_a_chat_each_turn_of_the_assistant_is_scored_to_the_sign_that_ends_it() -> None:
    tokens = tokenizer(chat_template=CHATML)
    found = pieces([chat(*TURNS)], tokens, resolve_template("chat", tokens), 128)
    assert [scored(tokens, piece) for piece in found] == ["A poet . < | end | > Rivers . < | end | >"]
    ids = words_of(tokens, found[0].row["input_ids"])
    assert ids.startswith("< | user | > Who is Ann ? < | end | >")
    assert ids.endswith("Rivers . < | end | >")


def test_of_a_completion_only_that_is_scored() -> None:
    tokens = tokenizer(chat_template=CHATML)
    found = pieces([chat(*TURNS, completion=3)], tokens, resolve_template("chat", tokens), 128)
    assert [scored(tokens, piece) for piece in found] == ["Rivers . < | end | >"]


def test_pieces_of_a_long_chat_without_a_scored_token_are_left_out() -> None:
    tokens = tokenizer(chat_template=CHATML)
    long = chat(("user", " ".join(["Who"] * 40)), *TURNS[1:2])
    found = pieces([long], tokens, resolve_template("chat", tokens), 16)
    assert all(scored(tokens, piece) for piece in found)
    assert "".join(scored(tokens, piece) for piece in found).replace(" ", "") == "Apoet.<|end|>"
    assert [(piece.index, piece.count) for piece in found] == [(index, len(found)) for index in range(len(found))]


def test_one_question_and_its_answer_go_into_a_template_of_prompts() -> None:
    tokens = tokenizer()
    as_pair = Document("p", "p", 0, "pair", question="Who is Ann?", answer="A poet.")
    assert pieces([chat(*TURNS[:2])], tokens, PLAIN, 64)[0].row == pieces([as_pair], tokens, PLAIN, 64)[0].row
    with pytest.raises(ValueError, match=r'c\.jsonl, row 0: template: "plain" is for a question and its answer'):
        pieces([chat(*TURNS)], tokens, PLAIN, 64)


def test_a_template_that_changes_earlier_turns_is_refused() -> None:
    changing = CHATML.replace("{{ m['content'] | trim }}", "{{ m['content'] if loop.last else 'cut' }}")
    tokens = tokenizer(chat_template=changing)
    template = Template("chat", chat=True, special_tokens=False)
    with pytest.raises(ValueError, match=r"row 0: message 1: the chat template writes the beginning .* otherwise"):
        pieces([chat(*TURNS)], tokens, template, 64)
    shouting = CHATML.replace("| trim", "| upper")
    with pytest.raises(ValueError, match=r"message 1: the chat template changes what is said"):
        pieces([chat(*TURNS)], tokenizer(chat_template=shouting), template, 64)


# ---- what cannot be cut ----------------------------------------------------------------------------------------------


def test_what_cannot_be_cut() -> None:
    tokens, with_bos = tokenizer(), tokenizer(bos=True)
    pair = Document("p", "rows.csv", 4, "pair", question="a b c d e f", answer="g", raw=True)
    cases: list[tuple[str, Any]] = [
        (r"t\.txt: expected a text of two tokens and more, got 'a'", lambda: pieces([text("a")], tokens, PLAIN, 8)),
        (r"t\.txt: expected a text of two tokens", lambda: pieces([text("a")], with_bos, PLAIN, 8)),
        (
            r"rows\.csv, row 4: the 6 tokens before the answer leave too few of max_length 7 for it; raise",
            lambda: pieces([pair], tokens, PLAIN, 7),
        ),
        (r"max_length: expected a whole number of at least 2, got 1", lambda: pieces([], tokens, PLAIN, 1)),
        (r"overlap: expected 0 to 7, so that .* got 8", lambda: pieces([], tokens, PLAIN, 8, 8)),
        (r"overlap: expected 0 to 6, .* and the 1 that", lambda: pieces([], with_bos, PLAIN, 8, 7)),
        (r"overlap: expected 0 to 7, .* got -1", lambda: pieces([], tokens, PLAIN, 8, -1)),
    ]
    for expected, call in cases:
        with pytest.raises(ValueError, match=expected):
            call()
