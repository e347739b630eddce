"""Runs of words, by hand."""

from __future__ import annotations

from gru_fast.data.ngrams import Known, repetition, words_of


def test_words() -> None:
    assert words_of("Hello, WORLD! It's 5.") == ["hello", "world", "it", "s", "5"]
    assert words_of("日本語 ab") == ["日", "本", "語", "ab"]
    assert words_of("Straße") == words_of("STRASSE")


def test_words_of_other_scripts() -> None:
    assert words_of("zu\u0308rich") == words_of("Zürich") == ["zürich"]
    assert words_of("हिन्दी में") == ["हिन्दी", "में"]
    assert words_of("co\u00adoperate") == ["cooperate"]  # a soft hyphen
    assert words_of("ការ\u200bងារ")[0] == "ក"  # Khmer: a sign is a word, a zero-width space is none
    assert words_of("မြန်မာ") == list("မြန်မာ")
    assert words_of("snake_case, “quoted”") == ["snake", "case", "quoted"]
    assert words_of("ｆｕｌｌ　ｗｉｄｔｈ") == ["full", "width"]


def test_repetition_is_the_share_of_runs_that_were_there_before() -> None:
    assert repetition(["a", "b", "c", "d", "a", "b", "c", "d"], 4) == 1 - 4 / 5
    assert repetition(["a", "b", "c"], 4) == 0.0
    assert repetition(["a", "b", "c", "d", "e", "f"], 4) == 0.0


def test_known_runs() -> None:
    known = Known(3)
    known.add(["a", "b", "c", "d"])
    assert known.any_in(["x", "b", "c", "d", "y"])
    assert not known.any_in(["a", "b", "x", "c", "d"])
    assert known.share_of(["a", "b", "c", "d", "x"]) == 2 / 3
    assert known.share_of(["a", "b"]) == 0.0


def test_a_short_text_counts_as_a_whole() -> None:
    known = Known(8)
    known.add(["the", "key", "is", "4711"], whole_if_short=True)
    known.add(["it", "is"], whole_if_short=True)
    assert known.any_in(["so", "the", "key", "is", "4711", "then"])
    assert not known.any_in(["the", "key", "is", "4712"])
    assert not known.any_in(["it", "is", "so"])
