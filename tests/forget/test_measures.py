"""Measures of documents: by hand from token scores, and of a tiny model against float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import llama

from gru_fast.data.own import Piece
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget import measures
from gru_fast.forget.exam import Texts
from gru_fast.forget.measures import Known, by_document, of_set, perplexity
from gru_fast.metrics.scores import TextRecord


class Letters:
    """A tokenizer: token 3 is "a", 4 "b", ...; each a word."""

    eos_token_id, pad_token_id = 2, 0

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(chr(ord("a") + i - 3) for i in ids if i >= 3)


def piece(document: str, ids: list[int], index: int = 0, *, unscored: int = 0, head: int = 0, count: int = 1) -> Piece:
    return Piece(
        document, index, {"input_ids": ids, "labels": [-100] * unscored + ids[unscored:]}, 0, len(ids), head, count
    )


def record(probabilities: list[float], correct: str) -> TextRecord:
    return TextRecord(0, log_probs=tuple(map(math.log, probabilities)), correct=correct)


def test_a_document_is_the_mean_over_its_tokens_not_over_its_pieces() -> None:
    pieces = [piece("a", [3] * 5), piece("a", [3] * 3, 1), piece("b", [3] * 3)]
    found = by_document(pieces, [record([0.5] * 4, "1101"), record([0.125] * 2, "01"), record([0.25] * 2, "11")])
    assert [each.document for each in found] == ["a", "b"]
    assert found[0].tokens == 6
    assert found[0].probability == pytest.approx(2 ** (-(4 * 1 + 2 * 3) / 6))
    # The last token of a piece is left out: 110 -> 2/3, strength 0; 0 -> 0.
    assert found[0].exact_memorization == pytest.approx(4 / 6 * 2 / 3)
    assert found[0].extraction_strength == 0.0
    assert found[1].extraction_strength == found[1].exact_memorization == 1.0


def test_a_set_is_the_mean_over_its_documents() -> None:
    whole = of_set("all", [Known("a", 100, 0.5, 0.2, 0.0), Known("b", 2, 0.125, 0.8, 0.5)])
    assert (whole.document, whole.tokens) == ("all", 102)
    assert whole.probability == pytest.approx(0.25)
    assert (whole.exact_memorization, whole.extraction_strength) == pytest.approx((0.5, 0.25))
    with pytest.raises(ValueError, match="all: expected at least one document"):
        of_set("all", [])


def test_perplexity_is_over_all_tokens() -> None:
    assert perplexity([record([0.5], "1"), record([0.25, 0.25, 0.25], "000")]) == pytest.approx(2**1.75)


def test_records_of_a_model_are_those_of_float64() -> None:
    model = llama().eval()
    rows = [piece("a", [5, 9, 7, 30, 12]), piece("a", [7, 30, 12, 8], 1, unscored=2)]
    found = measures.records(Scorer(model, Letters(), 0, batch_size=2), rows)
    for each, row in zip(found, rows, strict=True):
        ids = torch.tensor([row.row["input_ids"]])
        log_probs = model.double()(ids).logits[0].detach().log_softmax(-1)
        model.float()
        at = [t for t, label in enumerate(row.row["labels"]) if t and label != -100]
        assert each.log_probs == pytest.approx([float(log_probs[t - 1, ids[0, t]]) for t in at], abs=1e-5)
        assert each.correct == "".join(str(int(log_probs[t - 1].argmax() == ids[0, t])) for t in at)


def test_membership_is_near_one_where_the_documents_are_known() -> None:
    def full(probability: float, correct: str) -> TextRecord:
        return TextRecord(0, (math.log(probability),) * 3, correct, (-3.0,) * 3, (1.0,) * 3, zlib_bytes=20)

    forget, holdout = [full(0.9, "111")] * 2, [full(0.1, "000"), full(0.2, "000")]
    assert measures.membership(forget, holdout) == dict.fromkeys(measures.ATTACKS, 1.0)
    assert measures.membership(holdout, holdout) == dict.fromkeys(measures.ATTACKS, 0.5)


# ---- written ---------------------------------------------------------------------------------------------------------


def written_by(scorer_says: str) -> Any:
    """A scorer whose model writes one thing, and notes what it was asked."""
    asked: list[Any] = []

    def write(prompts: list[Any]) -> list[str]:
        asked.extend(prompts)
        return [scorer_says] * len(prompts)

    return SimpleNamespace(write=write, tokenizer=Letters(), asked=asked)


def test_a_text_is_cut_after_its_prefix_a_pair_before_its_answer() -> None:
    scorer = written_by("e f x h")
    text = piece("text", [1, 3, 4, 5, 6, 7, 8, 9, 10], unscored=1, head=1)
    pair = piece("pair", [1, 3, 4, 7, 8], unscored=3)
    found = measures.extractions(scorer, [text, pair], prefix=4, length=3)
    assert [(prompt.ids, prompt.max_new_tokens) for prompt in scorer.asked] == [([1, 3, 4, 5, 6], 3), ([1, 3, 4], 2)]
    first, second = found
    assert (first.prefix, first.truth, first.written) == ("a b c d", "e f g", "e f x h")
    assert (first.longest_run, first.words, first.exact) == (2, 3, pytest.approx(2 / 3))
    assert first.rougeL_recall == pytest.approx(2 / 3)
    assert (second.truth, second.exact, second.longest_run) == ("e f", 1.0, 2)


def test_no_more_than_half_of_a_piece_is_given_and_no_text_is_kept() -> None:
    scorer = written_by("a")
    found = measures.extractions(scorer, [piece("text", [3, 4, 5, 6])], prefix=32, length=8, keep_text=False)
    assert scorer.asked[0].ids == [3, 4]
    assert (found[0].prefix, found[0].truth, found[0].written, found[0].words) == ("", "", "", 2)


def test_a_later_piece_goes_on_where_the_one_before_ended() -> None:
    scorer = written_by("a")
    measures.extractions(scorer, [piece("a", [3, 4, 5, 6, 7], 1, unscored=2, count=2)], prefix=32, length=8)
    assert scorer.asked[0].ids == [3, 4]


def test_the_worst_comes_first() -> None:
    found = [
        measures.Extraction("a", 0, "", "", "", rougeL_recall=0.9, longest_run=2, words=9, exact=0.0),
        measures.Extraction("a", 1, "", "", "", rougeL_recall=0.1, longest_run=5, words=9, exact=0.0),
        measures.Extraction("b", 0, "", "", "", rougeL_recall=0.5, longest_run=2, words=9, exact=0.0),
    ]
    assert [(each.document, each.piece) for each in measures.worst_first(found)] == [("a", 1), ("a", 0), ("b", 0)]
    assert measures.worst_by_document(found)["a"].piece == 1


def test_quick_looks_are_at_some_pieces_of_every_document() -> None:
    forget = [piece(name, [3, 4, 5], index) for name in "abc" for index in range(4)]
    texts = Texts(forget, {"neutral": forget}, forget, "holdout").some(6)
    assert [(p.document, p.index) for p in texts.forget] == [(name, index) for name in "abc" for index in (0, 2)]
    assert len(texts.kept["neutral"]) == 6
    assert len(Texts(forget, {}, [], "holdout").some(1).forget) == 3
