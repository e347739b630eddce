"""`gru-fast eval tofu --metrics`: on the evaluation's own rows, against a holdout set, printed again from records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import DistilBertConfig, DistilBertForSequenceClassification
from words import word_llama, word_tokenizer

from gru_fast.benchmarks.tofu.extra import load_rows
from gru_fast.cli import main
from gru_fast.metrics import aggregate
from gru_fast.metrics.scores import names

WORDS = (
    "Question: Where was author born? \n Answer: She was born in Rome Oslo Lima Cairo . 0 1 2 3 retain forget holdout"
)
PLACES = ("Rome", "Oslo", "Lima", "Cairo")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder in the original layout, four forget and holdout rows."""
    folder = tmp_path / "tofu"
    folder.mkdir()
    sizes = {"forget05_perturbed": 4, "retain_perturbed": 3, "real_authors_perturbed": 2, "world_facts_perturbed": 2}
    for name, size in {**sizes, "holdout05": 5}.items():
        rows = [
            {
                "question": f"Where was {name.split('_')[0]} author {i} born?",
                "answer": f"She was born in {PLACES[i % 4]}.",
                "paraphrased_answer": "Rome.",
                "perturbed_answer": ["Oslo.", "Lima."],
            }
            for i in range(size)
        ]
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def save_model(folder: Path, seed: int) -> Path:
    tokenizer = word_tokenizer([WORDS])
    config = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "initializer_range": 0.3}
    word_llama(tokenizer, seed, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_run(folder: Path, data: Path, seed: int = 0) -> str:
    save_model(folder, seed)
    config = {"split": "forget05", "data": str(data), "template": "phi", "method": "npo"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text("{}")
    return str(folder)


def evaluate(model: str, *args: str) -> int:
    return main(["eval", "tofu", "--model", model, "--max-length", "24", "--device", "cpu", *args])


def summary_of(model: str) -> dict[str, Any]:
    return json.loads((Path(model) / "eval" / "tofu-forget05" / "summary.json").read_text())


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_metrics_are_added_to_an_evaluation_and_printed_again(
    tmp_path: Path, data: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_run(tmp_path / "npo", data)
    assert evaluate(model) == 0
    plain = summary_of(model)
    assert "extra" not in plain
    asked = ("--metrics", "extraction_strength", "mia_loss", "fluency", "mia_min_k_plus_plus", "mia_zlib")
    assert evaluate(model, *asked) == 0
    assert loads == [model, model]
    with_extra = summary_of(model)
    numbers = with_extra.pop("extra")
    assert with_extra == plain
    assert list(numbers) == list(asked[1:])
    out = capsys.readouterr().out
    assert f"mia_loss                    {numbers['mia_loss']['auc']:>14.6f}             -             -" in out
    assert f"extraction_strength         {numbers['extraction_strength']['forget']:>14.6f}" in out
    # The same again, and fewer: nothing is loaded. What was found before stays.
    assert evaluate(model, *asked) == 0
    assert evaluate(model, "--metrics", "mia_loss", "exact_memorization") == 0
    assert evaluate(model) == 0
    assert loads == [model, model]
    assert list(summary_of(model)["extra"]) == [*asked[1:], "exact_memorization"]
    assert {**summary_of(model)["extra"], **numbers} == summary_of(model)["extra"]


def test_forget_rows_are_those_of_the_evaluation(tmp_path: Path, data: Path) -> None:
    model = save_run(tmp_path / "npo", data)
    assert evaluate(model, "--metrics", "mia_loss", "fluency") == 0
    folder = tmp_path / "npo" / "eval" / "tofu-forget05"
    answers = [json.loads(line) for line in (folder / "records" / "forget.jsonl").read_text().splitlines()]
    tokens = [json.loads(line) for line in (folder / "extra" / "forget" / "tokens.jsonl").read_text().splitlines()]
    assert len(answers) == 4
    for answer, row in zip(answers, tokens, strict=True):
        assert len(row["log_probs"]) == answer["num_tokens"]
        assert -sum(row["log_probs"]) / answer["num_tokens"] == pytest.approx(answer["answer_loss"], abs=1e-5)
    holdout = (folder / "extra" / "holdout" / "tokens.jsonl").read_text().splitlines()
    assert len(holdout) == 5
    # Stale once the evaluation is another one.
    assert evaluate(model, "--max-rows", "3", "--overwrite") == 0
    assert "extra" not in summary_of(model)
    assert evaluate(model, "--max-rows", "3", "--metrics", "mia_loss") == 1
    assert evaluate(model, "--max-rows", "3", "--metrics", "mia_loss", "--overwrite") == 0
    assert len((folder / "extra" / "holdout" / "tokens.jsonl").read_text().splitlines()) == 3


def test_privleak_is_relative_to_the_retrained_run(tmp_path: Path, data: Path) -> None:
    model, retained = save_run(tmp_path / "npo", data), save_run(tmp_path / "retrained", data, seed=1)
    assert evaluate(retained, "--metrics", "mia_min_k") == 0
    assert evaluate(model, "--metrics", "mia_min_k", "mia_loss", "--retain-logs", retained) == 0
    numbers, theirs = summary_of(model)["extra"], summary_of(retained)["extra"]
    assert numbers["mia_min_k"]["retained_auc"] == theirs["mia_min_k"]["auc"]
    assert numbers["mia_min_k"]["privleak"] == pytest.approx(
        100 * (theirs["mia_min_k"]["auc"] - numbers["mia_min_k"]["auc"]) / (1 - theirs["mia_min_k"]["auc"])
    )
    # Its records hold mia_loss too, though it was not asked for; a log holds none.
    assert evaluate(retained, "--metrics", "mia_loss") == 0
    assert numbers["mia_loss"]["retained_auc"] == summary_of(retained)["extra"]["mia_loss"]["auc"]
    log = tmp_path / "retrained" / "eval" / "tofu-forget05" / "eval_log_aggregated.json"
    assert evaluate(model, "--metrics", "mia_loss", "--retain-logs", str(log)) == 0
    assert summary_of(model)["extra"]["mia_loss"]["privleak"] is None
    # Another summary of the same records keeps them.
    kept = summary_of(model)["extra"]
    assert evaluate(model, "--retain-logs", retained, "--truth-ratio", "arithmetic") == 0
    assert summary_of(model)["settings"]["truth_ratio"] == "arithmetic"
    assert summary_of(model)["extra"] == kept


def save_classifier(folder: Path) -> str:
    """A classifier of gibberish, at random."""
    tokenizer = word_tokenizer([WORDS], pad_token="</s>", model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(folder)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=8, hidden_dim=8, n_layers=1, n_heads=1, id2label={0: "clean", 1: "noise"}
    )
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def test_all_metrics_at_once(tmp_path: Path, data: Path) -> None:
    classifier = save_classifier(tmp_path / "classifier")
    model, base = save_run(tmp_path / "npo", data), str(save_model(tmp_path / "base", seed=2))
    others = ("--gibberish-model", classifier, "--reference-model", base)
    assert evaluate(model, "--metrics", *names(), *others) == 0
    numbers = summary_of(model)["extra"]
    assert list(numbers) == names()
    assert 0 < numbers["gibberish"]["forget"] < 1
    folder = tmp_path / "npo" / "eval" / "tofu-forget05" / "extra"
    assert sorted(path.name for path in folder.iterdir()) == ["forget", "holdout", "retain"]
    kept = json.loads((folder / "forget" / "reference" / "settings.json").read_text())
    assert (kept["reference"], kept["num_rows"], kept["split"]) == (base, 4, "forget05")
    # Another classifier is another pass; it is not there.
    assert evaluate(model, "--metrics", "gibberish", "--gibberish-model", str(tmp_path / "none")) == 1


def test_aggregates_bring_what_they_are_made_of(tmp_path: Path, data: Path, loads: list[str]) -> None:
    model, retained = save_run(tmp_path / "npo", data), save_run(tmp_path / "retrained", data, seed=1)
    classifier = ("--gibberish-model", save_classifier(tmp_path / "classifier"))
    assert evaluate(model, "--metrics", "aggregate_memorization") == 0
    numbers = summary_of(model)["extra"]
    assert list(numbers) == ["extraction_strength", "exact_memorization", "aggregate_memorization"]
    assert evaluate(retained, "--metrics", "aggregate_privacy") == 0
    assert summary_of(retained)["extra"]["aggregate_privacy"] == {"all": None}  # against nobody
    assert evaluate(model, "--metrics", "aggregate_overall", "--retain-logs", retained, *classifier) == 0
    found = summary_of(model)
    assert found["extra"]["aggregate_memorization"] == numbers["aggregate_memorization"]
    assert [name for name in found["extra"] if name.startswith("aggregate")] == [
        "aggregate_memorization",
        "aggregate_overall",
    ]
    loads.clear()
    assert evaluate(model, "--metrics", *aggregate.HELP, "--retain-logs", retained, *classifier) == 0
    assert loads == []
    again = summary_of(model)["extra"]
    parts = [again[name]["all"] for name in aggregate.NAMES]
    utility, clean = found["model_utility"], again["gibberish"]["forget"]
    assert parts[2] == pytest.approx(2 * utility * clean / (utility + clean) if utility else 0)
    assert again["aggregate_overall"]["all"] == pytest.approx(3 / sum(1 / x for x in parts) if min(parts) else 0)


def test_without_holdout_rows_attacks_are_refused_before_the_model_is_loaded(
    tmp_path: Path, data: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "holdout05.json").unlink()
    model = save_run(tmp_path / "npo", data)
    assert evaluate(model, "--metrics", "exact_memorization", "mia_loss") == 1
    said = error_of(capsys)
    assert "membership inference needs questions that no model was trained on, holdout05 of locuslab/TOFU" in said
    assert "or holdout05.json in the folder" in said
    assert loads == []
    assert evaluate(model, "--metrics", "exact_memorization") == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--metrics", "mia_los"), 'got "mia_los", did you mean "mia_loss"?'),
        (("--metrics", "fluency", "flu"), 'got "flu"'),
        (("--metrics", "mia_reference"), "reference_model: expected a model for mia_reference, got none"),
    ],
)
def test_wrong_metrics_are_refused_at_once(
    tmp_path: Path, data: Path, loads: list[str], capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    model = save_run(tmp_path / "npo", data)
    assert evaluate(model, *args) == 1
    assert said in error_of(capsys)
    assert loads == []


def test_a_log_has_no_further_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tofu", "--from-logs", "log.json", "--metrics", "fluency"]) == 1
    assert "metrics: a log does not hold what they need; give --model instead" in error_of(capsys)


def test_metrics_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "metrics", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["metrics"]] == [*names(), *aggregate.HELP]


def test_only_the_rows_that_are_needed_are_read(data: Path) -> None:
    assert load_rows(["fluency", "gibberish"], "forget05", data, 300) == {}
    assert {of: len(rows) for of, rows in load_rows(["mia_zlib"], "forget05", data, 3).items()} == {
        "forget": 3,
        "holdout": 3,
    }
    assert sorted(load_rows(["extraction_strength"], "forget05", data, None)) == ["forget", "retain"]
