"""How a model is asked about a benchmark's rows, and what is kept of it beside the records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sharp
import torch
from sharp import END, Words, sequences

from gru_fast.evaluation.asking import Prompt, Scorer, score_rows
from gru_fast.evaluation.generation import generate
from gru_fast.evaluation.record_folder import RowSet
from gru_fast.evaluation.scoring import gradient_norms, label_log_probs, losses, token_scores
from gru_fast.models.identity import fingerprint


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(sharp.model(), Words(), END, batch_size=4)


def test_all_are_asked_in_the_same_way(scorer: Scorer) -> None:
    rows, how = sequences(), {"batch_size": 4, "pad_token_id": END}
    assert scorer.losses(rows) == losses(scorer.model, rows, **how)
    by_token = token_scores(scorer.model, rows, **how)
    for found, expected in (
        (scorer.log_probs(rows), label_log_probs(scorer.model, rows, **how)),
        ([one.means for one in scorer.token_scores(rows)], [one.means for one in by_token]),
    ):
        assert all(one.equal(other) for one, other in zip(found, expected, strict=True))
    assert scorer.gradient_norms(rows[:2]) == gradient_norms(scorer.model, rows[:2])
    written = scorer.write([Prompt([3, 4], 6), Prompt([5], 2)])
    assert written == generate(scorer.model, Words(), [[3, 4], [5]], [6, 2], batch_size=4)
    assert len(written[0].split()) > 2 >= len(written[1].split())


def test_what_is_written_together_stays_within_the_positions_of_the_model() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    # Each writes until it is 24 tokens and one more: together, the longest would go on to 40.
    prompts = [Prompt([3 + i % 20 for i in range(count)], 25 - count) for count in (4, 20, 20, 4)]
    alone = [generate(model, Words(), [one.ids], one.max_new_tokens, batch_size=1)[0] for one in prompts]
    assert Scorer(model, Words(), END, batch_size=4).write(prompts) == alone
    assert Scorer(model, Words(), END, batch_size=4).write([]) == []


def test_a_row_that_is_known_almost_to_its_end_stays_within_them_beside_others() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    prompts = [Prompt([3, 4, 5, 6], 18)] * 8  # the first has one token left to write, the others 18
    alone = generate(model, Words(), [prompts[0].ids], 18, batch_size=1)[0]
    begun = [[*map(int, alone.split())][:17], *[[]] * 7]
    assert len(begun[0]) == 17
    assert Scorer(model, Words(), END, batch_size=8).write(prompts, begun=begun) == [alone] * 8


def test_the_summary_is_told_what_the_records_depend_on(tmp_path: Path, scorer: Scorer) -> None:
    def work(rows: list[Any]) -> list[dict[str, Any]]:
        return [{"loss": one.loss} for one in scorer.losses(rows)]

    rows = sequences()
    sets = [RowSet("some", rows, work, [len(row["input_ids"]) for row in rows])]
    (tmp_path / "summary.json").write_text("{}")  # of other records
    seconds, settings = score_rows(scorer, sets, tmp_path, {"split": "a"}, data=tmp_path, progress=False)
    assert seconds is not None
    own = {"split": "a", "dtype": "float32", "model": fingerprint(scorer.model)}
    assert settings == {"model_options": {"model": ""}, "data": str(tmp_path), "batch_size": 4, **own}
    assert json.loads((tmp_path / "records" / "settings.json").read_text()) == own
    assert not (tmp_path / "summary.json").exists()
    lines = [json.loads(line) for line in (tmp_path / "records" / "some.jsonl").read_text().splitlines()]
    assert {row["index"]: row["loss"] for row in lines} == {i: one.loss for i, one in enumerate(scorer.losses(rows))}
    asked = {"model": "base", "dtype": "auto"}
    again = score_rows(scorer, sets, tmp_path, {"split": "a"}, data="here", progress=False, model_options=asked)
    assert again == (None, {"model_options": asked, "data": "here", "batch_size": 4, **own})
    with pytest.raises(ValueError, match="split 'a', this evaluation has 'b'"):
        score_rows(scorer, sets, tmp_path, {"split": "b"}, data="here", progress=False)
