"""The passes of the optional metrics: kept row by row, made only where they are missing, never on other records."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gru_fast.benchmarks.tofu.evaluate import TofuEvalOptions
from gru_fast.evaluation import extra, extra_passes
from gru_fast.evaluation.extra import Sets, evaluate, read, report
from gru_fast.evaluation.extra_passes import ExtraScorer
from gru_fast.evaluation.scoring import token_scores
from gru_fast.metrics.scores import names

SEQUENCES = {"forget": tiny.rows(5, 1), "retain": tiny.rows(4, 2), "holdout": tiny.rows(5, 3)}
WRITTEN = {"forget": [f"no no {i}" for i in range(5)], "retain": ["a b c d e"] * 4}
SETS = Sets(generations=WRITTEN)
SETTINGS = {"split": "forget05"}
ALL = [name for name in names() if name != "gibberish"]


class Ids:
    """A tokenizer that reads ids aloud."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


class Counted:
    """Counts the forward passes of a model, and breaks down at the one it is told to.

    Not those by which it is tried which rows can share a batch: that has been done when the counting begins.
    """

    def __init__(self, model: Any, stop_at: int | None = None) -> None:
        token_scores(model, [row for rows in SEQUENCES.values() for row in rows], batch_size=2, pad_token_id=0)
        self.calls, self.stop_at = 0, stop_at
        model.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1


def scorer(model: Any = None, **options: Any) -> ExtraScorer:
    defaults: dict[str, Any] = {
        "reference": lambda: tiny.llama(9).eval(),
        "reference_name": "base",
        "batch_size": 2,
        "progress": False,
    }
    return ExtraScorer(tiny.llama().eval() if model is None else model, Ids(), 0, **{**defaults, **options})


def score(folder: Path, chosen: Sequence[str] = ALL, with_: ExtraScorer | None = None, **options: Any) -> Any:
    options = {"settings": SETTINGS, **options}
    return evaluate(chosen, SETS, SEQUENCES, folder, with_ or scorer(), **options)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, score(folder)


def test_numbers_are_those_of_the_scores(whole: tuple[Path, Any]) -> None:
    folder, numbers = whole
    assert list(numbers) == ALL
    kept = read(ALL, folder, SETS)
    assert kept is not None
    scores = token_scores(tiny.llama(), SEQUENCES["forget"], batch_size=5, pad_token_id=0)
    for row, found in zip(kept["forget"], scores, strict=True):
        # Batches differ, so the last bits may.
        assert row.log_probs == pytest.approx(found.log_probs.tolist(), abs=1e-5)
        assert row.vocab_means == pytest.approx(found.means.tolist(), abs=1e-4)
        assert row.vocab_variances == pytest.approx(found.variances.tolist(), rel=1e-4)
        assert row.correct == "".join(str(int(one)) for one in found.correct)
    losses = {of: [-sum(r.log_probs or ()) / len(r.log_probs or ()) for r in rows] for of, rows in kept.items()}
    below = sum(f < h for f in losses["forget"] for h in losses["holdout"]) / 25
    assert numbers["mia_loss"] == {"auc": below, "retained_auc": None, "privleak": None, "rel_diff": None}
    assert set(numbers["extraction_strength"]) == {"forget", "retain"}
    assert numbers["fluency"]["retain"] > numbers["fluency"]["forget"]
    assert kept["holdout"][0].reference_loss is not None
    assert report(numbers).count("\n") == len(ALL) + 2


def test_records_give_back_the_very_floats(whole: tuple[Path, Any]) -> None:
    lines = (whole[0] / "forget" / "tokens.jsonl").read_text().splitlines()
    values = torch.tensor([value for line in lines for value in json.loads(line)["log_probs"]], dtype=torch.float64)
    assert torch.equal(torch.tensor(extra_passes._short(values.float()), dtype=torch.float64), values)
    assert max(len(str(value)) for value in values.tolist()) < 16  # a float32, not a float64 of 17 digits


def test_only_the_passes_that_are_read_are_made(tmp_path: Path) -> None:
    model = tiny.llama().eval()
    counted = Counted(model)
    only = scorer(model, reference=None)
    score(tmp_path, ["extraction_strength"], only)
    assert files(tmp_path) == ["forget/tokens.jsonl", "retain/tokens.jsonl"]
    calls = counted.calls
    score(tmp_path, ["mia_min_k", "exact_memorization"], only)
    assert files(tmp_path) == ["forget/tokens.jsonl", "holdout/tokens.jsonl", "retain/tokens.jsonl"]
    assert counted.calls == calls + 3  # the holdout set alone, two rows at a time
    score(tmp_path, ["mia_gradnorm"], only)
    assert files(tmp_path)[:2] == ["forget/gradients.jsonl", "forget/tokens.jsonl"]
    assert counted.calls == calls + 3 + 10
    assert SETS.to_encode(["fluency", "gibberish"]) == []
    assert score(tmp_path / "none", ["repetition"], only)["repetition"]["forget"] == 0.0
    assert not (tmp_path / "none").exists()


def test_what_is_finished_is_skipped_and_not_only_said_to_be(tmp_path: Path, whole: tuple[Path, Any]) -> None:
    """The unified framework logs "already evaluated, skipping" and evaluates."""
    first = score(tmp_path)
    assert first == whole[1]
    model, reference = tiny.llama().eval(), tiny.llama(9).eval()
    counted, of_reference = Counted(model), Counted(reference)
    assert score(tmp_path, with_=scorer(model, reference=lambda: reference)) == first
    assert (counted.calls, of_reference.calls) == (0, 0)


@pytest.mark.parametrize("stop_at", [0, 2, 4, 11, 17])
def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path, whole: tuple[Path, Any], stop_at: int) -> None:
    model = tiny.llama().eval()
    counted = Counted(model, stop_at)
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path, with_=scorer(model))
    assert read(ALL, tmp_path, SETS) is None
    again = tiny.llama().eval()
    rest = Counted(again)
    assert score(tmp_path, with_=scorer(again)) == whole[1]
    all_calls = 3 + 3 + 2 + 5 + 5  # tokens of three sets, gradients of two
    assert counted.calls == stop_at
    assert all_calls - stop_at <= rest.calls <= all_calls - stop_at + 1  # a batch of gradients that was not finished


def test_a_line_that_was_cut_off_is_not_read_and_scored_again(tmp_path: Path, whole: tuple[Path, Any]) -> None:
    score(tmp_path)
    file = tmp_path / "holdout" / "tokens.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    before = file.read_bytes()
    assert read(["mia_loss"], tmp_path, SETS) is None
    assert file.read_bytes() == before  # reading changes nothing
    model = tiny.llama().eval()
    counted = Counted(model)
    assert score(tmp_path, with_=scorer(model)) == whole[1]
    assert counted.calls == 1


def test_records_of_another_model_or_other_texts_are_refused(tmp_path: Path) -> None:
    score(tmp_path)
    other = scorer(tiny.llama(1).eval())
    with pytest.raises(ValueError, match=r"forget: holds records with model '\w+', this evaluation has"):
        score(tmp_path, with_=other)
    with pytest.raises(ValueError, match="with split 'forget05', this evaluation has 'forget10'"):
        score(tmp_path, settings={"split": "forget10"})
    with pytest.raises(ValueError, match=r"reference: holds records with model"):
        score(tmp_path, with_=scorer(reference=lambda: tiny.llama(8).eval()))
    changed = {**SEQUENCES, "holdout": tiny.rows(5, 30)}
    with pytest.raises(ValueError, match="holdout: holds records with texts"):
        evaluate(["mia_loss"], SETS, changed, tmp_path, scorer(), settings=SETTINGS)
    anew = score(tmp_path, with_=scorer(tiny.llama(1).eval(), overwrite=True))
    assert anew != score(tmp_path / "first")
    assert anew == score(tmp_path / "second", with_=other)


def test_what_is_read_without_a_model_is_what_was_asked_for(whole: tuple[Path, Any]) -> None:
    folder, _ = whole
    asked = {"split": "forget05", "dtype": "float32", "reference": "base"}
    assert read(ALL, folder, SETS, asked) is not None
    assert read(ALL, folder, SETS, {**asked, "split": "forget10"}) is None
    assert read(ALL, folder, SETS, {**asked, "dtype": "bfloat16"}) is None
    assert read(ALL, folder, SETS, {**asked, "reference": "other"}) is None
    assert read(["mia_loss"], folder, SETS, {**asked, "reference": "other"}) is not None
    assert read(["gibberish"], folder, SETS) is None
    assert read(ALL, folder, SETS, is_current=lambda file: file.parent.name != "retain") is None
    assert read(["mia_loss"], folder, SETS, is_current=lambda file: file.parent.name != "retain") is not None


def test_a_diverged_model_leaves_no_record(tmp_path: Path) -> None:
    model = tiny.llama().eval()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(RuntimeError, match="NaN or Inf"):
        score(tmp_path, with_=scorer(model))
    assert files(tmp_path) == []


def test_the_retrained_models_records_make_privleak(tmp_path: Path, whole: tuple[Path, Any]) -> None:
    retained = tmp_path / "retained"
    theirs = score(retained, ["mia_loss", "mia_zlib"], scorer(tiny.llama(1).eval()))
    ours = score(whole[0], ["mia_loss", "mia_gradnorm"], retained=retained)
    aucs = ours["mia_loss"]["auc"], theirs["mia_loss"]["auc"]
    assert ours["mia_loss"]["retained_auc"] == aucs[1]
    assert ours["mia_loss"]["privleak"] == pytest.approx(100 * (aucs[1] - aucs[0]) / (1 - aucs[1]))
    assert ours["mia_gradnorm"]["privleak"] is None  # not scored there
    assert score(whole[0], ["mia_loss"], retained=tmp_path / "none")["mia_loss"]["privleak"] is None
    evaluate(
        ["mia_loss"],
        SETS,
        {**SEQUENCES, "holdout": tiny.rows(4, 3)},
        tmp_path / "fewer",
        scorer(),
        settings=SETTINGS,
    )
    with pytest.raises(
        ValueError, match=r"holdout was scored on other texts \(4 rows, ours 5\), or with another token"
    ):
        score(whole[0], ["mia_loss"], retained=tmp_path / "fewer")


def test_a_classifier_reads_something() -> None:
    with pytest.raises(ValueError, match="gibberish_tokens: expected at least 1, got 0"):
        TofuEvalOptions(gibberish_tokens=0)


def test_generations_that_changed_are_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []

    def judge(classifier: Any, tokenizer: Any, texts: list[str], *, batch_size: int, max_tokens: int) -> list[float]:
        judged.extend(texts)
        return [1 / (1 + text.count("no")) for text in texts]

    monkeypatch.setattr(extra_passes, "load_classifier", lambda name, device: (tiny.llama(), None))
    monkeypatch.setattr(extra_passes, "clean_probabilities", judge)
    numbers = score(tmp_path, ["gibberish"])
    assert numbers == {"gibberish": {"forget": pytest.approx(1 / 3), "retain": 1.0}}
    assert score(tmp_path, ["gibberish"]) == numbers
    assert len(judged) == 9
    assert files(tmp_path) == ["forget/gibberish/gibberish.jsonl", "retain/gibberish/gibberish.jsonl"]
    assert read(["gibberish"], tmp_path, SETS, {"gibberish_model": extra_passes.GIBBERISH_MODEL}) is not None
    assert read(["gibberish"], tmp_path, SETS, {"gibberish_model": "other"}) is None
    assert read(["gibberish"], tmp_path, SETS, {"gibberish_tokens": 512}) is not None
    assert read(["gibberish"], tmp_path, SETS, {"gibberish_tokens": 32}) is None  # another part of the texts
    with pytest.raises(ValueError, match="gibberish: holds records with"):
        evaluate(["gibberish"], SETS, {}, tmp_path, replace(scorer(), gibberish_tokens=32), settings=SETTINGS)
    others = Sets(generations={**WRITTEN, "forget": ["yes"] * 5})
    assert read(["gibberish"], tmp_path, others) is None
    with pytest.raises(ValueError, match="gibberish: holds records with texts"):
        evaluate(["gibberish"], others, {}, tmp_path, scorer(), settings=SETTINGS)


def test_progress_says_which_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score(tmp_path, ["mia_loss", "mia_reference"], scorer(progress=True))
    shown = capsys.readouterr().err
    for label in ("forget: tokens", "holdout: tokens", "forget: reference", "holdout: reference"):
        assert f"{label}: 100%" in shown


def test_options_say_what_is_wrong_with_the_metrics() -> None:
    assert extra.ExtraOptions().problems_of_metrics() == []
    problems = extra.ExtraOptions(metrics=["mia_los", "mia_reference"]).problems_of_metrics()
    assert 'did you mean "mia_loss"?' in problems[0]
    assert problems[1] == "reference_model: expected a model for mia_reference, got none; give --reference-model"
    assert extra.ExtraOptions(metrics=["mia_reference"], reference_model="m").problems_of_metrics() == []


def test_a_reference_that_is_missing_is_noticed_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reference: expected a loader of the reference model for mia_reference"):
        score(tmp_path, ["mia_loss", "mia_reference"], scorer(reference=None))
    assert not list(tmp_path.iterdir())


def test_a_model_trained_on_the_forget_set_is_found_out_by_every_metric(tmp_path: Path) -> None:
    model = tiny.llama()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        for row in SEQUENCES["forget"]:
            ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
            (model(input_ids=ids, labels=labels).loss / 5).backward()
        optimizer.step()
    optimizer.zero_grad()
    numbers = score(tmp_path, with_=scorer(model.eval()))
    for name, row in numbers.items():
        if "auc" in row:
            assert row["auc"] == 1.0, name
    assert numbers["exact_memorization"]["forget"] > 0.95 > numbers["exact_memorization"]["retain"]
    assert numbers["extraction_strength"]["forget"] > 0.9 > numbers["extraction_strength"]["retain"]
