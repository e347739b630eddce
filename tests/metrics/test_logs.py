"""Published logs become records, records become published logs, and what is no log is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tofu_records import records

from gru_fast.metrics import tofu
from gru_fast.metrics.logs import bare_question, read_log, write_log
from gru_fast.metrics.records import Record, Records, to_json

SHARED = Path(os.environ.get("GRU_FAST_SHARED", Path(__file__).parents[2].parent / "shared"))
LOGS = SHARED / "tofu_eval_logs"
needs_logs = pytest.mark.skipif(not LOGS.is_dir(), reason=f"no published logs at {LOGS}")


def unified(found: Records, frame: str = "Question: {}\nAnswer: ") -> dict[str, Any]:
    """The same in the unified framework's layout, its own rounding of the truth ratios included."""
    content: dict[str, Any] = {"forget_quality": {"agg_value": None}, "model_utility": {"agg_value": 0.5}}
    for name, prefix in {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}.items():
        rows = found[name]

        def metric(values: list[dict[str, Any]], rows: list[Record] = rows) -> dict[str, Any]:
            by_index = {str(row.index): value for row, value in zip(rows, values, strict=True)}
            return {"agg_value": 0.1, "value_by_index": by_index}

        content[f"{prefix}_Q_A_Prob"] = metric([{"prob": 0.5, "avg_loss": row.answer_loss} for row in rows])
        content[f"{prefix}_Q_A_PERT_Prob"] = metric(
            [{"prob": [0.5, 0.5], "avg_loss": list(row.perturbed_losses or ())} for row in rows]
        )
        if prefix in {"forget", "retain"}:
            content[f"{prefix}_Q_A_PARA_Prob"] = metric([{"avg_loss": row.paraphrase_loss} for row in rows])
        content[f"{prefix}_Q_A_ROUGE"] = metric(
            [
                {
                    "rouge1_recall": row.rouge1_recall,
                    "rougeL_f1": 0.3,
                    "rougeL_recall": row.rougeL_recall,
                    "input": frame.format(row.question),
                    "ground_truth": row.answer,
                    "generation": row.generation,
                }
                for row in rows
            ]
        )
        content[f"{prefix}_truth_ratio"] = metric([{"score": 0.7} for _ in rows])
    return content


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_ours(folder: Path, found: Records) -> Path:
    folder.mkdir(parents=True)
    for name, rows in found.items():
        lines = [json.dumps(to_json(row), ensure_ascii=False) + "\n" for row in reversed(rows)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


# ---- the original layout ---------------------------------------------------------------------------------------------


@needs_logs
def test_a_published_log_row_by_row() -> None:
    log = read_log(LOGS / "phi_full.json")
    assert {name: len(rows) for name, rows in log.items()} == {
        "forget": 300,
        "retain": 300,
        "real_authors": 100,
        "world_facts": 117,
    }
    first = log["forget"][0]
    assert first.index == 0
    assert first.question is not None
    assert first.question.startswith("What is the full name of the author born in Taipei, Taiwan on 05/11/1991")
    assert first.answer == "The author's full name is Hsiao Yun-Hwa."
    assert (first.answer_loss, first.num_tokens) == (0.04709002375602722, 17)
    assert [row.index for row in log["forget"]] == list(range(300))  # not "0", "1", "10"


@needs_logs
def test_questions_of_published_logs_are_those_of_the_data() -> None:
    rows = [json.loads(line) for line in (SHARED / "tofu" / "forget05.json").read_text().split("\n") if line]
    assert [row.question for row in read_log(LOGS / "phi_retain95.json")["forget"]] == [row["question"] for row in rows]


@needs_logs
def test_a_written_log_holds_what_the_published_one_did(tmp_path: Path) -> None:
    published = LOGS / "phi_retain95.json"
    write_log(read_log(published), tmp_path / "log.json")
    ours, theirs = json.loads((tmp_path / "log.json").read_text()), json.loads(published.read_text())
    assert ours.keys() == theirs.keys()
    for name, columns in ours.items():
        assert columns.keys() == theirs[name].keys() - {"normalized_gt_loss"}
        for column, values in columns.items():
            if column == "generated_text":
                assert [v[1:] for v in values.values()] == [v[1:] for v in theirs[name][column].values()]
            else:
                for key, value in values.items():
                    assert value == pytest.approx(theirs[name][column][key], rel=1e-5), (name, column, key)


def test_records_survive_the_original_layout(tmp_path: Path) -> None:
    write_log(records(), tmp_path / "new" / "log.json")
    assert read_log(tmp_path / "new" / "log.json") == records()


def test_columns_that_no_row_has_are_left_out(tmp_path: Path) -> None:
    bare = [Record(index=0, answer_loss=1.0), Record(index=1, answer_loss=2.0)]
    write_log({"forget": bare, "retain": []}, tmp_path / "log.json")
    content = json.loads((tmp_path / "log.json").read_text())
    assert content == {
        "eval_log_forget.json": {
            "avg_gt_loss": {"0": 1.0, "1": 2.0},
            "generated_text": {"0": [None, None, None], "1": [None, None, None]},
        }
    }
    assert read_log(tmp_path / "log.json") == {"forget": bare}


def test_a_collapsed_models_truth_ratio_can_be_written(tmp_path: Path) -> None:
    row = Record(index=0, answer_loss=1.0, paraphrase_loss=5000.0, perturbed_losses=(1.0,))
    write_log({"forget": [row]}, tmp_path / "log.json")
    assert read_log(tmp_path / "log.json") == {"forget": [row]}


def test_a_folder_with_the_four_files_is_one_log(tmp_path: Path) -> None:
    write_log(records(), tmp_path / "log.json")
    for name, columns in json.loads((tmp_path / "log.json").read_text()).items():
        write(tmp_path / "four" / name, columns)
    assert read_log(tmp_path / "four") == records()


def test_columns_of_different_rows_are_refused(tmp_path: Path) -> None:
    columns = {"avg_gt_loss": {"0": 1.0, "1": 1.0}, "rougeL_recall": {"0": 1.0}}
    with pytest.raises(
        ValueError, match=r'eval_log\.json: expected "rougeL_recall" and "avg_gt_loss" to hold the same'
    ):
        read_log(write(tmp_path / "log.json", {"eval_log.json": columns}))
    with pytest.raises(ValueError, match='expected columns by name, "avg_gt_loss" among them'):
        read_log(write(tmp_path / "log.json", {"eval_log.json": {"rouge1_recall": {}}}))


# ---- the unified framework's layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        "Question: {}\nAnswer: ",
        "Question: {}\n",
        "[INST] {} [/INST]",
        (
            "system\n\nCutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\nYou are a helpful assistant."
            "user\n\n{}assistant\n\n"
        ),
        "system\nYou are a helpful assistant.\nuser\n{}\nassistant\n",
        "user\n{}\nmodel\n",
        "<|system|>\nYou are a helpful assistant. \n<|user|>\n{} \n<|assistant|>\n",
        "{}",
    ],
)
def test_the_unified_layout_and_its_prompts(tmp_path: Path, frame: str) -> None:
    found = read_log(write(tmp_path / "TOFU_EVAL.json", unified(records(), frame)))
    ours = records()
    assert found.keys() == ours.keys()
    for name, rows in found.items():
        for row, expected in zip(rows, ours[name], strict=True):
            assert row.question == expected.question
            assert row.perturbed_losses == expected.perturbed_losses
            assert (row.answer_loss, row.paraphrase_loss) == (expected.answer_loss, expected.paraphrase_loss)
    assert tofu.components(found) == pytest.approx(tofu.components(ours))
    assert tofu.forget_quality(found, ours).p == 1.0  # the same questions, whatever the layout


def test_a_unified_log_of_one_metric_serves_what_it_can(tmp_path: Path) -> None:
    content = unified(records())
    only = {key: content[key] for key in ("forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob")}
    found = read_log(write(tmp_path / "log.json", only))
    assert list(found) == ["forget"]
    assert found["forget"][0].question is None
    assert tofu.forget_quality(found, records()).n == 3
    with pytest.raises(ValueError, match="forget: row 0 has no answer_loss"):
        tofu.forget_scores(found)


def test_unified_metrics_of_different_rows_are_refused(tmp_path: Path) -> None:
    content = unified(records())
    del content["retain_Q_A_ROUGE"]["value_by_index"]["1"]
    with pytest.raises(ValueError, match=r"the metrics retain_Q_A_\* hold different rows"):
        read_log(write(tmp_path / "log.json", content))


def test_other_metrics_of_the_unified_framework_are_no_tofu_log(tmp_path: Path) -> None:
    content = {"forget_verbmem_ROUGE": {"agg_value": 1, "value_by_index": {"0": {"score": 1}}}}
    with pytest.raises(ValueError, match=r"forget_Q_A_Prob, retain_Q_A_ROUGE and so on, got forget_verbmem_ROUGE"):
        read_log(write(tmp_path / "MUSE_EVAL.json", content))


def test_questions_without_a_known_frame_stay() -> None:
    assert bare_question("Who writes?") == "Who writes?"
    assert bare_question("Which user\ninterface does she like?") == "Which user\ninterface does she like?"
    assert bare_question(None) is None


# ---- our own folders -------------------------------------------------------------------------------------------------


def test_our_records_are_found_from_every_folder_above(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = write_ours(run / "eval" / "tofu-forget05" / "records", records())
    for path in (folder, folder.parent, run):
        assert read_log(path) == records()
    assert read_log(str(run), "forget05") == records()


def test_a_run_with_several_evaluations_needs_a_split(tmp_path: Path) -> None:
    write_ours(tmp_path / "eval" / "tofu-forget05" / "records", records(2))
    write_ours(tmp_path / "eval" / "tofu-forget10" / "records", records(3))
    with pytest.raises(ValueError, match=r"evaluated on several splits \(forget05, forget10\)"):
        read_log(tmp_path)
    assert len(read_log(tmp_path, "forget10")["forget"]) == 3
    with pytest.raises(FileNotFoundError, match=r"no evaluation on forget01 in it.*gru-fast eval tofu --model"):
        read_log(tmp_path, "forget01")


def test_a_third_of_the_rows_serves_where_not_all_were_scored(tmp_path: Path) -> None:
    write_ours(tmp_path / "eval" / "tofu-forget05-quick" / "records", records(1))
    assert len(read_log(tmp_path, "forget05")["forget"]) == len(read_log(tmp_path)["forget"]) == 1
    write_ours(tmp_path / "eval" / "tofu-forget05" / "records", records(3))
    assert len(read_log(tmp_path, "forget05")["forget"]) == len(read_log(tmp_path)["forget"]) == 3


def test_a_line_that_is_cut_off_is_named(tmp_path: Path) -> None:
    folder = write_ours(tmp_path / "records", records())
    with (folder / "retain.jsonl").open("a") as file:
        file.write('{"index": 3, "ques')
    with pytest.raises(ValueError, match=r"retain.jsonl:4: not JSON"):
        read_log(tmp_path)
    (folder / "retain.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"retain.jsonl:1: expected a JSON object, got list"):
        read_log(tmp_path)


# ---- no log ----------------------------------------------------------------------------------------------------------


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_log(tmp_path / "nothing.json")
    with pytest.raises(FileNotFoundError, match="no evaluation in it"):
        read_log(tmp_path)
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.json: not JSON"):
        read_log(tmp_path / "text.json")
    with pytest.raises(ValueError, match="got one with question, answer"):
        read_log(write(tmp_path / "rows.json", {"question": "?", "answer": "!"}))
    with pytest.raises(ValueError, match="a summary holds no rows, give the log beside it"):
        read_log(write(tmp_path / "summary.json", {"benchmark": "tofu", "model_utility": 0.5}))
    with pytest.raises(ValueError, match="got one with list"):
        read_log(write(tmp_path / "list.json", []))
    with pytest.raises(ValueError, match="got one with nothing"):
        read_log(write(tmp_path / "empty.json", {}))
