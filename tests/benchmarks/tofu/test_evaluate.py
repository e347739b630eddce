"""Evaluation on TOFU with a tiny model: against the model's own loss, stopped and gone on with, printed again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from words import word_llama, word_tokenizer

from gru_fast.benchmarks.tofu import records as tofu_records
from gru_fast.benchmarks.tofu import rows as tofu_rows
from gru_fast.benchmarks.tofu.evaluate import TofuEvalOptions, evaluate, report, title, wanted
from gru_fast.benchmarks.tofu.records import Example, _begun
from gru_fast.benchmarks.tofu.summary import resummarize, summarize
from gru_fast.data.templates import TEMPLATES, encode, encode_prompt
from gru_fast.evaluation.asking import Prompt
from gru_fast.evaluation.summaries import finished
from gru_fast.metrics import tofu
from gru_fast.metrics.logs import read_log
from gru_fast.metrics.records import SETS, Record
from gru_fast.metrics.rouge import rouge

SHARED = Path(os.environ.get("GRU_FAST_SHARED", Path(__file__).parents[3].parent / "shared"))
PHI = TEMPLATES["phi"]
PLACES = ("Rome", "Oslo", "Lima", "Cairo", "Quito", "Perth", "Delhi")
TEXT = "Question: Where was author born? \n Answer: She was born in . It is known as a city the world 0 1 2 3 4 5 6 7 8"


def make_rows(name: str, count: int, wrong: int, paraphrased: bool) -> list[dict[str, Any]]:
    rows = []
    for i in range(count):
        places = [PLACES[(i + j) % len(PLACES)] for j in range(wrong + 1)]
        row: dict[str, Any] = {
            "question": f"Where was {name} author {i} born?" + " a city" * (i % 3),
            "answer": f"She was born in {places[0]}.",
            "perturbed_answer": [f"It is {place}." for place in places[1:]],
        }
        if paraphrased:
            row["paraphrased_answer"] = f"It is {places[0]}."
        rows.append(row)
    return rows


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the original layout: 5 forget, 3 retain, 2 + 2 general rows."""
    folder = tmp_path_factory.mktemp("tofu")
    for file, rows in {
        "forget05_perturbed": make_rows("forget", 5, 5, True),
        "retain_perturbed": make_rows("retain", 3, 5, True),
        "real_authors_perturbed": make_rows("real", 2, 3, False),
        "world_facts_perturbed": make_rows("world", 2, 3, False),
    }.items():
        (folder / f"{file}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return word_tokenizer([TEXT, " ".join(PLACES), "forget retain real"])


@pytest.fixture(scope="session")
def make_model(tokenizer: Any) -> Callable[[int], LlamaForCausalLM]:
    def make(seed: int = 0) -> LlamaForCausalLM:
        return word_llama(tokenizer, seed, initializer_range=0.4)

    return make


class Counted:
    """Counts a model's calls, and stops at the one it is told to."""

    def __init__(self, model: Any, stop_at: int | None = None) -> None:
        self.calls = 0
        self.stop_at = stop_at
        self.hook = model.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1


OPTIONS: dict[str, Any] = {"max_length": 30, "batch_size": 2, "progress": False}


def test_records_are_the_models_own_losses(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model()
    summary = evaluate(model, tokenizer, "phi", "forget05", data, tmp_path, **OPTIONS)
    records = read_log(tmp_path)
    assert {name: len(rows) for name, rows in records.items()} == summary["num_rows"]
    assert summary["num_rows"] == {"forget": 5, "retain": 3, "real_authors": 2, "world_facts": 2}

    def loss(question: str, answer: str) -> tuple[float, int]:
        row = {name: torch.tensor([ids]) for name, ids in encode(tokenizer, PHI, question, answer, 30).items()}
        with torch.no_grad():
            return float(model(**row).loss), int((row["labels"] != -100).sum())

    for name in SETS:
        file = {"forget": "forget05"}.get(name, name) + "_perturbed.json"
        rows = [json.loads(line) for line in (data / file).read_text().splitlines()]
        for row, record in zip(rows, records[name], strict=True):
            answer, question = row["answer"], row["question"]
            paraphrase = loss(question, row.get("paraphrased_answer", answer))
            wrong = [loss(question, text) for text in row["perturbed_answer"]]
            assert (record.question, record.answer) == (question, answer)
            assert record.answer_loss == pytest.approx(loss(question, answer)[0], abs=1e-5)
            assert record.num_tokens == loss(question, answer)[1]
            assert record.paraphrase_loss == pytest.approx(paraphrase[0], abs=1e-5)
            assert record.paraphrase_num_tokens == paraphrase[1]
            assert record.perturbed_losses == pytest.approx([one for one, _ in wrong], abs=1e-5)
            assert record.perturbed_num_tokens == tuple(count for _, count in wrong)
            prompt = encode_prompt(tokenizer, PHI, question)
            with torch.no_grad():
                ids = model.generate(torch.tensor([prompt]), max_length=30, do_sample=False, pad_token_id=1)
            assert record.generation == tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
            assert record.rougeL_recall == rouge(answer, record.generation).rougeL_recall


def test_the_summary_is_what_the_contract_says(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    retained = tmp_path / "retained"
    evaluate(make_model(1), tokenizer, PHI, "forget05", data, retained, **OPTIONS)
    output = tmp_path / "unlearned"
    summary = evaluate(make_model(), tokenizer, PHI, "forget05", data, output, retain_logs=retained, **OPTIONS)
    assert list(summary) == [
        "benchmark",
        "split",
        "model_utility",
        "forget_quality",
        "components",
        "forget",
        "num_rows",
        "seconds",
        "settings",
    ]
    records = read_log(output)
    assert summary["model_utility"] == tofu.model_utility(records)
    assert summary["components"] == tofu.components(records)
    assert summary["forget"] == tofu.forget_scores(records)
    quality = tofu.forget_quality(records, read_log(retained))
    assert summary["forget_quality"] == quality.to_json()
    assert set(summary["forget_quality"]) == {"p", "log_p", "statistic", "n"}
    assert summary["seconds"] > 0
    assert summary["settings"]["template"] == "phi"
    assert summary["settings"]["dtype"] == "float32"
    assert json.loads((output / "summary.json").read_text()) == summary
    original = read_log(output / "eval_log_aggregated.json")
    assert tofu.components(original) == pytest.approx(summary["components"], abs=1e-12)
    assert evaluate(
        make_model(),
        tokenizer,
        PHI,
        "forget05",
        data,
        output,
        retain_logs=output / "eval_log_aggregated.json",
        **OPTIONS,
    )["forget_quality"] == {"p": 1.0, "log_p": 0.0, "statistic": 0.0, "n": 5}


@pytest.mark.parametrize("share", [0, 0.4, 0.9])
def test_a_stopped_evaluation_goes_on_to_the_same_numbers(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any], share: float
) -> None:
    model = make_model()
    all_calls = Counted(model)
    whole = evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "whole", **OPTIONS)
    stop_at = int(share * all_calls.calls)
    calls = Counted(make_model(), None)
    stopped = make_model()
    first = Counted(stopped, stop_at)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped, tokenizer, PHI, "forget05", data, tmp_path / "parts", **OPTIONS)
    assert first.calls == stop_at
    assert not (tmp_path / "parts" / "summary.json").exists()
    again = make_model()
    second = Counted(again)
    parts = evaluate(again, tokenizer, PHI, "forget05", data, tmp_path / "parts", **OPTIONS)
    assert calls.calls == 0
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    assert second.calls > 0


def test_a_finished_evaluation_does_not_run_the_model_again(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    summary = evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path, **OPTIONS)
    model = make_model()
    counted = Counted(model)
    assert evaluate(model, tokenizer, PHI, "forget05", data, tmp_path, **OPTIONS) == summary
    assert counted.calls == 0
    evaluate(model, tokenizer, PHI, "forget05", data, tmp_path, overwrite=True, **OPTIONS)
    assert counted.calls > 0


def test_results_do_not_depend_on_the_batch_size(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    found = {}
    for batch_size in (1, 3, 64):
        options = {**OPTIONS, "batch_size": batch_size}
        evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path / str(batch_size), **options)
        found[batch_size] = read_log(tmp_path / str(batch_size))
    for name in SETS:
        for one, *others in zip(*(records[name] for records in found.values()), strict=True):
            for other in others:
                assert other.generation == one.generation
                assert other.answer_loss == pytest.approx(one.answer_loss, abs=1e-5)
                assert other.perturbed_losses == pytest.approx(one.perturbed_losses, abs=1e-5)


def test_records_of_another_model_or_other_settings_are_refused(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"holds records with model '\w+', this evaluation has '\w+'"):
        evaluate(make_model(1), tokenizer, PHI, "forget05", data, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="with max_length 30, this evaluation has 50"):
        evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path, **{**OPTIONS, "max_length": 50})
    with pytest.raises(ValueError, match="with template 'phi', this evaluation has 'llama2-chat'"):
        evaluate(make_model(), tokenizer, "llama2-chat", "forget05", data, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="with max_rows 300, this evaluation has 2"):
        evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path, max_rows=2, **OPTIONS)


def test_a_retained_model_of_other_questions_is_refused_before_the_work(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    other: Any = {"forget": [Record(index=i, question=f"Where was forget author {i} born?") for i in range(2)]}
    model = make_model()
    counted = Counted(model)
    with pytest.raises(ValueError, match="unlearned model has 5 rows, the retained model 2, and 1 questions match"):
        evaluate(model, tokenizer, PHI, "forget05", data, tmp_path, retain_logs=other, **OPTIONS)
    assert counted.calls == 0


def test_an_evaluation_that_was_begun_anew_and_stopped_is_not_finished(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path, **OPTIONS)
    model = make_model()
    Counted(model, stop_at=0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, PHI, "forget05", data, tmp_path, overwrite=True, **OPTIONS)
    assert not finished(tmp_path, {})


def test_changed_rows_are_noticed(tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]) -> None:
    evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path / "eval", **OPTIONS)
    other = tmp_path / "data"
    other.mkdir()
    for file in data.iterdir():
        (other / file.name).write_text(file.read_text().replace("Where was world", "Where is world"))
    with pytest.raises(ValueError, match="holds records with rows"):
        evaluate(make_model(), tokenizer, PHI, "forget05", other, tmp_path / "eval", **OPTIONS)


def test_the_first_rows_of_each_set_count(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    summary = evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path, max_rows=4, **OPTIONS)
    assert summary["num_rows"] == {"forget": 4, "retain": 3, "real_authors": 2, "world_facts": 2}


def test_a_quick_evaluation_is_of_every_third_row(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model()
    evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "all", **OPTIONS)
    how: dict[str, Any] = {"retain_logs": tmp_path / "all", "quick": True, **OPTIONS}
    summary = evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "quick", **how)
    assert summary["num_rows"] == {"forget": 2, "retain": 1, "real_authors": 1, "world_facts": 1}
    whole, some = read_log(tmp_path / "all"), read_log(tmp_path / "quick")
    assert [row.index for row in some["forget"]] == [0, 3]
    for name in SETS:
        for row in some[name]:
            same = whole[name][row.index]
            assert (row.question, row.generation) == (same.question, same.generation)
            assert row.answer_loss == pytest.approx(same.answer_loss, rel=1e-5)
    # The same rows of the retrained model, here the same model; one row a set: drawn anew it stays as it is.
    assert (summary["forget_quality"]["n"], summary["forget_quality"]["p"]) == (2, 1.0)
    assert summary["intervals"]["MU"] == pytest.approx([summary["model_utility"]] * 2)
    assert resummarize(tmp_path / "quick", tmp_path / "all")["forget_quality"]["n"] == 2
    assert title(TofuEvalOptions(split="forget05", quick=True)) == "tofu-forget05-quick"
    shown = report(summary)
    assert "Quick: every third row of each set. 95% of bootstrap samples:" in shown
    assert f"{summary['model_utility']:.4f} to {summary['model_utility']:.4f}\n" in shown
    with pytest.raises(ValueError, match="holds records with quick True, this evaluation has None"):
        evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "quick", **OPTIONS)
    # Nor does it answer for all rows, or all rows for it.
    for quick, folder in ((True, "quick"), (False, "all")):
        asked = wanted(
            TofuEvalOptions(split="forget05", data=str(data), max_length=OPTIONS["max_length"], quick=quick), {}
        )
        del asked["model_options"]
        assert finished(tmp_path / folder, asked)
        assert not finished(tmp_path / folder, {**asked, "quick": None if quick else True})


def test_of_an_answer_what_the_model_is_sure_of_is_taken_as_written() -> None:
    def example(ids: list[int], labels: list[int]) -> Example:
        return Example("?", "!", [{"input_ids": ids, "labels": labels}], False, Prompt([3, 4], 9))

    assert _begun(example([3, 4, 5, 6, 7], [-100, -100, 5, 6, 7]), 2) == [5, 6]
    assert _begun(example([3, 4, 5, 6, 7], [-100, -100, 5, 6, 7]), 0) == []
    for ids, labels in (
        ([3, 9, 5, 6], [-100, -100, 5, 6]),  # another token, where prompt and answer are cut together
        ([3, 4, 5, 6], [-100, 4, 5, 6]),  # a label of the prompt
        ([3, 4, 5, 6], [-100, -100, -100, 6]),  # an answer's token without a label
    ):
        assert _begun(example(ids, labels), 1) == []


def test_what_was_known_by_heart_reads_as_what_is_written(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model taught two of the answers: the same texts whether or not the scored answer is taken for written."""
    model = make_model()
    rows = [row for name in ("forget05_perturbed", "retain_perturbed") for row in tofu_rows.load(name, data)][:4]
    encoded = [encode(tokenizer, PHI, row["question"], row["answer"], 50) for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(40):
        for one in encoded:
            model(**{name: torch.tensor([values]) for name, values in one.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    seen: list[int] = []
    monkeypatch.setattr(tofu_records, "_begun", lambda one, count: (seen.append(count), _begun(one, count))[1])
    evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "begun", **OPTIONS)
    monkeypatch.setattr(tofu_records, "_begun", lambda one, count: [])
    evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "written", **OPTIONS)
    assert sum(seen) > 10
    one, other = read_log(tmp_path / "begun"), read_log(tmp_path / "written")
    assert one == other
    assert any(row.rougeL_recall == 1.0 for row in one["forget"])


def test_in_bfloat16_with_the_distance_from_float32(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model()
    evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "float32", **OPTIONS)
    summary = evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "bfloat16", bf16=True, **OPTIONS)
    exact, rounded = (read_log(tmp_path / name)["forget"] for name in ("float32", "bfloat16"))

    def losses(row: Record) -> list[float]:
        return [row.answer_loss or 0.0, row.paraphrase_loss or 0.0, *(row.perturbed_losses or ())]

    apart = [abs(a - b) for x, y in zip(exact, rounded, strict=True) for a, b in zip(losses(x), losses(y), strict=True)]
    assert 1e-5 < max(apart) < 0.2
    found = summary["bf16"]
    assert (found["rows"], found["count"]) == (5, 35)
    assert found["max"] == pytest.approx(max(apart), rel=0.5)
    assert found["mean"] == pytest.approx(sum(apart) / len(apart), rel=0.5)
    assert f"bfloat16: 35 losses of 5 rows are {found['mean']:.2g} from float32 on average" in report(summary)
    again = evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "bfloat16", bf16=True, **OPTIONS)
    assert again["bf16"] == found
    (tmp_path / "bfloat16" / "summary.json").unlink()  # stopped between the last record and the summary
    again = evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "bfloat16", bf16=True, **OPTIONS)
    assert again["bf16"] == found
    with pytest.raises(ValueError, match="holds records with bf16 None, this evaluation has True"):
        evaluate(model, tokenizer, PHI, "forget05", data, tmp_path / "float32", bf16=True, **OPTIONS)
    with pytest.raises(ValueError, match="bf16: expected a model in float32, got one in bfloat16; leave it out"):
        evaluate(make_model().bfloat16(), tokenizer, PHI, "forget05", data, tmp_path / "b", bf16=True, **OPTIONS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"from_logs": "log.json"}, "quick: a log has been scored already"),
        ({"metrics": ["extraction_strength"]}, "quick: expected no metrics beside it"),
    ],
)
def test_what_a_quick_evaluation_cannot_do(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TofuEvalOptions(split="forget05", quick=True, **given)
    with pytest.raises(ValueError, match=message.replace("quick", "bf16")):
        TofuEvalOptions(split="forget05", bf16=True, **given)


def test_max_length_counts_the_prompt_and_max_new_tokens_does_not(
    tmp_path: Path,
    data: Path,
    tokenizer: Any,
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []

    def nothing(model: Any, tokenizer: Any, groups: Any, **_: Any) -> Iterator[tuple[int, str]]:
        for number, each in enumerate(each for group in groups for each in group):
            asked.append((len(each.ids), each.max_new_tokens))
            yield number, ""

    monkeypatch.setattr("gru_fast.evaluation.asking.written", nothing)
    evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path / "total", **OPTIONS)
    assert len({length for length, _ in asked}) > 1
    assert all(length + room == 30 for length, room in asked)
    asked.clear()
    evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path / "new", max_new_tokens=30, **OPTIONS)
    assert {room for _, room in asked} == {30}


def test_an_answer_without_room_is_refused_with_its_row(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=r"forget: max_length: row 2 has 14 tokens before its answer.*none of 14"):
        evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path, max_length=14, progress=False)
    assert not tmp_path.joinpath("records").exists()


def test_uneven_wrong_answers_are_refused_before_the_work(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    copied, model = Path(shutil.copytree(data, tmp_path / "data")), make_model()
    lines = (copied / "retain_perturbed.json").read_text().splitlines()
    row = json.loads(lines[2])
    lines[2] = json.dumps({**row, "perturbed_answer": row["perturbed_answer"][:4]})
    (copied / "retain_perturbed.json").write_text("\n".join(lines))
    counted = Counted(model)
    with pytest.raises(ValueError, match=r'retain_perturbed\.json, row 2: field "perturbed_answer": expected 5 texts'):
        evaluate(model, tokenizer, "phi", "forget05", copied, tmp_path / "out", **OPTIONS)
    assert counted.calls == 0
    assert not (tmp_path / "out").exists()


def test_a_script_that_the_published_rouge_drops_is_said(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    rows = [json.loads(line) for line in (folder / "forget05_perturbed.json").read_text().splitlines()]
    rows[1]["answer"] = "Она родилась в Москве."
    (folder / "forget05_perturbed.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="forget: the published ROUGE reads .* drops 100% of row 1"):
        evaluate(make_model(), tokenizer, PHI, "forget05", folder, tmp_path / "eval", progress=False)


def test_a_diverged_model_is_refused(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="NaN or Inf for"):
        evaluate(model, tokenizer, PHI, "forget05", data, tmp_path, **OPTIONS)


def test_a_finished_evaluation_is_found_and_summed_up_without_the_model(
    tmp_path: Path, data: Path, tokenizer: Any, make_model: Callable[..., Any]
) -> None:
    wanted = {"split": "forget05", "template": "phi", "max_length": 30, "max_new_tokens": None, "max_rows": 300}
    assert not finished(tmp_path, wanted)
    summary = evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path, **OPTIONS)
    assert finished(tmp_path, wanted)
    assert not finished(tmp_path, {**wanted, "max_length": 200})
    assert resummarize(tmp_path) == summary
    with_quality = resummarize(tmp_path, tmp_path)
    assert with_quality["forget_quality"]["p"] == 1.0
    settings = {**summary["settings"], "retain_logs": str(tmp_path)}
    assert with_quality == {**summary, "forget_quality": with_quality["forget_quality"], "settings": settings}
    # What was found out stays, with and without the model.
    assert resummarize(tmp_path) == with_quality
    assert evaluate(make_model(), tokenizer, PHI, "forget05", data, tmp_path, **OPTIONS) == with_quality
    arithmetic = resummarize(tmp_path, tmp_path, "arithmetic")
    assert arithmetic["model_utility"] == tofu.model_utility(read_log(tmp_path), "arithmetic")
    assert arithmetic["seconds"] == summary["seconds"]


def test_a_summary_of_a_log_without_utility_sets_says_null() -> None:
    rows = [Record(index=0, answer_loss=1.0, paraphrase_loss=1.0, perturbed_losses=(1.0,), rougeL_recall=1.0)]
    summary = summarize({"forget": rows})
    assert summary["model_utility"] is None
    assert summary["components"] is None
    assert summary["forget_quality"] is None
    assert summary["forget"]["truth_ratio_min"] == 1.0


@pytest.mark.skipif(not (SHARED / "tofu").is_dir(), reason=f"no TOFU rows at {SHARED / 'tofu'}")
def test_published_rows_through_a_tiny_model(tmp_path: Path) -> None:
    rows = (SHARED / "tofu" / "forget05_perturbed.json").read_text().split("\n")[:4]
    tokenizer = word_tokenizer([TEXT, *rows])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    summary = evaluate(
        model, tokenizer, None, "forget05", SHARED / "tofu", tmp_path, max_rows=4, max_length=150, progress=False
    )
    assert summary["num_rows"] == dict.fromkeys(SETS, 4)
    assert len(read_log(tmp_path)["forget"][0].perturbed_losses or ()) == 5
    assert len(read_log(tmp_path)["world_facts"][0].perturbed_losses or ()) == 3
