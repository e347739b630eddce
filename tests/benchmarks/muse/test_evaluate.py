"""Evaluation on MUSE with a tiny model: against the model itself, stopped and gone on with, printed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import muse_files
import numpy as np
import pytest
import torch
from muse_files import NUM_ROWS, NUM_SHOTS
from words import BOS, word_tokenizer

from gru_fast.benchmarks.muse import evaluate as muse_eval
from gru_fast.benchmarks.muse import records as muse_records
from gru_fast.benchmarks.muse.evaluate import MuseEvalOptions, evaluate, report, resummarize
from gru_fast.benchmarks.muse.records import cut_answer, first_tokens, load_prompts, load_texts, question_text
from gru_fast.benchmarks.muse.rows import load
from gru_fast.data.sequences import SequenceCollator
from gru_fast.evaluation.subject import Subject
from gru_fast.metrics import muse as metrics
from gru_fast.metrics.muse import read_records, read_retained

OPTIONS: dict[str, Any] = {"batch_size": 3, "verbmem_tokens": 8, "knowmem_tokens": 6, "progress": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return muse_files.save_data(tmp_path_factory.mktemp("muse") / "bbc")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return muse_files.tokenizer()


class Counted:
    """Counts a model's calls, and stops at the one it is told to."""

    def __init__(self, model: Any, stop_at: int | None = None) -> None:
        self.calls = 0
        self.stop_at = stop_at
        model.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1


# ---- what is asked ---------------------------------------------------------------------------------------------------


def test_a_question_comes_after_ten_with_answers(data: Path, tokenizer: Any) -> None:
    shots = json.loads((data / "knowmem/retain2_qa_icl.json").read_text())
    asked = json.loads((data / "knowmem/retain2_qa.json").read_text())[1]
    text = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in shots)
    text += f"Question: {asked['question']}\nAnswer: "
    prompt = load_prompts(tokenizer, data)["knowmem_r"][1]
    assert prompt.ids == tokenizer(text)["input_ids"]
    assert prompt.ids[0] == BOS
    assert text.count("Question: ") == NUM_SHOTS + 1
    assert (prompt.shown, prompt.reference, prompt.max_new_tokens) == (asked["question"], asked["answer"], 32)


def test_a_prompt_ends_with_the_space(data: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert question_text("Who?") == "Question: Who?\nAnswer: "
    texts: list[str] = []  # the words' tokenizer does not see spaces
    monkeypatch.setattr(muse_records, "encode_prompt", lambda tokenizer, template, text: texts.append(text) or [0, 0])
    load_prompts(tokenizer, data)
    asked = [text for text in texts if text.startswith("Question: ")]
    assert len(asked) == 2 * NUM_ROWS
    assert all(text.endswith("?\nAnswer: ") for text in asked)


def test_a_text_is_gone_on_with_to_as_many_tokens_as_gold_has(data: Path) -> None:
    tokenizer = muse_files.tokenizer()
    row = load("verbmem", "forget", data)[0]
    prompt = load_prompts(tokenizer, data, verbmem_tokens=5)["verbmem_f"][0]
    assert prompt.ids == tokenizer(row["prompt"])["input_ids"]
    assert (prompt.shown, prompt.max_new_tokens) == (row["prompt"], 5)
    assert prompt.reference == "It brought plums to"  # 4 words, since BOS counts
    assert load_prompts(tokenizer, data)["verbmem_f"][0].max_new_tokens == 128


def test_gold_without_bos_is_a_token_longer() -> None:
    assert first_tokens(word_tokenizer(["a b c d"], bos=True), "a b c d", 3) == "a b"
    assert first_tokens(word_tokenizer(["a b c d"]), "a b c d", 3) == "a b c"


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("salt\n\nQuestion: What", "salt"),
        ("salt\nQuestion: What", "salt"),
        ("salt Question: What", "salt "),
        ("salt\nQuestionable", "salt"),
        ("salt\nand rope", "salt\nand rope"),
        ("\n\nsalt", ""),
    ],
)
def test_an_answer_ends_where_a_question_begins(written: str, kept: str) -> None:
    assert cut_answer(written) == kept


def test_a_text_of_one_token_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "privleak").mkdir()
    (tmp_path / "privleak/forget.json").write_text('["salt", ""]')
    with pytest.raises(ValueError, match="privleak/forget, row 1: expected a text of two tokens and more"):
        load_texts(tokenizer, tmp_path)


# ---- what the model says ---------------------------------------------------------------------------------------------


def test_records_are_the_models_own(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    model = muse_files.model()
    evaluate(model, tokenizer, data, tmp_path, **OPTIONS)
    records = read_records(tmp_path / "records")
    assert {name: len(rows) for name, rows in records.items()} == dict.fromkeys(metrics.SETS, NUM_ROWS)

    def written(prompt: str, count: int) -> str:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            output = model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=1)
        return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)

    for row, record in zip(load("verbmem", "forget", data), records["verbmem_f"], strict=True):
        assert (record.prompt, record.generation) == (row["prompt"], written(row["prompt"], 8))
        assert row["gt"].startswith(record.reference.split(" to ")[0])
    for name, split in (("knowmem_f", "forget_qa"), ("knowmem_r", "retain_qa")):
        shots = "".join(
            f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in load("knowmem", f"{split}_icl", data)
        )
        for row, record in zip(load("knowmem", split, data), records[name], strict=True):
            answer = written(f"{shots}Question: {row['question']}\nAnswer: ", 6)
            assert record.generation == cut_answer(answer)
            assert (record.prompt, record.reference) == (row["question"], row["answer"])
    for split in ("forget", "holdout"):
        for row, record in zip(load("privleak", split, data), records[f"privleak_{split}"], strict=True):
            ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
            with torch.no_grad():
                log_probs = torch.log_softmax(model(ids).logits[0, :-1], -1)
            found = np.sort(log_probs.gather(1, ids[0, 1:, None])[:, 0].double().numpy())
            assert record.num_tokens == len(found) == ids.shape[1] - 1
            assert record.loss == pytest.approx(-found.mean(), abs=1e-5)
            for k in metrics.MIN_KS:
                lowest = found[: int(len(found) * k)]
                assert record.min_k[str(k)] == pytest.approx(-lowest.mean(), abs=1e-5)


def test_the_summary_is_made_of_the_records(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    evaluate(muse_files.model(1), tokenizer, data, tmp_path / "retrained", **OPTIONS)
    output = tmp_path / "unlearned"
    summary = evaluate(muse_files.model(), tokenizer, data, output, retained=tmp_path / "retrained", **OPTIONS)
    assert list(summary) == [
        *("benchmark", "corpus", "verbmem_f", "knowmem_f", "knowmem_r", "privleak", "mia", "num_rows", "seconds"),
        "settings",
    ]
    assert (summary["benchmark"], summary["corpus"]) == ("muse", "news")
    records, other = read_records(output / "records"), read_records(tmp_path / "retrained/records")
    for name in metrics.GENERATION_SETS:
        assert summary[name] == metrics.mean_overlap(records[name])
    auc, retain_auc = metrics.leak_auc(records), metrics.leak_auc(other)
    assert summary["mia"] == {"auc": auc, "retain_auc": retain_auc, "min_k": 0.4}
    assert summary["privleak"] == pytest.approx(100 * (auc - retain_auc) / retain_auc)
    assert summary["privleak"] != 0
    assert summary["num_rows"] == dict.fromkeys(metrics.SETS, NUM_ROWS)
    assert summary["settings"]["retain_logs"] == str(tmp_path / "retrained")
    assert summary["seconds"] > 0
    assert json.loads((output / "summary.json").read_text()) == summary
    assert f"{summary['verbmem_f']:.2f} %" in report(summary)
    assert f"{summary['privleak']:.2f} %  AUC {auc:.4f}, retrained {retain_auc:.4f}" in report(summary)


def test_columns_of_a_report() -> None:
    summary = {"verbmem_f": 99.7, "knowmem_f": 45.88, "knowmem_r": 69.4, "privleak": None}
    columns = muse_eval.columns(summary)
    assert columns == {
        "VerbMem forget": 99.7, "KnowMem forget": 45.88, "PrivLeak": None, "KnowMem retain": 69.4
    }  # fmt: skip
    assert set(muse_eval.PLANE) <= set(columns)


def test_a_model_that_knows_the_texts_shows_it(tmp_path: Path, tokenizer: Any) -> None:
    """Trained on forget until it knows it by heart: memorization near 100, AUC 0, and PrivLeak near -100."""
    data = muse_files.save_data(tmp_path / "bbc")
    texts = [row["text"] for row in load("privleak", "forget", data)]
    verbatim = [row["prompt"] + "\n\n" + row["gt"] for row in load("verbmem", "forget", data)]
    rows = [{"prompt": row["prompt"] + "\n\n", "gt": row["gt"]} for row in load("verbmem", "forget", data)]
    (data / "verbmem/forget.json").write_text(json.dumps(rows))
    model = muse_files.model(hidden_size=32, initializer_range=0.05)
    ids = [tokenizer(text)["input_ids"] for text in (*texts, *verbatim)]
    batch = SequenceCollator(0)([{"input_ids": row, "labels": row} for row in ids])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    evaluate(muse_files.model(1), tokenizer, data, tmp_path / "retrained", **OPTIONS)
    how = {**OPTIONS, "verbmem_tokens": 11}  # to the full stop
    summary = evaluate(model, tokenizer, data, tmp_path / "known", retained=tmp_path / "retrained", **how)
    assert summary["verbmem_f"] == 100
    assert summary["mia"]["auc"] == 0
    assert summary["privleak"] == -100


def test_without_a_retrained_model_there_is_no_privleak(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    summary = evaluate(muse_files.model(), tokenizer, data, tmp_path, **OPTIONS)
    assert summary["privleak"] is None
    assert 0 <= summary["mia"]["auc"] <= 1
    assert "give --retain-logs" in report(summary)


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.9])
def test_a_stopped_evaluation_goes_on_to_the_same_numbers(
    tmp_path: Path, data: Path, tokenizer: Any, share: float
) -> None:
    model, stopped, again = muse_files.model(), muse_files.model(), muse_files.model()
    all_calls = Counted(model)
    whole = evaluate(model, tokenizer, data, tmp_path / "whole", **OPTIONS)
    Counted(stopped, int(share * all_calls.calls))
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped, tokenizer, data, tmp_path / "parts", **OPTIONS)
    assert not (tmp_path / "parts/summary.json").exists()
    parts = evaluate(again, tokenizer, data, tmp_path / "parts", **OPTIONS)
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}
    assert read_records(tmp_path / "parts/records") == read_records(tmp_path / "whole/records")


def test_a_finished_evaluation_does_not_run_the_model_again(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    summary = evaluate(muse_files.model(), tokenizer, data, tmp_path, **OPTIONS)
    model = muse_files.model()
    counted = Counted(model)
    assert evaluate(model, tokenizer, data, tmp_path, **OPTIONS) == summary
    assert counted.calls == 0
    evaluate(model, tokenizer, data, tmp_path, overwrite=True, **OPTIONS)
    assert counted.calls > 0


def test_results_do_not_depend_on_the_batch_size(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    found = []
    for batch_size in (1, 4):
        folder = tmp_path / str(batch_size)
        evaluate(muse_files.model(), tokenizer, data, folder, **{**OPTIONS, "batch_size": batch_size})
        found.append(read_records(folder / "records"))
    assert all(found[0][name] == found[1][name] for name in metrics.GENERATION_SETS)
    for name in metrics.SURPRISE_SETS:
        for one, other in zip(found[0][name], found[1][name], strict=True):
            assert one.loss == pytest.approx(other.loss, abs=1e-5)


def test_the_first_rows_of_each_set_count(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    summary = evaluate(muse_files.model(), tokenizer, data, tmp_path, max_rows=2, **OPTIONS)
    assert summary["num_rows"] == dict.fromkeys(metrics.SETS, 2)


def test_a_quick_evaluation(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    """Against a retrained model of which all rows, or the same third, were scored."""
    for name in ("all", "quick"):
        evaluate(muse_files.model(1), tokenizer, data, tmp_path / "retrained" / name, quick=name == "quick", **OPTIONS)
    evaluate(muse_files.model(), tokenizer, data, tmp_path / "all", **OPTIONS)
    found = []
    for name in ("all", "quick"):
        how = {"retained": tmp_path / "retrained" / name, "quick": True, **OPTIONS}
        found.append(evaluate(muse_files.model(), tokenizer, data, tmp_path / f"to-{name}", **how))
    assert found[0]["privleak"] == found[1]["privleak"] is not None
    assert found[0]["num_rows"] == dict.fromkeys(metrics.SETS, 2)
    whole, some = (read_records(tmp_path / name / "records") for name in ("all", "to-all"))
    for name in metrics.GENERATION_SETS:
        assert some[name] == whole[name][::3]
    shown = muse_eval.columns(found[0])
    assert {*found[0]["intervals"]} == {*shown}
    for heading, (low, high) in found[0]["intervals"].items():
        assert low <= shown[heading] <= high, heading
    assert "every third row" in report(found[0])
    how = {"retained": tmp_path / "retrained" / "quick", **OPTIONS}
    with pytest.raises(ValueError, match=r"privleak_forget: this model has 4 texts, .* 2, and 2 are the same"):
        evaluate(muse_files.model(), tokenizer, data, tmp_path / "other", **how)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_records_of_another_model_or_other_settings_are_refused(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    evaluate(muse_files.model(), tokenizer, data, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"holds records with model '\w+', this evaluation has '\w+'"):
        evaluate(muse_files.model(1), tokenizer, data, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="with knowmem_tokens 6, this evaluation has 32"):
        evaluate(muse_files.model(), tokenizer, data, tmp_path, **{**OPTIONS, "knowmem_tokens": 32})


def test_changed_rows_are_noticed(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    mine = muse_files.save_data(tmp_path / "bbc")
    evaluate(muse_files.model(), tokenizer, mine, tmp_path / "eval", **OPTIONS)
    file = mine / "knowmem/forget_qa_icl.json"
    file.write_text(file.read_text().replace("rope", "salt").replace("plums", "salt"))
    with pytest.raises(ValueError, match="holds records with rows"):
        evaluate(muse_files.model(), tokenizer, mine, tmp_path / "eval", **OPTIONS)


def test_a_retrained_model_of_other_texts_is_refused_before_the_work(
    tmp_path: Path, data: Path, tokenizer: Any
) -> None:
    evaluate(muse_files.model(1), tokenizer, data, tmp_path / "retrained", max_rows=2, **OPTIONS)
    model = muse_files.model()
    counted = Counted(model)
    with pytest.raises(ValueError, match=r"privleak_forget: this model has 4 texts, .* 2, and 2 are the same"):
        evaluate(model, tokenizer, data, tmp_path / "eval", retained=tmp_path / "retrained", **OPTIONS)
    assert counted.calls == 0


def test_a_diverged_model_is_refused(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    model = muse_files.model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"NaN or Inf for \d of \d texts; it has diverged"):
        evaluate(model, tokenizer, data, tmp_path, **OPTIONS)


def test_options_that_cannot_be_are_refused_together() -> None:
    with pytest.raises(
        ValueError, match=r"max_rows: exp.*; knowmem_tokens: expected at least 1, got 0; min_k: expected"
    ):
        MuseEvalOptions(max_rows=-1, knowmem_tokens=0, min_k=0.7)


# ---- printed again ---------------------------------------------------------------------------------------------------


def test_a_finished_evaluation_is_summed_up_without_the_model(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    folder = tmp_path / "eval"
    summary = evaluate(muse_files.model(), tokenizer, data, folder, **OPTIONS)
    assert resummarize(folder) == summary
    evaluate(muse_files.model(1), tokenizer, data, tmp_path / "retrained", **OPTIONS)
    known = resummarize(folder, read_retained(tmp_path / "retrained"))
    assert known["privleak"] is not None
    assert known["seconds"] == summary["seconds"]
    assert resummarize(folder) == known  # what was found out stays
    assert resummarize(folder, stemmer=True)["privleak"] == known["privleak"]
    assert resummarize(folder, k=0.05)["privleak"] is None  # that of another k is not taken over


def test_run_asks_for_the_model_only_if_something_is_left(tmp_path: Path, data: Path) -> None:
    loaded: list[int] = []

    def load_model() -> tuple[Any, Any, None]:
        loaded.append(1)
        return muse_files.model(), muse_files.tokenizer(), None

    subject = Subject({"model": "m"}, tmp_path, load_model, is_older_than=lambda _: True, progress=False)
    options = MuseEvalOptions(data=str(data), verbmem_tokens=8, knowmem_tokens=6)
    summary = muse_eval.run(options, subject)
    assert muse_eval.run(options, subject) == summary
    assert len(loaded) == 1
    other = MuseEvalOptions(data=str(data), verbmem_tokens=9, knowmem_tokens=6)
    with pytest.raises(ValueError, match="verbmem_tokens 8, this evaluation has 9"):
        muse_eval.run(other, subject)
    missing = MuseEvalOptions(data=str(data), retain_logs=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        muse_eval.run(missing, subject)
    assert len(loaded) == 1


def test_what_a_run_says_of_the_options() -> None:
    assert muse_eval.defaults_of_run({"benchmark": "muse", "data": "x", "split": "scal_2"}) == {"data": "x"}
    assert muse_eval.defaults_of_run({"data": "locuslab/TOFU", "split": "forget05"}) == {}
    assert muse_eval.title(MuseEvalOptions()) == "muse-books"
    assert muse_eval.title(MuseEvalOptions(quick=True)) == "muse-books-quick"
