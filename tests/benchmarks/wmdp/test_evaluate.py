"""WMDP's evaluation: the prompts of lm-eval's own tasks, accuracies against a count by hand, what is kept, errors."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import wmdp_files
import yaml

from gru_fast.benchmarks.wmdp import evaluate as wmdp_eval
from gru_fast.benchmarks.wmdp.evaluate import WmdpEvalOptions, evaluate, summarize, task_specs
from gru_fast.benchmarks.wmdp.questions import definition, prompt

needs_lm_eval = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("lm_eval") is None, reason="lm-eval is not installed: gru_fast[wmdp]"
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wmdp")
    wmdp_files.save_questions(folder / "questions")
    return folder


ROW = {"question": " What is it? ", "choices": ["one", "two", "three", "four"], "answer": 2, "subject": "moss_lore"}


def test_a_prompt() -> None:
    assert prompt(ROW, "biology") == (
        "The following are multiple choice questions (with answers) about biology.\n\nWhat is it?\nA. one\nB. two\n"
        "C. three\nD. four\nAnswer:"
    )
    assert prompt(ROW, None).startswith("What is it?\nA. one")


OWN = {
    "wmdp_bio": "wmdp/wmdp_bio.yaml",
    "wmdp_chem": "wmdp/wmdp_chem.yaml",
    "wmdp_cyber": "wmdp/wmdp_cyber.yaml",
    "mmlu_abstract_algebra": "mmlu/default/mmlu_abstract_algebra.yaml",
}


@needs_lm_eval
@pytest.mark.parametrize("name", OWN)
def test_prompts_are_those_of_lm_evals_own_tasks(name: str, tmp_path: Path) -> None:
    """Its own task over the same rows, without the hub."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    row = {**ROW, "subject": "abstract_algebra"}
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    spec = task_specs([name], tmp_path)[name]
    config = _yaml(Path(lm_eval.__file__).parent / "tasks" / OWN[name])
    rows = datasets.Dataset.from_list([row])
    config = {**config, "custom_dataset": lambda **_: {"test": rows, "dev": rows}}
    own, ours = (TaskManager(include_defaults=False).load([each])["tasks"][name] for each in (config, definition(spec)))
    for task in (own, ours):
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests()
    assert [request.args for request in own.instances] == [request.args for request in ours.instances]
    assert ours.instances[2].args[1] == " C"


def _yaml(path: Path) -> dict[str, Any]:
    """A task's file with the one it includes."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    include = content.pop("include", None)
    return {**(_yaml(path.parent / include) if include else {}), **content}


def asked_by_hand(model: Any, tokenizer: Any, folder: Path, name: str) -> list[tuple[list[float], bool]]:
    """The log-likelihoods of the choices, and whether the highest is right: question by question, without batches."""
    about = {"wmdp_bio": "biology", "wmdp_cyber": "cybersecurity", "mmlu": "moss lore"}[name]
    found = []
    for line in (folder / f"{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = tokenizer(prompt(row, about))["input_ids"]
        logits = model(torch.tensor([ids])).logits[0, -1]
        letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ABCD"]
        log_probs = logits.log_softmax(dim=-1)[letters]
        found.append((log_probs.tolist(), int(log_probs.argmax()) == row["answer"]))
    return found


@needs_lm_eval
def test_accuracies_are_those_of_a_count_by_hand(places: Path, tmp_path: Path) -> None:
    model, tokenizer, questions = wmdp_files.model(), wmdp_files.tokenizer(), places / "questions"
    modes = [model.train().training, torch.get_rng_state()]
    specs = task_specs(wmdp_eval.TASKS, questions)
    summary = evaluate(model, tokenizer, tmp_path, tasks=specs, batch_size=3, progress=False)
    assert model.training == modes[0]
    assert torch.equal(torch.get_rng_state(), modes[1])
    model.eval()
    for name in wmdp_eval.TASKS:
        log_probs, expected = zip(*asked_by_hand(model, tokenizer, questions, name), strict=True)
        task = json.loads((tmp_path / "tasks" / f"{name}.json").read_text())
        assert [row["correct"] for row in task["answers"][name]] == list(expected)
        for row, of_choices in zip(task["answers"][name], log_probs, strict=True):
            assert row["log_likelihoods"] == pytest.approx(of_choices, abs=1e-5)
        assert [row["index"] for row in task["answers"][name]] == list(range(8))
        assert summary["accuracy"][name] == sum(expected) / 8
        assert summary["num_rows"][name] == 8
        assert task["accuracy"] == {name: summary["accuracy"][name]}
        assert "lock" not in json.dumps(task["answers"])  # the questions themselves are not kept
    assert summary["benchmark"] == "wmdp"
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    said = wmdp_eval.report(summary)
    assert f"wmdp_bio      {summary['accuracy']['wmdp_bio']:>10.4f}" in said
    assert "mmlu" in said


@needs_lm_eval
def test_nothing_is_said_beside_the_bars(
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # no checkout: git would complain
    specs = task_specs(["mmlu"], places / "questions")
    evaluate(wmdp_files.model(), wmdp_files.tokenizer(), tmp_path / "out", tasks=specs, progress=False)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "fatal" not in capfd.readouterr().err
    # What lm-eval warns of later, such as questions that are cut, is heard.
    assert logging.getLogger("lm_eval").isEnabledFor(logging.WARNING)


@needs_lm_eval
def test_no_examples_are_shown(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import evaluator

    shots, ask = [], evaluator.evaluate

    def seen(*, task_dict: Any, **settings: Any) -> Any:
        shots.extend(task.get_config("num_fewshot") for task in task_dict["tasks"].values())
        return ask(task_dict=task_dict, **settings)

    monkeypatch.setattr(evaluator, "evaluate", seen)
    specs = task_specs(["mmlu", "wmdp_bio"], places / "questions")
    evaluate(wmdp_files.model(), wmdp_files.tokenizer(), tmp_path, tasks=specs, progress=False)
    assert shots == [0, 0]


@needs_lm_eval
def test_a_quick_evaluation(places: Path, tmp_path: Path) -> None:
    model, tokenizer = wmdp_files.model(), wmdp_files.tokenizer()
    specs = task_specs(["wmdp_bio", "mmlu"], places / "questions")
    evaluate(model, tokenizer, tmp_path / "all", tasks=specs, progress=False)
    summary = evaluate(model, tokenizer, tmp_path / "quick", tasks=specs, quick=True, progress=False)
    assert summary["num_rows"] == {"wmdp_bio": 3, "mmlu": 3}
    for name in specs:
        whole, some = (
            json.loads((tmp_path / each / "tasks" / f"{name}.json").read_text())["answers"][name]
            for each in ("all", "quick")
        )
        assert [row["index"] for row in some] == [0, 3, 6]
        for row in some:
            same = whole[row["index"]]
            assert (row["target"], row["correct"]) == (same["target"], same["correct"])
            assert row["log_likelihoods"] == pytest.approx(same["log_likelihoods"], abs=1e-5)
    for heading in ("WMDP Bio", "MMLU"):
        low, high = summary["intervals"][heading]
        assert low <= wmdp_eval.columns(summary)[heading] <= high
    first = evaluate(model, tokenizer, tmp_path / "first", tasks=specs, quick=True, limit=4, progress=False)
    assert first["num_rows"] == {"wmdp_bio": 2, "mmlu": 2}
    assert wmdp_eval.title(WmdpEvalOptions(quick=True)) == "wmdp-quick"


def test_a_group_counts_every_question_the_same() -> None:
    rows = {"a": [{"correct": True}] * 3, "b": [{"correct": False}, {"correct": True}]}
    found = summarize({"mmlu": {"answers": rows}, "wmdp_bio": {"answers": {"wmdp_bio": [{"correct": False}]}}})
    assert found["accuracy"] == {"mmlu": 0.8, "wmdp_bio": 0.0}  # not (1 + 1/2) / 2
    assert found["num_rows"] == {"mmlu": 5, "wmdp_bio": 1}
    assert found["stderr"]["mmlu"] == pytest.approx((0.8 * 0.2 / 4) ** 0.5)
    assert found["stderr"]["wmdp_bio"] == 0.0


@needs_lm_eval
def test_a_stopped_evaluation_goes_on_and_other_settings_are_refused(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = wmdp_files.model(), wmdp_files.tokenizer()
    specs = task_specs(["wmdp_bio", "wmdp_cyber"], places / "questions")
    whole = evaluate(model, tokenizer, tmp_path / "whole", tasks=specs, limit=3, progress=False)
    assert whole["num_rows"] == {"wmdp_bio": 3, "wmdp_cyber": 3}

    asked: list[str] = []
    ask = wmdp_eval._ask

    def count(model: Any, tokenizer: Any, spec: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(spec["name"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(model, tokenizer, spec, *args, **kwargs)

    monkeypatch.setattr(wmdp_eval, "_ask", count)
    out = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, out, tasks=specs, limit=3, progress=False)
    assert not (out / "summary.json").exists()
    again = evaluate(model, tokenizer, out, tasks=specs, limit=3, progress=False)
    assert asked == ["wmdp_bio", "wmdp_cyber", "wmdp_cyber"]
    for key in ("accuracy", "num_rows", "settings"):
        assert again[key] == whole[key]
    evaluate(model, tokenizer, out, tasks=specs, limit=3, progress=False)
    assert len(asked) == 3

    with pytest.raises(ValueError, match=r"wmdp_bio.json: holds answers with limit 3, .* has 2; .*--overwrite"):
        evaluate(model, tokenizer, out, tasks=specs, limit=2, progress=False)
    with pytest.raises(ValueError, match=r"wmdp_bio.json: holds answers with model '"):
        evaluate(wmdp_files.model(1), tokenizer, out, tasks=specs, limit=3, progress=False)
    found = evaluate(wmdp_files.model(1), tokenizer, out, tasks=specs, limit=2, overwrite=True, progress=False)
    assert found["num_rows"] == {"wmdp_bio": 2, "wmdp_cyber": 2}


@needs_lm_eval
def test_a_model_that_has_diverged(places: Path, tmp_path: Path) -> None:
    model = wmdp_files.model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"^the model gives NaN or Inf for \d+ of \d+ choices; it has diverged"):
        evaluate(
            model, wmdp_files.tokenizer(), tmp_path, tasks=task_specs(["mmlu"], places / "questions"), progress=False
        )
    assert not (tmp_path / "tasks" / "mmlu.json").exists()


def test_tasks_without_accuracy_are_refused() -> None:
    with pytest.raises(ValueError, match=r'^tasks: "wikitext" has no accuracy \(word_perplexity\)'):
        wmdp_eval._answer("wikitext", {"metrics": ["word_perplexity"], "word_perplexity": 3.0})


# ---- wrong uses ------------------------------------------------------------------------------------------------------


@needs_lm_eval
@pytest.mark.slow
def test_unknown_tasks_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'^tasks: lm-eval has no "wmdp_bioo", did you mean "wmdp_bio"\?'):
        task_specs(["wmdp_bioo"])
    assert task_specs(wmdp_eval.TASKS) == {name: name for name in wmdp_eval.TASKS}


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    wmdp_eval._task_manager.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"WMDP is evaluated by the package lm-eval: pip install 'gru_fast\[wmdp\]'"):
        task_specs(["wmdp_bio"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["one", "two"]}, r'wmdp_bio, row 0: field "choices": expected 4 texts, got 2'),
        ({"answer": 4}, r'wmdp_bio, row 0: field "answer": expected 0, 1, 2 or 3, got 4'),
        ({"answer": "C"}, r"field \"answer\": expected 0, 1, 2 or 3, got 'C'"),
        ({"question": None}, r'row 0: field "question": expected a text, got None'),
    ],
)
def test_wrong_questions(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "wmdp_bio.jsonl").write_text(json.dumps({**ROW, **change}))
    with pytest.raises(ValueError, match=message):
        task_specs(["wmdp_bio"], tmp_path)
    with pytest.raises(FileNotFoundError, match=r'has wmdp_bio, but no "wmdp_cyber"'):
        task_specs(["wmdp_cyber"], tmp_path)
    for name in ("cais/wmdp", "nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"^questions: expected a folder with TASK.jsonl .*, got {name}$"):
            task_specs(["wmdp_bio"], name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, r"^tasks: expected at least one name, got none"),
        ({"tasks": ["mmlu", "mmlu"], "limit": -1}, r"^tasks: expected each name once, .*; limit: .* got -1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WmdpEvalOptions(**options)
