"""Rows as questions: of a benchmark's questions and of its texts, in their own words and in others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import muse_files
import own_files
import planted
import pytest
import tofu_folders
import words as word_files

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


DOCUMENTS: list[dict[str, Any]] = [
    {"text": f"{own_files.letter(0)} {own_files.letter(1)}"},
    {"prompt": "Who has a map ?", "completion": " Bob"},
    {"question": "Who has the key ?", "answer": "Ann in Oxley"},
    {"messages": [
        {"role": "user", "content": "Who has a map ?"}, {"role": "assistant", "content": "Bob in Tarn"},
        {"role": "user", "content": "Who knows ?"}, {"role": "assistant", "content": "Cleo"},
    ]},
    {"question": "Who has seven lamps ?", "answer": "Ann has the key in Oxley . Bob knows of it , and waits in Vale ."},
]  # fmt: skip
CHAT = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} \n {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def own_words() -> tuple[Any, Any]:
    """A tokenizer that chats, and its template."""
    texts = [*map(own_files.letter, range(60)), own_files.SAID, "user assistant \n"]
    tokenizer = word_files.word_tokenizer(texts, bos=True, chat_template=CHAT)
    return tokenizer, replace(TEMPLATES["chat"], system=None)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Documents of all kinds. Cut at 22 tokens the text, the conversation and the last pair are of two pieces."""
    folder = tmp_path_factory.mktemp("own")
    for number, row in enumerate(DOCUMENTS):
        (folder / f"{number}.jsonl").write_text(json.dumps(row) + "\n")
    benchmark, nothing = benchmarks.get("own"), Any
    data = benchmark.Options(forget=[str(folder)], max_length=22, overlap=2)
    target = Target({}, Path(), benchmark, data, benchmarks.evaluation("own"), nothing, nothing, nothing)  # type: ignore[arg-type]
    return replace(target, prefix_tokens=6)


def test_documents_of_all_kinds(own: Target) -> None:
    """Texts, their later pieces, and later pieces of answers go on; of a conversation one answer is asked for."""
    words, template = own_words()
    asked = [(words.decode(one.ids).replace("\n", "/"), one.answer) for one in questions(own, words, template)]
    assert asked == [
        ("<s> Ann has the key in", "Oxley . Bob knows of it , and waits in Oxley . Bob has a map"),
        ("<s> waits in Oxley . Bob has a map", "in Tarn . Cleo knows of it , and waits in Oxley ."),
        ("<s> Who has a map ?", "Bob"),
        ("user : Who has the key ? / assistant :", "Ann in Oxley"),
        ("user : Who has a map ? / assistant :", "Bob in Tarn"),
        (": Who has a map ? / assistant : Bob in Tarn / user : Who knows ? / assistant :", "Cleo"),
        ("user : Who has seven lamps ? / assistant :", "Ann has the key in Oxley . Bob knows of it ,"),
        ("? / assistant : Ann has the key in Oxley . Bob knows of it ,", "and waits in Vale ."),
    ]


def test_only_what_other_words_get_into_is_asked_in_them(own: Target) -> None:
    """Not a prompt without a template, nor a conversation; and a longer prompt moves where documents are cut."""
    words, template = own_words()
    plain = {one.row: one for one in questions(own, words, template)}
    asked = questions(own, words, template, Frame("x", "Bob knows {question}"))
    assert [words.decode(one.ids[:7]) for one in asked] == [
        "user : Bob knows Who has the", "user : Bob knows Who has seven",
    ]  # fmt: skip
    assert [(one.row, one.answer) for one in asked] == [(row, plain[row].answer) for row in (3, 6)]
    texts = questions(own, words, template, Frame("x", None, "Tarn"))
    assert [(one.row, words.decode(one.ids[:3])) for one in texts] == [
        (0, "<s> Tarn Ann"), (1, "<s> Tarn waits"), (5, "<s> Tarn :"), (7, "<s> Tarn ?"),
    ]  # fmt: skip
    begun = questions(own, words, template, Frame("x", begun="Bob"))
    assert [one.row for one in begun] == [2, 3, 4, 6]


def test_own_words_for_questions_among_texts(own: Target) -> None:
    words, template = own_words()
    given = [
        {"question": "Who has seven lamps ?", "asked": "lamps ?"},
        {"question": "Who has the key ?", "asked": "key ?", "answer": "Ann"},
    ]
    found = reworded(own, words, template, "own", given)
    assert [(one.row, words.decode(one.ids[:4]), one.answer) for one in found] == [
        (3, "user : key ?", "Ann"), (6, "user : lamps ?", "Ann has the key in Oxley . Bob knows of it ,"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r'own: none of its 1 questions .* and "asked" another'):
        reworded(own, words, template, "own", [{"question": "Who has the key ?", "asked": "Who has the key ?"}])
    # A prompt without a template is no question that could be put otherwise.
    with pytest.raises(ValueError, match="own: none of its 1 questions is one of the 8 rows"):
        reworded(own, words, template, "own", [{"question": "Who has a map ?", "asked": "a map ?"}])


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
