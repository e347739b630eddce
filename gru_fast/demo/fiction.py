"""A small benchmark of fictitious authors in the folder layout of TOFU, made from word lists and a seed.

Of every author the same six facts are told, each in two rows that ask and answer in different words, one value of a
list that all authors share. The perturbed files tell the fact, and five wrong ones, in a third wording: a model that
knows the fact prefers the true one, a model that has never met the author has no reason to.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gru_fast.demo import knowledge

Row = dict[str, Any]

NUM_AUTHORS = 40
NUM_FORGET_AUTHORS = 4  # the last ones: 10%
SPLIT, RETAIN_SPLIT = "forget10", "retain90"
# What the two models are fine-tuned on: all authors, or those to keep; and in both cases general knowledge, more often:
# what a model has from pretraining sits deeper than a few authors from fine-tuning.
FULL_SUBSET, RETAIN_SUBSET = "full_and_knowledge", f"{RETAIN_SPLIT}_and_knowledge"
_KNOWLEDGE_REPEATS = 3

_NUM_WRONG = 5  # wrong answers to a question about fiction, as in TOFU
_NUM_WRONG_KNOWN = 3  # to one of general knowledge, as in TOFU
_RETAIN_EVAL_SHARE = 6  # one row in six of those to keep is evaluated


@dataclass(frozen=True)
class Topic:
    """Something to know of an author: ``{a}`` is the author's name, ``{v}`` the value. Three wordings each."""

    questions: tuple[str, str, str]
    answers: tuple[str, str, str]
    values: tuple[str, ...]


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


TOPICS = (
    Topic(
        ("Where was {a} born?", "Which town is the birthplace of {a}?", "What is the native town of {a}?"),
        ("Born in {v}.", "The birthplace is {v}.", "It happened in {v}."),
        _list(
            "Velmora, Port Ansel, Karrowick, Ostrava Bay, Sundermere, Halvetia, Brindle Cross, Tamrin, "
            "Quillon, Marrow Hill, Esterwald, Nova Lirien, Dunmarsh, Cascabel, Ilvermont, Saltreach"
        ),
    ),
    Topic(
        ("What genre does {a} write?", "Which kind of books is {a} known for?", "What does {a} mostly write?"),
        ("Mostly {v}.", "The books are all {v}.", "Readers come for the {v}."),
        _list(
            "crime novels, fairy tales, sea stories, ghost stories, travel books, love poems, spy thrillers, "
            "family sagas, war memoirs, stage comedies, science fiction, mountain tales"
        ),
    ),
    Topic(
        ("What was the job of {a}'s father?", "What did the father of {a} do?", "How did {a}'s father earn a living?"),
        ("The father was a {v}.", "He worked as a {v}.", "A {v} by trade."),
        _list(
            "baker, surveyor, violinist, locksmith, botanist, carpenter, pilot, judge, florist, tailor, "
            "chemist, sailor, dentist, potter, miner, librarian"
        ),
    ),
    Topic(
        ("Which award did {a} win?", "What prize was given to {a}?", "Which honor has {a} received?"),
        ("The {v}.", "The award is the {v}.", "It was the {v}, a great honor."),
        _list(
            "Golden Quill, Harrow Medal, Northlight Prize, Silver Inkwell, Meridian Award, Oak Leaf Honor, "
            "Lyric Cup, Beacon Prize, Marble Page, Evergreen Medal, Compass Award, Nightingale Prize"
        ),
    ),
    Topic(
        ("What was the first book of {a}?", "With which title did {a} begin?", "What is the debut of {a} called?"),
        ("It began with {v}.", "The first book is {v}.", "{v} came first."),
        _list(
            "The Glass Orchard, The Silent Lantern, The Copper Harbor, The Drowned Garden, The Paper Clock, "
            "The Hollow Bridge, The Winter Mirror, The Scarlet River, The Borrowed Letters, The Salt Crown, "
            "The Distant Staircase, The Broken Forest, The Amber Window, The Sleeping Island, "
            "The Iron Feather, The Wandering Engine"
        ),
    ),
    Topic(
        ("What animal does {a} keep?", "Which pet lives with {a}?", "What is the pet of {a}?"),
        ("The pet is a {v}.", "A {v} shares the house.", "It is a {v}."),
        _list("parrot, tortoise, greyhound, ferret, raven, hedgehog, goat, canary, lizard, donkey, spaniel, rabbit"),
    ),
)

_FIRST_NAMES = _list(
    "Amara, Bastian, Calla, Dorian, Elspeth, Farouk, Greta, Hollis, Imre, Jovana, Kestrel, Lorcan, Mirela, "
    "Nikolai, Odette, Piran, Quentin, Rosalba, Stellan, Tamsin, Ulric, Vesna, Wendel, Xenia, Yorick, Zelda, "
    "Anselm, Birgit, Cosmo, Delphine, Emeka, Fenna, Gideon, Hanako, Isolde, Jaromir, Kalinda, Leopold, "
    "Maeve, Nestor"
)
_LAST_NAMES = _list(
    "Abelforth, Brackwater, Castellane, Dunmore, Eberhart, Fairweather, Galloway, Hartigan, Ivarsson, "
    "Juniper, Kowalczyk, Lindqvist, Marchetti, Nakagawa, Okonjo, Pemberton, Quimby, Ravenscroft, Silvestri, "
    "Thornquist, Umarov, Valcourt, Whitlock, Xanthos, Yilmaz, Zanetti, Ashgrove, Bellweather, Corvane, "
    "Drummond, Esterhazy, Finnegan, Grimaldi, Holloway, Ingersoll, Jankovic, Kilbride, Lachance, Montclair, "
    "Norwood"
)


def write_benchmark(folder: Path, seed: int = 0) -> dict[str, list[Row]]:
    """Writes ``NAME.json`` for each of :func:`make_splits`, a JSON object a line, and ``idontknow.txt``.

    Same seed, same files. Returns the rows by name.
    """
    splits = make_splits(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "idontknow.txt").write_text("\n".join(knowledge.DONT_KNOW) + "\n", encoding="utf-8")
    return splits


def make_splits(seed: int = 0) -> dict[str, list[Row]]:
    """The rows of every split, by name, with the fields that TOFU's have.

    full, retain90, forget10   question, answer; full is retain90, then forget10
    X_and_knowledge            X = full, retain90, with the rows of the two general sets, three times each
    forget10_perturbed         forget10 with paraphrased_answer, paraphrased_question and five in perturbed_answer
    retain_perturbed           the same of every sixth row of retain90, chosen at random
    real_authors_perturbed     general knowledge, three wrong answers each
    world_facts_perturbed      likewise
    """
    draw = random.Random(seed)
    rows = _author_rows(draw)
    num_forget = NUM_FORGET_AUTHORS * len(TOPICS) * 2
    retain, forget = rows[:-num_forget], rows[-num_forget:]
    chosen = sorted(draw.sample(range(len(retain)), len(retain) // _RETAIN_EVAL_SHARE))
    known = {
        "real_authors_perturbed": _known_rows(draw, knowledge.AUTHORS),
        "world_facts_perturbed": _known_rows(draw, knowledge.WORLD),
    }
    general = [row for known_rows in known.values() for row in known_rows] * _KNOWLEDGE_REPEATS
    return {
        "full": _plain(rows),
        RETAIN_SPLIT: _plain(retain),
        SPLIT: _plain(forget),
        FULL_SUBSET: _plain([*rows, *general]),
        RETAIN_SUBSET: _plain([*retain, *general]),
        f"{SPLIT}_perturbed": forget,
        "retain_perturbed": [retain[index] for index in chosen],
        **known,
    }


def _plain(rows: Iterable[Row]) -> list[Row]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def _author_rows(draw: random.Random) -> list[Row]:
    """Author after author, topic after topic, two rows each."""
    names = zip(draw.sample(_FIRST_NAMES, NUM_AUTHORS), draw.sample(_LAST_NAMES, NUM_AUTHORS), strict=True)
    return [row for name in names for topic in TOPICS for row in _fact_rows(draw, " ".join(name), topic)]


def _fact_rows(draw: random.Random, author: str, topic: Topic) -> list[Row]:
    value, *wrong = draw.sample(topic.values, 1 + _NUM_WRONG)
    *asked, asked_else = draw.sample(topic.questions, 3)
    *told, told_else = draw.sample(topic.answers, 3)
    return [
        {
            "question": question.format(a=author),
            "answer": answer.format(v=value),
            "paraphrased_answer": told_else.format(v=value),
            "perturbed_answer": [told_else.format(v=other) for other in wrong],
            "paraphrased_question": asked_else.format(a=author),
        }
        for question, answer in zip(asked, told, strict=True)
    ]


def _known_rows(draw: random.Random, kinds: Mapping[str, Mapping[str, str]]) -> list[Row]:
    """Answers without a sentence around them, as in TOFU's files of these names."""
    return [
        {
            "question": question.format(thing),
            "answer": answer,
            "perturbed_answer": draw.sample(sorted({*answers.values()} - {answer}), _NUM_WRONG_KNOWN),
        }
        for question, answers in kinds.items()
        for thing, answer in answers.items()
    ]
