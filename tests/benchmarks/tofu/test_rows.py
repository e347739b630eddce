"""TOFU's rows: the published files, their order and pairing, and data sets in the original layout of one's own."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from words import EOS, word_tokenizer

from gru_fast.benchmarks.tofu.rows import (
    HUB,
    SPLITS,
    SUBSETS,
    TofuOptions,
    eval_sets,
    finetuning_data,
    idk_answers,
    load,
    load_eval_sets,
    retain_of,
    unlearning_data,
)
from gru_fast.data.templates import TEMPLATES, encode

pytest.importorskip("transformers")

SHARED = Path(os.environ.get("GRU_FAST_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
TOFU, LOGS = SHARED / "tofu", SHARED / "tofu_eval_logs"
needs_tofu = pytest.mark.skipif(not TOFU.is_dir(), reason=f"no copy of TOFU in {TOFU}; set GRU_FAST_SHARED")
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason=f"no published logs in {LOGS}; set GRU_FAST_SHARED")
PHI = TEMPLATES["phi"]

PUBLISHED = {  # config: rows, beginning of the file's sha256
    "full": (4000, "a27c22aa039e4b4a"),
    "retain90": (3600, "39ffab62c4bbb500"),
    "retain95": (3800, "c90191a30ccba386"),
    "retain99": (3960, "2bb1a3b571f9c4ff"),
    "forget10": (400, "b0e7e229cb73f131"),
    "forget05": (200, "c215a23f4180a196"),
    "forget01": (40, "6c837c881bcbb3ad"),
    "forget10_perturbed": (400, "f36c5bb61f1682af"),
    "forget05_perturbed": (200, "2a13e48ad8060858"),
    "forget01_perturbed": (40, "d1acf73cb590cb4e"),
    "retain_perturbed": (400, "b240b2fea871bb0e"),
    "real_authors_perturbed": (100, "2f1d2b4541b57302"),
    "world_facts_perturbed": (117, "98a179327a70a499"),
}


def write(folder: Path, name: str, rows: list[Any]) -> None:
    (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {"question": f"Q{number} ?", "answer": f"A{number}", **fields}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of one's own: 4 rows to forget and 12 to keep."""
    wrong = ["B", "C"]
    write(tmp_path, "forget25", [row(i) for i in range(4)])
    write(tmp_path, "retain75", [row(i) for i in range(4, 16)])
    write(tmp_path, "full", [row(i) for i in range(16)])
    for name, rows in {"forget25": range(4), "retain": range(4, 8)}.items():
        perturbed = [row(i, paraphrased_answer=f"P{i}", perturbed_answer=wrong) for i in rows]
        write(tmp_path, f"{name}_perturbed", perturbed)
    write(tmp_path, "real_authors_perturbed", [row(20, perturbed_answer=wrong)])
    write(tmp_path, "world_facts_perturbed", [row(21, perturbed_answer=wrong), row(22, perturbed_answer=wrong)])
    (tmp_path / "idontknow.txt").write_text("Not me .\n\n Ask Bob . \nNo")
    return tmp_path


@pytest.fixture
def tokenizer() -> Any:
    texts = [f"Q{i} A{i}" for i in range(16)]
    return word_tokenizer(["Question : Answer ? \n Not me . Ask Bob No", *texts])


# ---- the published files ---------------------------------------------------------------------------------------------


@needs_tofu
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config(name: str) -> None:
    count, digest = PUBLISHED[name]
    rows = load(name, TOFU)
    assert len(rows) == count
    assert hashlib.sha256((TOFU / f"{name}.json").read_bytes()).hexdigest().startswith(digest)
    num_wrong = 3 if name.startswith(("real_authors", "world_facts")) else 5
    for found in rows if name.endswith("_perturbed") else []:
        assert len(found["perturbed_answer"]) == num_wrong
        assert ("paraphrased_answer" in found) == (num_wrong == 5)


@needs_tofu
@pytest.mark.parametrize("split", SPLITS)
def test_a_split_and_its_retain_split_are_the_full_set_in_order(split: str) -> None:
    forget, retain = load(split, TOFU), load(retain_of(split), TOFU)
    assert retain + forget == load("full", TOFU)
    assert not {found["question"] for found in retain} & {found["question"] for found in forget}
    pairs = [(found["question"], found["answer"]) for found in load(f"{split}_perturbed", TOFU)]
    assert pairs == [(found["question"], found["answer"]) for found in forget]


@needs_tofu
def test_a_question_may_occur_twice() -> None:
    counts = Counter(found["question"] for found in load("retain90", TOFU))
    assert [question for question, count in counts.items() if count > 1] == ["What is the full name of the author?"]


@needs_tofu
def test_published_names_are_all_there() -> None:
    assert {*SPLITS, *SUBSETS} < PUBLISHED.keys()
    assert {name for split in SPLITS for name in eval_sets(split).values()} < PUBLISHED.keys()


@needs_tofu
@needs_logs
@pytest.mark.parametrize(("log", "split"), [("phi_retain90", "forget10"), ("phi_retain95", "forget05")])
def test_evaluation_prompts_are_those_of_the_published_logs(log: str, split: str) -> None:
    tasks = {
        "retain": "eval_log.json",
        "real_authors": "eval_real_author_wo_options.json",
        "world_facts": "eval_real_world_wo_options.json",
        "forget": "eval_log_forget.json",
    }
    published = json.loads((LOGS / f"{log}.json").read_text())
    for name, rows in load_eval_sets(split, TOFU).items():
        logged = [texts[0] for texts in published[tasks[name]]["generated_text"].values()]
        assert [PHI.prompt(None, found["question"]) for found in rows] == logged, name


@needs_tofu
def test_published_idk_answers() -> None:
    answers = idk_answers(TOFU)
    assert len(answers) == 100
    assert answers[:2] == ["I'm not certain about that.", "That's beyond my current knowledge base."]
    assert all(answer == answer.strip() for answer in answers)


@needs_tofu
def test_unlearning_data_of_real_rows() -> None:
    tokenizer = word_tokenizer(text for found in load("full", TOFU) for text in found.values())
    dataset = unlearning_data(tokenizer, PHI, "forget05", TOFU)
    assert len(dataset) == 200
    first = load("forget05", TOFU)[0]
    assert dataset[0]["forget"] == encode(tokenizer, PHI, first["question"], first["answer"], 500)
    rows = finetuning_data(tokenizer, PHI, "retain95", TOFU)
    assert dataset[0]["retain"] in rows
    # nothing is cut, neither in training nor with the 200 tokens of the evaluation
    assert all(found["input_ids"][-1] == EOS for found in rows)
    assert max(len(found["input_ids"]) for found in rows) <= 200


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "retain"),
    [("forget01", "retain99"), ("forget05", "retain95"), ("forget10", "retain90"), ("forget25", "retain75")],
)
def test_retain_of(split: str, retain: str) -> None:
    assert retain_of(split) == retain


def test_eval_sets() -> None:
    assert eval_sets("forget05") == {
        "forget": "forget05_perturbed",
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    }


@pytest.mark.parametrize("split", ["forget5", "forget00", "forget100", "retain95", "forget05_perturbed", ""])
def test_what_is_no_split_to_forget(split: str) -> None:
    for function in (retain_of, eval_sets):
        with pytest.raises(ValueError, match=rf'split: expected forget01, forget05, forget10.*, got "{split}"'):
            function(split)


def test_the_nearest_split_is_named() -> None:
    with pytest.raises(ValueError, match=r'got "forget5", did you mean "forget05"\?'):
        retain_of("forget5")


def test_options() -> None:
    options = TofuOptions()
    assert (options.data, options.split, options.max_length, options.idk_file) == (HUB, "forget05", 500, None)
    assert TofuOptions(split="forget25", max_length=64).split == "forget25"


def test_options_report_all_that_is_wrong() -> None:
    with pytest.raises(ValueError, match=r'split: expected .*, got "forget5".*; max_length: expected .* 2, got 1'):
        TofuOptions(split="forget5", max_length=1)
    with pytest.raises(ValueError, match=r"max_length: expected an integer of at least 2, got True"):
        TofuOptions(max_length=True)


# ---- a folder of one's own -------------------------------------------------------------------------------------------


def test_evaluation_sets_have_all_that_scoring_needs(folder: Path) -> None:
    sets = load_eval_sets("forget25", folder)
    assert {name: len(rows) for name, rows in sets.items()} == {
        "forget": 4,
        "retain": 4,
        "real_authors": 1,
        "world_facts": 2,
    }
    assert sets["forget"][1] == row(1, paraphrased_answer="P1", perturbed_answer=["B", "C"])
    assert sets["world_facts"][0]["paraphrased_answer"] == sets["world_facts"][0]["answer"] == "A21"


def test_evaluation_sets_are_cut_to_their_first_rows(folder: Path) -> None:
    sets = load_eval_sets("forget25", folder, max_rows=2)
    assert [len(rows) for rows in sets.values()] == [2, 2, 1, 2]
    assert sets["retain"][0]["question"] == "Q4 ?"
    with pytest.raises(ValueError, match="max_rows: expected at least 1, or None for all rows, got 0"):
        load_eval_sets("forget25", folder, max_rows=0)


def test_by_default_300_rows_are_evaluated(folder: Path) -> None:
    write(folder, "retain_perturbed", [row(i, paraphrased_answer="P", perturbed_answer=["B"]) for i in range(301)])
    assert len(load_eval_sets("forget25", folder)["retain"]) == 300
    assert len(load_eval_sets("forget25", folder, max_rows=None)["retain"]) == 301


@pytest.mark.parametrize("name", ["forget25_perturbed", "retain_perturbed"])
def test_perturbed_rows_without_paraphrase(folder: Path, name: str) -> None:
    write(folder, name, [row(0, perturbed_answer=["B"])])
    with pytest.raises(ValueError, match=rf'{name}\.json, row 0: expected a field "paraphrased_answer"'):
        load_eval_sets("forget25", folder)


def test_a_retain_split_that_is_not_there(folder: Path, tokenizer: Any) -> None:
    write(folder, "forget05", [row(0)])
    with pytest.raises(FileNotFoundError, match=r'retain75, .*, but no "retain95"'):
        unlearning_data(tokenizer, PHI, "forget05", folder)
    assert len(unlearning_data(tokenizer, PHI, "forget05", folder, parts=["forget"])) == 1


def test_an_empty_forget_set(folder: Path, tokenizer: Any) -> None:
    write(folder, "forget25", [])
    with pytest.raises(ValueError, match=r"forget25\.json: expected rows, got an empty file"):
        unlearning_data(tokenizer, PHI, "forget25", folder)


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_each_forget_row_comes_with_a_row_to_keep(folder: Path, tokenizer: Any) -> None:
    dataset = unlearning_data(tokenizer, PHI, "forget25", folder)
    keep = finetuning_data(tokenizer, PHI, "retain75", folder)
    drawn = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        for index in range(4):
            item = dataset[index]
            assert item.keys() == {"forget", "retain"}
            assert item["forget"] == encode(tokenizer, PHI, f"Q{index} ?", f"A{index}", 500)
            drawn.add(keep.index(item["retain"]))
    assert drawn == set(range(12))


def test_the_seed_chooses_the_pairs(folder: Path, tokenizer: Any) -> None:
    def pairs(seed: int) -> list[Any]:
        dataset = unlearning_data(tokenizer, PHI, "forget25", folder, seed=seed)
        return [dataset[i]["retain"] for i in range(4)]

    assert pairs(1) == pairs(1)
    assert len({str(pairs(seed)) for seed in range(5)}) > 1


def test_parts_that_are_not_asked_for_are_not_read(folder: Path, tokenizer: Any) -> None:
    (folder / "retain75.json").unlink()
    (folder / "idontknow.txt").unlink()
    dataset = unlearning_data(tokenizer, PHI, "forget25", folder, parts=())
    assert dataset[0].keys() == {"forget"}


def test_unknown_part(folder: Path, tokenizer: Any) -> None:
    known = "forget, retain, idk, real_authors, world_facts"
    with pytest.raises(ValueError, match=f'parts: expected some of {known}, got "keep"'):
        unlearning_data(tokenizer, PHI, "forget25", folder, parts=("forget", "keep"))


def test_finetuning_data_is_a_whole_subset_in_order(folder: Path, tokenizer: Any) -> None:
    rows = finetuning_data(tokenizer, PHI, "full", folder)
    assert rows == [encode(tokenizer, PHI, f"Q{i} ?", f"A{i}", 500) for i in range(16)]
    assert len(finetuning_data(tokenizer, PHI, "full", folder, max_length=8)[0]["input_ids"]) == 8


# ---- "I don't know" --------------------------------------------------------------------------------------------------

IDK = ["Not me .", "Ask Bob .", "No"]


def test_idk_rows_keep_the_question_and_change_the_answer(folder: Path, tokenizer: Any) -> None:
    dataset = unlearning_data(tokenizer, PHI, "forget25", folder, parts=("idk",))
    seen = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        for index in range(4):
            found = dataset[index]["idk"]
            rows = [encode(tokenizer, PHI, f"Q{index} ?", answer, 500) for answer in IDK]
            seen.add((index, rows.index(found)))
            assert found != dataset[index]["forget"]
    assert seen == {(index, answer) for index in range(4) for answer in range(3)}


def test_idk_draws_go_round_the_answers(folder: Path, tokenizer: Any) -> None:
    idk = unlearning_data(tokenizer, PHI, "forget25", folder, parts=("idk",)).idk
    assert idk is not None
    for draw, answer in [(0, 0), (1, 1), (2, 2), (3, 0), (2**63 - 1, (2**63 - 1) % 3)]:
        assert idk(2, draw) == encode(tokenizer, PHI, "Q2 ?", IDK[answer], 500)


def test_idk_rows_go_to_workers(folder: Path, tokenizer: Any) -> None:
    idk = unlearning_data(tokenizer, PHI, "forget25", folder, parts=("idk",)).idk
    assert idk is not None
    assert pickle.loads(pickle.dumps(idk))(1, 1) == idk(1, 1)


def test_idk_answers_of_a_folder(folder: Path) -> None:
    assert idk_answers(folder) == IDK


@pytest.mark.parametrize(
    "text",
    [
        "Not me .\nAsk Bob .\nNo\n",
        '"Not me ."\n"Ask Bob ."\n"No"\n',
        '{"idk": "Not me ."}\n{"idk": "Ask Bob ."}\n{"idk": "No"}\n',
        "Not me .\r\nAsk Bob .\r\nNo\r\n",
    ],
)
def test_idk_answers_of_a_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "idontknow.jsonl").write_bytes(text.encode())
    assert idk_answers(tmp_path) == IDK
    assert idk_answers(HUB, tmp_path / "idontknow.jsonl") == IDK


def test_idk_answers_that_look_like_json_are_kept(tmp_path: Path) -> None:
    lines = ['"No" is my answer', "{no}", '{"a": "b", "c": "d"}', "{}", '{"a": 1}']
    (tmp_path / "idontknow.txt").write_text("\n".join(lines))
    assert idk_answers(tmp_path) == lines


def test_no_idk_answers(folder: Path) -> None:
    source = r"data/idontknow\.jsonl of github\.com/locuslab/tofu"
    (folder / "idontknow.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=rf"idontknow\.txt: expected answers, one a line, got none; get {source}"):
        idk_answers(folder)
    (folder / "idontknow.txt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no idontknow\.txt or idontknow\.jsonl, .* get {source}"):
        idk_answers(folder)
    with pytest.raises(FileNotFoundError, match=rf"idk_file: no file .*nowhere; get {source}"):
        idk_answers(folder, folder / "nowhere")
    with pytest.raises(FileNotFoundError, match=rf"idk_file: locuslab/TOFU on the hub holds no .*{source}"):
        idk_answers(HUB)


@pytest.mark.parametrize("name", ["forget05_perturbed", "real_authors_perturbed"])
def test_a_row_with_fewer_wrong_answers_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, [row(i, paraphrased_answer="P", perturbed_answer=["B", "C"][: 2 - i]) for i in range(2)])
    message = rf'{name}\.json, row 1: field "perturbed_answer": expected 2 texts, as in row 0, got 1$'
    with pytest.raises(ValueError, match=message):
        load(name, tmp_path)


def test_idk_answers_that_are_no_unicode_are_named(tmp_path: Path) -> None:
    (tmp_path / "idontknow.jsonl").write_text('"No."\n\n"Half \\ud83d"\n')
    with pytest.raises(ValueError, match=r"idontknow\.jsonl, line 3: expected Unicode, got half of a surrogate"):
        idk_answers(tmp_path)
    (tmp_path / "idontknow.jsonl").write_bytes('"No."\n"Ein Rätsel"\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"idontknow\.jsonl, line 2: expected UTF-8, got the byte 0xe4"):
        idk_answers(tmp_path)
