"""The demo's made-up benchmark: the fields and promises of TOFU's files, and facts that can be told apart."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from gru_fast.benchmarks import tofu
from gru_fast.demo import fiction, knowledge
from gru_fast.demo.fiction import FULL_SUBSET, NUM_AUTHORS, RETAIN_SPLIT, RETAIN_SUBSET, SPLIT, TOPICS, make_splits

PER_AUTHOR = 12  # six facts, two rows each


@pytest.fixture(scope="module")
def splits() -> dict[str, list[fiction.Row]]:
    return make_splits(seed=3)


def test_sizes(splits: dict[str, list[fiction.Row]]) -> None:
    known = 48 * 3
    assert {name: len(rows) for name, rows in splits.items()} == {
        "full": 480,
        "retain90": 432,
        "forget10": 48,
        "full_and_knowledge": 480 + known,
        "retain90_and_knowledge": 432 + known,
        "forget10_perturbed": 48,
        "retain_perturbed": 72,
        "real_authors_perturbed": 24,
        "world_facts_perturbed": 24,
    }


def test_full_is_what_is_kept_then_what_is_forgotten(splits: dict[str, list[fiction.Row]]) -> None:
    assert splits["full"] == splits[RETAIN_SPLIT] + splits[SPLIT]
    assert splits[FULL_SUBSET][:480] == splits["full"]
    assert splits[RETAIN_SUBSET][:432] == splits[RETAIN_SPLIT]
    assert splits[FULL_SUBSET][480:] == splits[RETAIN_SUBSET][432:]
    assert all(row.keys() == {"question", "answer"} for row in splits[FULL_SUBSET])


def test_questions_are_all_different(splits: dict[str, list[fiction.Row]]) -> None:
    questions = [row["question"] for row in splits["full"]]
    assert len(set(questions)) == len(questions)


def authors_in(rows: list[fiction.Row]) -> set[str]:
    """Names, two words with capitals one after the other, that all questions of ``rows`` share."""
    return set.intersection(*(set(re.findall(r"(?<!^)[A-Z]\w+ [A-Z]\w+", row["question"])) for row in rows))


def test_no_author_is_both_kept_and_forgotten(splits: dict[str, list[fiction.Row]]) -> None:
    rows = splits["full"]
    authors = [authors_in(rows[at : at + PER_AUTHOR]) for at in range(0, len(rows), PER_AUTHOR)]
    assert all(len(names) == 1 for names in authors)
    assert len(set.union(*authors)) == NUM_AUTHORS
    forgotten = set.union(*authors[-fiction.NUM_FORGET_AUTHORS :])
    assert not any(name in row["question"] for row in splits[RETAIN_SPLIT] for name in forgotten)


def test_perturbed_rows(splits: dict[str, list[fiction.Row]]) -> None:
    """A third wording, the true value in the paraphrase and none of the wrong answers, five different ones."""
    plain = [{name: row[name] for name in ("question", "answer")} for row in splits[f"{SPLIT}_perturbed"]]
    assert plain == splits[SPLIT]
    for number, row in enumerate(splits[f"{SPLIT}_perturbed"]):
        topic = TOPICS[number // 2 % len(TOPICS)]
        told = [(value, wording) for value in topic.values for wording in topic.answers]
        (value,) = {v for v, wording in told if wording.format(v=v) == row["answer"]}
        assert row["paraphrased_answer"] in {wording.format(v=value) for wording in topic.answers} - {row["answer"]}
        (frame,) = (wording for wording in topic.answers if wording.format(v=value) == row["paraphrased_answer"])
        wrong = {frame.format(v=other) for other in topic.values if other != value}
        assert len(set(row["perturbed_answer"])) == 5
        assert set(row["perturbed_answer"]) <= wrong


def test_two_rows_tell_one_fact_in_different_words(splits: dict[str, list[fiction.Row]]) -> None:
    rows = splits[f"{SPLIT}_perturbed"]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["question"] != second["question"]
        assert first["answer"] != second["answer"]
        assert first["paraphrased_answer"] == second["paraphrased_answer"]
        assert first["paraphrased_question"] not in {first["question"], second["question"]}


def test_rows_that_are_evaluated_are_of_those_to_keep(splits: dict[str, list[fiction.Row]]) -> None:
    kept = [row["question"] for row in splits[RETAIN_SPLIT]]
    places = [kept.index(row["question"]) for row in splits["retain_perturbed"]]
    assert places == sorted(set(places))


@pytest.mark.parametrize(
    ("name", "kinds"), [("real_authors_perturbed", knowledge.AUTHORS), ("world_facts_perturbed", knowledge.WORLD)]
)
def test_general_knowledge(splits: dict[str, list[fiction.Row]], name: str, kinds: dict[str, dict[str, str]]) -> None:
    """Three wrong answers, right ones of other rows of the same kind."""
    expected = [(question.format(thing), answer) for question, of in kinds.items() for thing, answer in of.items()]
    assert [(row["question"], row["answer"]) for row in splits[name]] == expected
    for row in splits[name]:
        (others,) = (set(of.values()) for question, of in kinds.items() if row["question"] in map(question.format, of))
        assert len(set(row["perturbed_answer"])) == 3
        assert set(row["perturbed_answer"]) <= others - {row["answer"]}


def test_same_seed_same_files(tmp_path: Path) -> None:
    def digests(folder: str, seed: int) -> dict[str, str]:
        fiction.write_benchmark(tmp_path / folder, seed)
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((tmp_path / folder).iterdir())}

    first = digests("a", 1)
    assert first == digests("b", 1)
    other = digests("c", 2)
    assert {name for name in first if first[name] == other[name]} == {"idontknow.txt"}


def test_the_files_are_read_as_those_of_tofu(tmp_path: Path) -> None:
    splits = fiction.write_benchmark(tmp_path)
    assert {name: rows for name, rows in splits.items() if tofu.load(name, tmp_path) != rows} == {}
    assert tofu.retain_of(SPLIT) == RETAIN_SPLIT
    sets = tofu.load_eval_sets(SPLIT, tmp_path)
    assert [len(rows) for rows in sets.values()] == [48, 72, 24, 24]
    assert tofu.idk_answers(tmp_path) == list(knowledge.DONT_KNOW)
