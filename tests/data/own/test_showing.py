"""What would be trained, as text: which tokens are scored, with colours and without."""

from __future__ import annotations

import io

import pytest
from words import word_tokenizer

from gru_fast.data.own import show
from gru_fast.data.own.showing import wants_color
from gru_fast.data.sequences import Encoded

TOKENS = word_tokenizer(["a b c"])
ROW: Encoded = {"input_ids": [3, 4, 5, 1], "labels": [-100, -100, 5, 1]}


def test_runs_of_tokens_and_what_is_scored() -> None:
    assert show([("x, piece 1 of 1", ROW)], TOKENS) == "x, piece 1 of 1: 4 tokens, 2 scored\n- a|b\n+ c|</s>"
    # Label 0 has nothing before it.
    whole: Encoded = {"input_ids": [3, 4], "labels": [3, 4]}
    assert show([("x", whole), ("y", ROW)], TOKENS).split("\n\n")[0] == "x: 2 tokens, 1 scored\n- a\n+ b"


def test_colours() -> None:
    shown = show([("x", ROW)], TOKENS, color=True)
    assert shown == "x: 4 tokens, 2 scored\n\x1b[2m- a|b\x1b[0m\n\x1b[32m+ c|</s>\x1b[0m"


def test_line_breaks_and_parts_of_letters_can_be_seen() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Tokenizer(models.BPE(alphabet, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokens = PreTrainedTokenizerFast(tokenizer_object=bpe)
    ids = tokens("a\n\x1bé")["input_ids"]
    assert show([("x", {"input_ids": ids, "labels": ids})], tokens).splitlines()[1:] == ["- a", "+ \\n|\\e|Ã|©"]


def test_when_there_are_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert (wants_color(Terminal()), wants_color(io.StringIO())) == (True, False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_color(Terminal())
    monkeypatch.setenv("NO_COLOR", "")  # as if it were not there
    assert wants_color(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_color(Terminal())
