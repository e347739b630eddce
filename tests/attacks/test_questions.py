"""Rows as questions: of a benchmark's questions and of its texts, in their own words and in others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import muse_files
import planted
import pytest
import tofu_folders

from gru_fast import benchmarks
from gru_fast.attacks.parts.questions import PLAIN, Frame, Question, questions, reworded, scored
from gru_fast.attacks.parts.target import Target, knowledge_headings
from gru_fast.data.templates import TEMPLATES, encode_prompt

PHI = TEMPLATES["phi"]


@pytest.fixture(scope="module")
def tofu(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return data_target("tofu", tofu_folders.save_data(tmp_path_factory.mktemp("tofu")), split="forget05")


@pytest.fixture(scope="module")
def muse(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return data_target("muse", muse_files.save_data(tmp_path_factory.mktemp("muse")), max_length=40)


def data_target(name: str, data: Path, **options: Any) -> Target:
    """The rows of a benchmark, and no models."""
    benchmark: Any = benchmarks.get(name)
    nothing: Any = None
    return Target(
        {}, Path(), benchmark, benchmark.Options(data=str(data), **options), benchmarks.evaluation(name), nothing,
        nothing, nothing,
    )  # fmt: skip


def test_a_question_is_the_prompt_and_its_answer(tofu: Target) -> None:
    words = tofu_folders.tokenizer()
    asked = questions(tofu, words, PHI)
    assert [one.row for one in asked] == [0, 1, 2, 3]
    first = asked[0]
    assert first.ids == encode_prompt(words, PHI, "Where was author 12 born?")
    assert first.answer == "She was born in Kyoto ."  # without the tag and the end
    # Answer : She was born in Kyoto . are 8 tokens; half as many again
    assert (len(first.body), first.max_new_tokens) == (8, 12)
    assert words.decode(first.body) == "Answer : She was born in Kyoto ."
    assert questions(replace(tofu, max_rows=2, max_new_tokens=5), words, PHI)[1].max_new_tokens == 5
    assert len(questions(replace(tofu, max_rows=2), words, PHI)) == 2


def test_other_words_go_through_the_template(tofu: Target) -> None:
    words = tofu_folders.tokenizer()
    asked = questions(tofu, words, PHI, Frame("x", "I do not know {question}", begun="She was"))
    prompt = encode_prompt(words, PHI, "I do not know Where was author 12 born?")
    assert asked[0].ids == [*prompt, *words("Answer: She was")["input_ids"]]
    assert asked[0].answer == "She was born in Kyoto ."
    assert questions(tofu, words, PHI, Frame("texts alone", None, "Text:")) == []


def test_a_chat_is_asked_in_other_words_too(tofu: Target) -> None:
    chat = "{% for m in messages %}{{ m.role }} : {{ m.content }} \n {% endfor %}Answer :"
    words = tofu_folders.word_tokenizer([tofu_folders.TEXT, "system user 12 13 14 15"], chat_template=chat)
    template = replace(TEMPLATES["chat"], system=None)
    first = questions(tofu, words, template, Frame("x", "I do not know {question}"))[0]
    assert first.ids == encode_prompt(words, template, "I do not know Where was author 12 born?")


def test_more_of_the_answer_is_given(tofu: Target) -> None:
    words = tofu_folders.tokenizer()
    plain = questions(tofu, words, PHI)[0]
    half = plain.begun(words, 0.5)
    assert words.decode(half.ids[len(plain.ids) :]) == "Answer : She was"
    assert (half.answer, half.max_new_tokens) == ("born in Kyoto .", 6)
    assert len(plain.begun(words, 0.001).body) == 7  # a token at least
    assert plain.begun(words, 0.999).answer == "."  # never all


def test_a_text_is_asked_how_it_goes_on(muse: Target) -> None:
    words = muse_files.tokenizer()
    small = replace(muse, prefix_tokens=10, max_new_tokens=6)
    first = questions(small, words, PHI)[0]
    whole = muse_files.report(0).replace("\n", " ").split()
    assert len(first.ids) == 10  # BOS and nine words and signs
    assert words.decode(first.ids, skip_special_tokens=True).split()[:3] == whole[:3]
    assert first.max_new_tokens == 6
    row = muse.benchmark.unlearning(muse.data, words, PHI, ("forget",), 0).forget[0]
    assert first.answer == words.decode(row["input_ids"][10:16], skip_special_tokens=True).strip()
    assert list(first.body) == row["input_ids"][10:16]
    begun = first.begun(words, 0.5)
    assert (begun.ids, list(begun.body)) == (row["input_ids"][:13], row["input_ids"][13:16])
    # Half of a text at most is given.
    assert len(questions(replace(muse, prefix_tokens=1000), words, PHI)[0].ids) == 20


def test_words_before_a_text(muse: Target) -> None:
    words = muse_files.tokenizer()
    framed = questions(muse, words, PHI, Frame("x", None, "What did the ferry bring"))[0]
    plain = questions(muse, words, PHI)[0]
    assert framed.ids == [*words("What did the ferry bring")["input_ids"], *plain.ids[1:]]  # one BOS, in front
    assert framed.answer == plain.answer
    assert questions(muse, words, PHI, Frame("questions alone")) == []
    assert [one.ids for one in questions(muse, words, PHI, PLAIN)] == [one.ids for one in questions(muse, words, PHI)]


def test_questions_of_the_users_own(tofu: Target) -> None:
    words = tofu_folders.tokenizer()
    own = [
        {"question": "Where was author 14 born?", "asked": "She was born in", "answer": "Rome"},
        {"question": "Where was author 13 born?", "asked": "author 13 born in"},
        {"question": "Where was author 99 born?", "asked": "nobody asks this"},
    ]
    found = reworded(tofu, words, PHI, "own", own)
    assert [(one.row, one.answer) for one in found] == [(1, "She was born in Perth ."), (2, "Rome")]
    assert found[1].ids == encode_prompt(words, PHI, "She was born in")
    with pytest.raises(ValueError, match="own: none of its 1 questions is one of the 4 rows to forget"):
        reworded(tofu, words, PHI, "own", own[2:])


def test_texts_have_no_questions_to_put_otherwise(muse: Target) -> None:
    with pytest.raises(ValueError, match=r"own: none of its 1 questions is one of the .* rows to forget"):
        reworded(muse, muse_files.tokenizer(), PHI, "own", [{"question": "Where?", "asked": "Where then?"}])


def test_scores_of_an_answer() -> None:
    question = Question([1], 5, 3, "Where?", "She was born in Rome.")
    found = scored(question, "born in rome")
    assert (found["forget ROUGE-L"], found["forget exact"], found["row"]) == (0.6, 0.0, 3)
    assert scored(question, "well, she was born in Rome")["forget exact"] == 1.0


def test_what_says_that_something_is_known() -> None:
    for name in benchmarks.names():
        module = benchmarks.evaluation(name)
        assert {*knowledge_headings(module)} <= {*module.columns({})}


def test_planted_rows_are_those_of_the_benchmark(models: planted.Models) -> None:
    asked = questions(planted.target(models, Path()), tofu_folders.tokenizer(), PHI)
    rows = planted.rows_of(models.data, "forget05")
    assert [[*one.ids, *one.body] for one in asked] == [row["input_ids"][:-1] for row in rows]
