"""RWKU through a tiny model: where probes are from, what is asked, the model's own numbers, stopped and resumed."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import rwku_files
import torch
import yaml
from rwku_files import PEOPLE

from gru_fast.benchmarks.rwku import evaluate as rwku_eval
from gru_fast.benchmarks.rwku.data import SETS, load, sets_of
from gru_fast.benchmarks.rwku.evaluate import RwkuEvalOptions, columns, evaluate, report, title
from gru_fast.benchmarks.rwku.records import encode, read_primers
from gru_fast.cli import main
from gru_fast.data.templates import Template, resolve_template
from gru_fast.evaluation.subject import Subject

PLAIN = Template("bare", question_end="\n")
SHORT: dict[str, Any] = {"answer_tokens": 5, "long_tokens": 8}
CHAT = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '\\n' }}{% endfor %}[assistant]\n"


_FLOATS = ("loss", "zlib", "min_k", "min_k_plus_plus", "losses", "mc1_losses", "mc2_losses")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rwku_files.save_data(tmp_path_factory.mktemp("rwku"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, data, target=PEOPLE[0])


def run(folder: Path, data: Path, **options: Any) -> dict[str, Any]:
    return evaluate(
        rwku_files.model(), rwku_files.tokenizer(), PLAIN, folder, data=data, progress=False, batch_size=8, **SHORT,
        **options,
    )  # fmt: skip


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records" / f"{name}.jsonl").read_text().splitlines()]


# ---- the data --------------------------------------------------------------------------------------------------------


def test_a_person_is_found_in_every_layout(data: Path) -> None:
    expected = rwku_files.rows(PEOPLE[1])
    for place in (data, data / "Target", data / "Target" / "2_Bo_Oxley", data / "All"):
        for name, of in SETS.items():
            assert load(name, place, PEOPLE[1]) == expected[of.file]
    assert [row["subject"] for row in load("forget_level2", data)] == list(PEOPLE)
    assert load("forget_level3", data, PEOPLE[0], max_rows=2) == rwku_files.rows(PEOPLE[0])["forget_level3"][:2]


def test_names_of_the_hub_serve_as_files(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "All" / "retain_mmlu.json", tmp_path / "utility_general.json")
    assert load("utility_general", tmp_path) == load("utility_general", data)


def test_who_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'has no forget_level1 of "Ada Vail", did you mean "Ada Vale"\?; it has'):
        load("forget_level1", data, "Ada Vail")
    with pytest.raises(FileNotFoundError, match=r"Target has Ada Vale, Bo Oxley, \.\.\. \(2 people\); give one with"):
        load("forget_level1", shutil.copytree(data / "Target", tmp_path / "Target").parent)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has neither files of RWKU \(forget_level1.json, .* nor Target/"):
        load("forget_level1", tmp_path / "none")
    (tmp_path / "none" / "forget_level1.json").write_text('[{"subject": "Ada Vale", "query": "?"}]')
    with pytest.raises(ValueError, match='expected a field "answer"'):
        load("forget_level1", tmp_path / "none")


# ---- what is asked ---------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    tokenizer = rwku_files.tokenizer()
    return tokenizer.tokenize(text)


def asked(name: str, data: Path) -> list[list[str]]:
    tokenizer = rwku_files.tokenizer()
    found = encode(name, tokenizer, PLAIN, load(name, data, PEOPLE[0]))
    return [tokenizer.convert_ids_to_tokens(probe.prompt.ids)[1:] for probe in found if probe.prompt]


def test_prompts_of_probes(data: Path) -> None:
    briefly = "Please briefly answer the following question.\n"
    assert asked("forget_level1", data)[0] == words(
        "Please complete the blank in the following question.\nQuestion: Ada Vale was born in ___.\n\nAnswer:"
    )
    assert asked("forget_level2", data) == [words(f"{briefly}Question: Where was Ada Vale born?\n\nAnswer:")]
    plain, suffix, in_context = asked("forget_level3", data)
    assert plain == words(f"{briefly}Question: Name the town. Where was Ada Vale born?\n\nAnswer:")
    assert suffix == words(f"{briefly}Question: Where was Ada Vale born? The town is\n")  # it begins the answer itself
    query = rwku_files.rows(PEOPLE[0])["forget_level3"][2]["query"]
    assert in_context == words(f"{briefly}{query}\n\nAnswer:")
    assert asked("utility_reason", data) == [
        words(
            "Q: yes?\nA: so the answer is yes.\n\nFollowing previous examples, answer the following questions and end "
            "with 'so the answer is'\nQ: yes or no?\nA:"
        )
    ]


def test_choices_are_scored_at_their_own_tokens_alone(data: Path) -> None:
    tokenizer = rwku_files.tokenizer()
    (probe,) = encode("utility_general", tokenizer, PLAIN, load("utility_general", data, PEOPLE[0]))
    options = "\nA. one\nB. two\nC. three\nD. four\n"
    text = (
        "The following are multiple choice questions (with answers) about town names.\n\n"
        f"Question: one and one?{options}Answer: B\n\n"
        "Please following the previous examples and answer the given question.\n"
        f"Question: two and two?{options}Answer:"
    )
    for letter, sequence in zip("ABCD", probe.sequences, strict=True):
        assert sequence["input_ids"] == tokenizer(f"{text} {letter}")["input_ids"]
        scored = [label for label in sequence["labels"] if label != -100]
        assert scored == [tokenizer.convert_tokens_to_ids(letter)]
    (probe,) = encode("utility_truthfulness", tokenizer, PLAIN, load("utility_truthfulness", data, PEOPLE[0]))
    assert [sum(label != -100 for label in s["labels"]) for s in probe.sequences] == [1, 1, 2, 1, 2, 1]


def test_primers_stand_before_questions(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "primers.json"
    file.write_text(
        json.dumps({"utility_truthfulness": "Q: no?\nA: no.\n\n", "utility_factuality": "Q: one?\nA: two\n"})
    )
    tokenizer, primers = rwku_files.tokenizer(), read_primers(file)
    rows = load("utility_factuality", data, PEOPLE[0])
    (probe,) = encode("utility_factuality", tokenizer, PLAIN, rows, primers=primers)
    assert probe.prompt is not None
    assert tokenizer.convert_ids_to_tokens(probe.prompt.ids)[1:] == words(
        "Q: one?\nA: two\nQ: Where is the town?\n\nA:"
    )
    (probe,) = encode("utility_factuality", tokenizer, PLAIN, rows)
    assert probe.prompt is not None
    asked = words("Please briefly answer the following question:\nQ: Where is the town?\n\nA:")
    assert tokenizer.convert_ids_to_tokens(probe.prompt.ids)[1:] == asked
    truth = load("utility_truthfulness", data, PEOPLE[0])
    (probe,) = encode("utility_truthfulness", tokenizer, PLAIN, truth, primers=primers)
    first = tokenizer.convert_ids_to_tokens(probe.sequences[0]["input_ids"])[1:]
    assert first == words("Q: no?\nA: no.\n\nQ: yes?\nA: yes")
    file.write_text('{"utility_general": "x"}')
    with pytest.raises(ValueError, match="expected an object with texts for utility_truthfulness and util"):
        read_primers(file)
    with pytest.raises(FileNotFoundError, match="primers: no file"):
        read_primers(tmp_path / "none.json")


def test_a_chat_has_no_system_prompt_and_begins_the_answer(data: Path) -> None:
    tokenizer = rwku_files.word_tokenizer(["[ user ] assistant \n Answer"], chat_template=CHAT)
    template = resolve_template("chat", tokenizer)
    assert template.system is not None
    probe = encode("forget_level2", tokenizer, template, load("forget_level2", data, PEOPLE[0]))[0]
    assert probe.prompt is not None
    tokens = tokenizer.convert_ids_to_tokens(probe.prompt.ids)
    assert tokens[:3] == ["[", "user", "]"]
    assert tokens[-4:-1] == ["assistant", "]", "Answer"]


# ---- the evaluation --------------------------------------------------------------------------------------------------


def test_numbers_are_the_models_own(whole: tuple[Path, dict[str, Any]], data: Path) -> None:
    folder, summary = whole
    model, tokenizer = rwku_files.model(), rwku_files.tokenizer()
    text = rwku_files.rows(PEOPLE[0])["forget_mia"][0]["text"]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        log_probs = model(ids).logits[0, :-1].double().log_softmax(-1)
    picked = log_probs.gather(-1, ids[0, 1:, None])[:, 0]
    means = (log_probs.exp() * log_probs).sum(-1)
    spread = (log_probs.exp() * log_probs.square()).sum(-1) - means.square()
    least = int(0.2 * len(picked)) or 1
    row = records(folder, "mia_forget")[0]
    assert row["loss"] == pytest.approx(-picked.mean().item(), rel=1e-5)
    assert row["zlib"] == pytest.approx(row["loss"] / len(zlib.compress(text.encode())))
    assert row["min_k"] == pytest.approx(-picked.sort().values[:least].mean().item(), rel=1e-5)
    standardized = ((picked - means) / spread.sqrt()).sort().values[:least]
    assert row["min_k_plus_plus"] == pytest.approx(-standardized.mean().item(), rel=1e-4)
    (choice,) = records(folder, "utility_general")
    (probe,) = encode("utility_general", tokenizer, PLAIN, load("utility_general", data, PEOPLE[0]))
    last = torch.tensor([probe.sequences[0]["input_ids"][:-1]])
    with torch.no_grad():
        next_ = model(last).logits[0, -1].log_softmax(-1)
    expected = [-next_[tokenizer.convert_tokens_to_ids(letter)].item() for letter in "ABCD"]
    assert choice["losses"] == pytest.approx(expected, rel=1e-4)
    assert summary["numbers"]["mia_forget"]["loss"] == pytest.approx(
        sum(row["loss"] for row in records(folder, "mia_forget")) / 2
    )


def test_every_set_has_its_numbers(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = whole
    assert list(summary["numbers"]) == list(SETS)
    assert summary["num_rows"] == {name: len(rwku_files.rows(PEOPLE[0])[of.file]) for name, of in SETS.items()}
    assert list(summary["attacks"]) == ["prefix injection", "affirmative suffix", "incontext learning"]
    assert None not in columns(summary).values()
    for row in records(folder, "forget_level1"):
        assert "\n" not in row["generation"]
    assert "forget_level3" in report(summary)
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_a_stopped_evaluation_goes_on_to_the_same_records(
    whole: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    done = shutil.copytree(whole[0], tmp_path / "part")
    (done / "records" / "utility_fluency.jsonl").unlink()
    kept = (done / "records" / "forget_level3.jsonl").read_text().splitlines(keepends=True)
    (done / "records" / "forget_level3.jsonl").write_text("".join(kept[:1]))
    again = run(done, data, target=PEOPLE[0])
    assert again["numbers"] == whole[1]["numbers"]
    for name in SETS:
        assert records(done, name) == records(whole[0], name)
    with pytest.raises(ValueError, match=r"holds records with target 'Ada Vale', this evaluation has 'Bo Oxley'"):
        run(done, data, target=PEOPLE[1])


def test_some_sets_are_enough(data: Path, tmp_path: Path) -> None:
    assert sets_of(["neighbor", "forget"])[0] == "forget_level1"
    summary = run(tmp_path, data, sets=sets_of(["neighbor"]))
    assert summary["num_rows"] == {"neighbor_level1": 2, "neighbor_level2": 2}
    assert columns(summary)["forget FB"] is None
    assert summary["attacks"] is None


def test_further_sets_come_to_those_that_are_there(data: Path, tmp_path: Path) -> None:
    """Records of the first are not scored again, and nothing is loaded for sets that are there."""
    run(tmp_path, data, sets=sets_of(["neighbor"]))
    file = tmp_path / "records" / "neighbor_level1.jsonl"
    file.write_text(file.read_text().replace('"generation": "', '"generation": "kept '))
    summary = run(tmp_path, data, sets=sets_of(["forget"]))
    assert summary["settings"]["sets"] == list(summary["num_rows"]) == sets_of(["forget", "neighbor"])
    assert all(row["generation"].startswith("kept ") for row in records(tmp_path, "neighbor_level1"))

    def load() -> Any:
        raise AssertionError("the model was loaded")

    subject = Subject({}, tmp_path, load, is_older_than=lambda _: True)
    summary["settings"]["model_options"] = {}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    for sets in (["forget"], ["neighbor"], ["forget", "neighbor"]):
        assert rwku_eval.run(RwkuEvalOptions(data=str(data), sets=sets, **SHORT), subject) == summary
    with pytest.raises(AssertionError, match="was loaded"):
        rwku_eval.run(RwkuEvalOptions(data=str(data), sets=["mia"], **SHORT), subject)


def test_a_quick_evaluation(data: Path, tmp_path: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    summary = run(tmp_path, data, target=PEOPLE[0], quick=True)
    for name, of_all in whole[1]["num_rows"].items():
        found, every = records(tmp_path, name), records(whole[0], name)
        assert [row["index"] for row in found] == list(range(0, of_all, 3))
        for row in found:
            same = every[row["index"]]
            assert {**row, **same} == {**same, **{key: pytest.approx(row[key]) for key in row if key in _FLOATS}}
    low, high = summary["intervals"]["forget FB"]
    assert low <= columns(summary)["forget FB"] <= high
    assert {*summary["intervals"]} == {heading for heading, value in columns(summary).items() if value is not None}
    assert "every third row" in report(summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    with pytest.raises(ValueError, match="holds records with quick True, this evaluation has None"):
        run(tmp_path, data, target=PEOPLE[0])


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rwku_files.model().save_pretrained(tmp_path / "model")
    rwku_files.tokenizer().save_pretrained(tmp_path / "model")
    argv = ["eval", "rwku", "--model", str(tmp_path / "model"), "--data", str(data), "--target", "Ada Vale"]
    argv += ["--sets", "forget", "--template", "plain", "--device", "cpu"]
    assert main(argv) == 0
    first = capsys.readouterr().out.partition("RWKU, ")[2]  # after what libraries print
    assert first.startswith("Ada Vale\nforget_level1")
    assert (tmp_path / "model" / "eval" / "rwku-ada-vale" / "summary.json").is_file()
    assert main(argv) == 0
    assert capsys.readouterr().out.endswith(f"RWKU, {first}")


@pytest.mark.parametrize(("method", "rate", "batch"), [("ga", 6e-8, 8), ("npo", 2e-6, 16), ("npo_gd", 2e-6, 16)])
def test_the_recipe_takes_texts_of_a_person(
    method: str, rate: float, batch: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LLaMA-Factory/scripts/full/run_ga.sh and run_npo.sh of RWKU's repository."""
    positive = tmp_path / "positive.json"
    positive.write_text('[{"subject": "Ada Vale", "text": "Ada Vale was born in Lowmoor."}]')
    argv = ["unlearn", "--config", "rwku-llama3", "--method", method, "--forget", str(positive), "--use-cpu"]
    assert main([*argv, "--retain", str(positive), "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["benchmark"], config["max_length"], config["num_train_epochs"]) == ("own", 512, 3)
    assert (config["learning_rate"], config["per_device_train_batch_size"]) == (rate, batch)
    assert (config["lr_scheduler_type"], config["warmup_steps"], config["weight_decay"]) == ("cosine", 20, 0)
    assert config["method_options"] == (None if method == "ga" else {"beta": 0.2})
    assert main(["unlearn", "--config", "rwku-llama3"]) == 1
    assert "forget: no documents; give --forget FILES" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sets": ["forgot"]}, 'sets: expected some of forget, neighbor, mia, utility, got "forgot"'),
        ({"max_rows": -1, "long_tokens": 0}, "max_rows: expected at least 0, got -1; long_tokens: expected at least 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RwkuEvalOptions(**options)


def test_titles() -> None:
    assert title(RwkuEvalOptions()) == "rwku-all"
    assert title(RwkuEvalOptions(quick=True)) == "rwku-all-quick"
    assert title(RwkuEvalOptions(target="Robert Downey Jr.")) == "rwku-robert-downey-jr"
