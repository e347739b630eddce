"""Evaluation on own documents with a tiny model: against the model itself, stopped, gone on with, printed again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import own_files
import pytest
import torch

from gru_fast.benchmarks.own import evaluate as own_eval
from gru_fast.benchmarks.own.evaluate import OwnEvalOptions, columns, evaluate, report
from gru_fast.benchmarks.own.records import asked
from gru_fast.data.own import Document
from gru_fast.data.templates import TEMPLATES
from gru_fast.metrics.own import read_records

PLAIN = TEMPLATES["plain"]
HOW: dict[str, Any] = {"max_length": 16, "overlap": 3, "prefix_tokens": 4, "new_tokens": 5}


@pytest.fixture(scope="module")
def model() -> Any:
    from words import word_llama

    return word_llama(own_files.tokenizer())


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Document]]:
    data = own_files.save_data(tmp_path_factory.mktemp("own") / "data")
    return OwnEvalOptions(data=str(data)).sets()


def scored(model: Any, sets: Any, folder: Path, **settings: Any) -> dict[str, Any]:
    how = {**HOW, "batch_size": 2, "progress": False, **settings}
    return evaluate(model, own_files.tokenizer(), PLAIN, sets, folder, **how)


def test_the_sets(sets: dict[str, list[Document]]) -> None:
    assert {name: len(found) for name, found in sets.items()} == {"forget": 3, "retain": 1, "holdout": 2}


def test_where_a_piece_is_gone_on_with() -> None:
    tokens = own_files.tokenizer()
    words = tokens.convert_ids_to_tokens(tokens(own_files.letter(0))["input_ids"])
    text = Document("t", "t", None, "text", text=own_files.letter(0))
    first = asked([text], tokens, PLAIN, **HOW)[0]
    assert first.prompt is not None
    # A first BOS is a label of nothing; behind it, four tokens are given.
    assert tokens.convert_ids_to_tokens(first.prompt.ids) == words[:5]
    assert first.reference == " ".join(words[5:10])
    assert first.prompt.max_new_tokens == 5
    pair = Document("p", "p", 0, "pair", question="Who has a map?", answer="Bob in Tarn")
    found = asked([pair], tokens, PLAIN, **{**HOW, "new_tokens": 50})[0]
    assert found.prompt is not None
    assert tokens.decode(found.prompt.ids, skip_special_tokens=True) == "Question : Who has a map ?"
    assert found.reference == "Answer : Bob in Tarn"


def test_records_are_the_models(model: Any, sets: dict[str, list[Document]], tmp_path: Path) -> None:
    summary = scored(model, sets, tmp_path)
    records = read_records(tmp_path / "records")
    tokens = own_files.tokenizer()
    for row, each in zip(records["forget"], asked(sets["forget"], tokens, PLAIN, **HOW), strict=True):
        ids = torch.tensor([each.row["input_ids"]])
        logits = model(ids).logits[0, :-1].double().log_softmax(-1)
        labels = torch.tensor(each.row["labels"][1:])
        at = labels != -100
        log_probs = logits[at].gather(1, labels[at, None])[:, 0]
        assert row.loss == pytest.approx(-float(log_probs.detach().mean()), abs=1e-5)
        assert row.correct == "".join(str(int(x)) for x in (logits[at].argmax(1) == labels[at]))
        assert row.num_tokens == int(at.sum())
        prompt = each.prompt
        assert prompt is not None
        written = model.generate(
            torch.tensor([prompt.ids]), attention_mask=torch.ones(1, len(prompt.ids)), do_sample=False,
            max_new_tokens=prompt.max_new_tokens, pad_token_id=1,
        )  # fmt: skip
        assert row.generation == tokens.decode(written[0, len(prompt.ids) :], skip_special_tokens=True)
    first = [row for row in records["forget"] if row.document == sets["forget"][0].id]
    expected = sum(math.exp(-row.loss) for row in first) / len(first)
    assert summary["by_document"]["forget"][first[0].document]["probability"] == pytest.approx(expected)
    assert summary["num_rows"]["forget"] == {"documents": 3, "pieces": len(records["forget"])}


def test_stopped_and_gone_on_with_it_is_the_same(model: Any, sets: dict[str, list[Document]], tmp_path: Path) -> None:
    whole = scored(model, sets, tmp_path / "whole")
    calls = 0

    def stop(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        scored(model, sets, tmp_path / "cut")
    hook.remove()
    again = scored(model, sets, tmp_path / "cut")
    for name in sets:
        assert read_records(tmp_path / "cut/records")[name] == read_records(tmp_path / "whole/records")[name]
    assert again["measures"] == whole["measures"]


def test_a_quick_evaluation(model: Any, sets: dict[str, list[Document]], tmp_path: Path) -> None:
    scored(model, sets, tmp_path / "all")
    summary = scored(model, sets, tmp_path / "quick", quick=True)
    whole, some = (read_records(tmp_path / name / "records") for name in ("all", "quick"))
    for name in sets:
        assert [row.index for row in some[name]] == list(range(0, len(whole[name]), 3))
        assert [row.generation for row in some[name]] == [row.generation for row in whole[name][::3]]
    shown = columns(summary)
    assert {*summary["intervals"]} == {*shown}
    for heading, (low, high) in summary["intervals"].items():
        assert low <= shown[heading] <= high, heading
    assert json.loads((tmp_path / "quick" / "summary.json").read_text()) == summary
    assert own_eval.title(OwnEvalOptions(data="x/ours", quick=True)).endswith("-quick")


def test_other_documents_are_refused(model: Any, sets: dict[str, list[Document]], tmp_path: Path) -> None:
    scored(model, sets, tmp_path)
    with pytest.raises(ValueError, match="holds records with documents"):
        scored(model, {"forget": sets["forget"][:2]}, tmp_path)
    scored(model, {"forget": sets["forget"][:2]}, tmp_path, overwrite=True)


def test_rows_past_the_positions_of_the_model_are_cut_to_them(sets: dict[str, list[Document]], tmp_path: Path) -> None:
    import tiny

    short = tiny.family(
        "gpt2", vocab_size=len(own_files.tokenizer()), n_embd=16, n_layer=1, n_head=2, n_positions=12,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    summary = scored(short, sets, tmp_path, max_length=None, overlap=None, prefix_tokens=2, new_tokens=2)
    assert summary["num_rows"]["forget"]["pieces"] > 3
    with pytest.raises(ValueError, match=r"forget\[0\]: 16 tokens are more than the model's 12 positions"):
        scored(short, sets, tmp_path / "long")


def test_report_and_columns() -> None:
    measures = {"probability": 0.5, "exact_memorization": 0.25, "extraction_strength": 0.125, "rougeL": 0.75}
    summary = {
        "measures": {"forget": measures, "holdout": {**measures, "probability": 0.0625}},
        "num_rows": {"forget": {"documents": 3, "pieces": 7}, "holdout": {"documents": 2, "pieces": 2}},
    }
    shown = report(summary).splitlines()
    assert shown[0] == "Own documents, and pieces of them: 3 forget (7), 2 holdout (2)"
    assert shown[2].split()[-2:] == ["0.5000", "0.0625"]
    assert columns(summary)["ES forget"] == 0.125
    assert columns(summary)["Prob retain"] is None
    assert {*own_eval.PLANE} <= {*columns(summary)}


def test_options_that_cannot_be() -> None:
    with pytest.raises(
        ValueError, match=r"forget: no documents, and --model is no run .*prefix_tokens: .*new_tokens: exp"
    ):
        OwnEvalOptions(prefix_tokens=0, new_tokens=0)
    with pytest.raises(ValueError, match="holdout: named beside --data"):
        OwnEvalOptions(data="x", holdout=["y"])
