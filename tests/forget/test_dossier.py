"""The reports of a request made up here: what they say, and that no text of a model gets out of its place."""

from __future__ import annotations

import dataclasses

import pytest
from dossiers import OWN, Reader, manifest, view

from gru_fast.forget import dossier, words
from gru_fast.forget.level import Level
from gru_fast.forget.measures import Known


def test_the_page_is_whole_and_texts_stay_in_their_places() -> None:
    read = Reader(dossier.page(view(manifest())))
    assert read.open == []
    assert "script" not in read.tags
    assert read.text.count("<script>alert(1)</script>") == 3  # a name; the document; written before
    for said in ("All 2 documents are known no better", "1 min 01 s", "npo_gd, rectified (GRU)", "96.2%", "aa", "bb"):
        assert said in read.text
    assert {"svg", "polyline"} <= read.tags


def test_the_markdown_keeps_its_table() -> None:
    lines = dossier.markdown(view(manifest())).splitlines()
    table = [line for line in lines if line.startswith(("| leak", "| document"))]
    assert [line.replace("\\|", "").count("|") for line in table] == [9, 9, 9]
    assert "- after: something else" in lines
    assert not any("<script>" in line for line in lines)


@pytest.mark.parametrize(
    ("verdict", "still", "said"),
    [
        ("removed", "", "All 2 documents are known no better than text that the model has never seen; 96.2% of"),
        ("not removed", "a", "Not removed: 1 of 2 documents are still known. This is the strongest removal found"),
        ("not removed", "a new", "Not removed: 1 of 2 documents are still known; 1 that was not known before is now."),
        ("not removed", "new", "Not removed: 1 that was not known before is now. This is the strongest removal"),
        ("not removed", "", "Not removed: the documents together are still known."),
        ("unknown", "", "Nothing to forget: the model does not know these documents. Nothing was trained."),
    ],
)
def test_the_verdict_in_words(verdict: str, still: str, said: str) -> None:
    assert words.headline(manifest(verdict, still.split())).startswith(said)


@pytest.mark.parametrize(
    ("verdict", "title", "said"),
    [
        (
            "removed",
            "Removed, by a mild level",
            "All 2 documents are no better known than text the model writes itself",
        ),
        (
            "unknown",
            "Nothing to forget that could be seen: not told apart",
            "Nothing to forget that could be seen: not",
        ),
    ],
)
def test_of_its_own_text_nothing_is_said_that_was_not_compared(verdict: str, title: str, said: str) -> None:
    ours = manifest(verdict, level=OWN)
    assert words.title(ours).startswith(title)
    assert words.headline(ours).startswith(said)
    shown = dataclasses.replace(view(ours), level=OWN)
    for report in (dossier.markdown(shown), dossier.page(shown)):
        own_words = report.replace("with text like the documents that the model has never seen", "").replace(
            "with text like the documents that it has never seen", ""
        )
        assert "never seen" not in own_words
        assert "does not know" not in own_words
        assert "the model&#39;s own text" in report or "the model's own text" in report
    assert "never seen" not in OWN.rule()
    assert "not told apart" in OWN.says_unknown


def test_limits_are_shown_as_they_are_applied() -> None:
    said = manifest()
    assert "| *known above* | | 0.0656 | 0.431 | 0 + one token | | | |" in dossier.markdown(view(said))
    assert "0 + one token" in dossier.page(view(said))
    level = Level.of("holdout", [Known(str(i), 9, 0.01, exact, 0.0) for i, exact in enumerate((0.1, 0.2, 1.0))])
    blind = dataclasses.replace(view(said), level=level)
    assert "1.57 (blind)" in dossier.markdown(blind)
    assert "1.57 (blind)" in dossier.page(blind)


def test_a_mild_level_and_a_failure_are_named() -> None:
    sentences = " ".join(words.guarantee(manifest("not removed", ["a"], OWN)))
    assert "the level is a mild one" in sentences
    assert "With this --keep it was not reached." in sentences
    assert "It does not say that the model is one that never saw the documents" in sentences
