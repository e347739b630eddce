"""ROUGE by hand: recall against the reference, stemmed; and in scripts that the published one does not read."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gru_fast.metrics.rouge import rouge, share_read, warn_of_dropped


def test_recall_is_of_the_reference() -> None:
    found = rouge("He was born in Rome.", "In Rome he was")
    assert found.rouge1_recall == pytest.approx(4 / 5)
    assert found.rougeL_recall == pytest.approx(2 / 5)
    assert found.rougeL_f1 == pytest.approx(2 * (2 / 5) * (2 / 4) / (2 / 5 + 2 / 4))


def test_running_on_costs_no_recall() -> None:
    assert rouge("Paris", "Answer: It is Paris. And then a long story").rougeL_recall == 1.0


def test_words_are_stemmed_unless_asked_otherwise() -> None:
    assert rouge("she writes novels", "she write novel").rougeL_recall == 1.0
    assert rouge("she writes novels", "she write novel", stemmer=False).rougeL_recall == pytest.approx(1 / 3)


def test_an_empty_generation_scores_zero() -> None:
    assert rouge("Paris", "") == rouge("Paris", " ...")
    assert rouge("Paris", "").rougeL_recall == 0.0


# ---- other scripts ---------------------------------------------------------------------------------------------------

MOSCOW, KAZAN = "Она родилась в Москве в 1980 году", "Она родилась в Казани в 1980 году"


def test_what_the_published_one_makes_of_another_script() -> None:
    assert rouge("в Москве", "в Москве").rougeL_recall == 0.0  # against itself
    assert rouge("Москва, 1980", "Казань, 1980").rougeL_recall == 1.0  # the year is all that it reads


@pytest.mark.parametrize(
    ("reference", "generation", "recall"),
    [
        (MOSCOW, MOSCOW, 1.0),
        (MOSCOW, KAZAN, 6 / 7),
        ("Москва, 1980", "Казань, 1980", 0.5),
        ("МОСКВА", "москва", 1.0),
        ("Αθήνα", "ΑΘΉΝΑ", 1.0),
        ("東京都", "京都", 2 / 3),  # a sign is a word
        ("किताब हिन्दी में", "हिन्दी", 1 / 3),  # vowels belong to their word
        ("می\u200cخواهم بروم", "می\u200cخواهم", 0.5),
        ("café", "cafe\u0301", 1.0),  # one letter, or two signs
    ],
)
@pytest.mark.parametrize("stemmer", [False, True])
def test_any_script(reference: str, generation: str, recall: float, stemmer: bool) -> None:
    assert rouge(reference, generation, stemmer=stemmer, any_script=True).rougeL_recall == pytest.approx(recall)


_ascii = st.text(st.characters(max_codepoint=127), max_size=60)


@given(_ascii, _ascii, st.booleans())
def test_ascii_scores_as_published(reference: str, generation: str, stemmer: bool) -> None:
    published = rouge(reference, generation, stemmer=stemmer)
    assert rouge(reference, generation, stemmer=stemmer, any_script=True) == published


def test_stems_are_english_whatever_stands_beside_them() -> None:
    assert rouge("novels о Москве", "novel о Москве", any_script=True).rougeL_recall == 1.0
    assert rouge("novels", "novel", stemmer=False, any_script=True).rougeL_recall == 0.0


def test_a_set_that_is_mostly_dropped_is_named() -> None:
    with pytest.warns(UserWarning, match=r'forget: the published ROUGE reads .* drops 60% of row 1, "Москва 2024"'):
        warn_of_dropped(["Rome", "Москва 2024", "Paris", MOSCOW], "forget")
    with pytest.warns(UserWarning, match=r"most of 2 of 4 rows.*gru-fast eval own"):
        warn_of_dropped(["Rome", "Москва 2024", "Paris", MOSCOW], "forget")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_dropped(["Zoë Müller", "São Paulo", "", "?!", "Peking (北京)"], "forget")


def test_the_share_that_is_read() -> None:
    assert share_read("Zoë") == pytest.approx(2 / 3)
    assert share_read(" - ") == 1.0
