"""MUSE's numbers: by hand, the published ones, and the retrained model's evaluation in all its layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from interpreter import run_python

from gru_fast.metrics import mia
from gru_fast.metrics.muse import (
    MIN_KS,
    Generation,
    Records,
    Surprise,
    leak_auc,
    mean_overlap,
    privleak,
    read_records,
    read_retained,
    retained,
)


def surprises(scores: list[float], prefix: str = "t") -> list[Surprise]:
    """Texts with these Min-K% scores at every k but 0.05, where they are the other way round."""
    return [
        Surprise(i, f"{prefix}{i}", 10, score, {str(k): -score if k == 0.05 else score for k in MIN_KS})
        for i, score in enumerate(scores)
    ]


def records(forget: list[float], holdout: list[float]) -> Records:
    return {"privleak_forget": surprises(forget, "f"), "privleak_holdout": surprises(holdout, "h")}


def save(folder: Path, found: Records) -> Path:
    folder.mkdir(parents=True)
    for name, rows in found.items():
        lines = "".join(json.dumps(row.__dict__) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


# ---- overlap ---------------------------------------------------------------------------------------------------------


def test_overlap_is_the_mean_f1_in_percent() -> None:
    rows = [
        Generation(0, "p", "salt and rope", "salt"),  # precision 1, recall 1/3: F1 1/2
        Generation(1, "p", "wool", "wool"),
        Generation(2, "p", "plums", ""),
    ]
    assert mean_overlap(rows) == pytest.approx(100 * (0.5 + 1 + 0) / 3)


def test_overlap_is_neither_recall_nor_of_stems() -> None:
    assert mean_overlap([Generation(0, "p", "wool", "wool wool wool")]) == pytest.approx(50)  # recall is 1
    stems = [Generation(0, "p", "sailing boats", "sailed boat")]
    assert mean_overlap(stems) == 0
    assert mean_overlap(stems, stemmer=True) == 100


def test_overlap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="verbmem_f: expected rows, got none"):
        mean_overlap([], where="verbmem_f")


# ---- leakage ---------------------------------------------------------------------------------------------------------


def test_auc_by_hand() -> None:
    # s_forget > s_holdout in (2, 1) and (3, 1), (3, 2); equal in (2, 2).
    assert leak_auc(records([0, 2, 3], [1, 2, 4])) == pytest.approx((3 + 0.5) / 9)


def test_auc_is_near_0_where_the_forget_set_is_known() -> None:
    known, unknown = [0.1, 0.2], [3.0, 4.0]
    assert leak_auc(records(known, unknown)) == 0
    assert leak_auc(records(unknown, known)) == 1
    assert leak_auc(records(known, known)) == 0.5
    assert leak_auc(records(known, unknown), 0.05) == 1  # another k, other scores
    assert leak_auc(records(known, unknown)) == 1 - mia.auc(known, unknown)


def test_the_sign_of_privleak() -> None:
    assert privleak(0.0, 0.5) == -100  # known as if nothing had been unlearned
    assert privleak(0.5, 0.5) == 0
    assert privleak(1.0, 0.5) == 100  # less known than texts never seen
    assert privleak(0.25, 0.4) == pytest.approx(-37.5)  # relative to the retrained model, not a difference
    with pytest.raises(ValueError, match="nothing can be measured relative to it"):
        privleak(0.5, 0.0)


@pytest.mark.parametrize(
    ("auc", "retain_auc", "published"),
    [
        (0.2291, 0.5393, -57.5),  # the original repository's auc.json of Books, and its paper's target row
        (0.5393, 0.5393, 0.0),
    ],
)
def test_published_aucs_give_the_published_privleak(auc: float, retain_auc: float, published: float) -> None:
    assert privleak(auc, retain_auc) == pytest.approx(published, abs=0.05)


def test_what_is_missing_is_said() -> None:
    found = records([1.0], [2.0])
    with pytest.raises(ValueError, match="PrivLeak needs the privleak_holdout set; the records hold privleak_forget"):
        leak_auc({"privleak_forget": found["privleak_forget"]})
    with pytest.raises(ValueError, match=r"privleak_forget: row 0 has no Min-K% score at 0.7; it has 0.05, 0.1"):
        leak_auc(found, 0.7)


# ---- records ---------------------------------------------------------------------------------------------------------


def test_records_come_back_in_order(tmp_path: Path) -> None:
    found: Records = {
        "knowmem_f": [Generation(1, "p", "a", "one\u2028two"), Generation(0, "p", "b", "")],
        **records([1.0], [2.0]),
    }
    folder = save(tmp_path / "records", found)
    assert read_records(folder) == {**found, "knowmem_f": found["knowmem_f"][::-1]}


@pytest.mark.parametrize("line", ['{"index": 0}', "{", '{"index": 0, "prompt": "", "reference": "", "rows": 1}'])
def test_what_is_no_record_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "verbmem_f.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"verbmem_f.jsonl:1: expected a record with index, prompt, reference, gen"):
        read_records(tmp_path)


# ---- the retrained model ---------------------------------------------------------------------------------------------

OURS = records([2.0, 3.0], [1.0, 2.5])  # A = 3/4
AUC = {"forget_holdout": {"PPL": 0.1, "Min-5%": 0.25, "Min-40%": 0.75}, "holdout_forget": {"Min-40%": 0.25}}
UNIFIED = {"mia_min_k": {"agg_value": 0.25, "forget": {}}, "privleak": {"agg_value": -3.0}}


@pytest.mark.parametrize("inner", ["", "records", "eval/muse-news/records"])
def test_our_own_folders(tmp_path: Path, inner: str) -> None:
    save(tmp_path / "run" / inner, OURS)
    found = read_retained(tmp_path / "run", "news")
    assert (found.auc(), found.auc(0.05)) == (0.75, 0.25)
    assert found.source == str(tmp_path / "run")


@pytest.mark.parametrize(("name", "content"), [("auc.json", AUC), ("MUSE_EVAL.json", UNIFIED)])
def test_published_logs(tmp_path: Path, name: str, content: Any) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    for path in (tmp_path, tmp_path / name):
        found = read_retained(path)
        assert found.auc() == 0.75
        found.check_texts("privleak_forget", ["anything"])  # they do not say
    with pytest.raises(ValueError, match=rf"{name}: no Min-K% AUC at 0.6; it has .*0.4"):
        found.auc(0.6)


def test_other_texts_are_refused() -> None:
    found = retained(OURS, "retrain")
    found.check_texts("privleak_forget", ["f1", "f0"])
    with pytest.raises(
        ValueError, match=r"privleak_forget: this model has 3 texts, .*\(retrain\) 2, and 1 are the same"
    ):
        found.check_texts("privleak_forget", ["f1", "f1", "f2"])


def test_a_model_that_knows_the_forget_set_is_no_retrained_model() -> None:
    with pytest.raises(ValueError, match="target: expected a Min-K% AUC above 0"):
        retained(records([1.0], [2.0]), "target").auc()


def test_a_run_on_two_corpora_needs_a_name(tmp_path: Path) -> None:
    for corpus in ("news", "books"):
        save(tmp_path / f"eval/muse-{corpus}/records", OURS)
    assert read_retained(tmp_path, "books").auc() == 0.75
    with pytest.raises(ValueError, match=r"several corpora \(muse-books, muse-news\)"):
        read_retained(tmp_path)


def test_logs_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_retained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no evaluation on news in it; run `gru-fast eval muse --model"):
        read_retained(tmp_path, "news")
    for text, message in (("{", "not JSON"), ("[]", "expected auc.json of"), ('{"forget_holdout": 1}', "expected auc")):
        (tmp_path / "auc.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_retained(tmp_path)
    save(tmp_path / "run/records", {"privleak_forget": OURS["privleak_forget"]})
    with pytest.raises(ValueError, match=r"has no privleak_holdout.jsonl; was the evaluation cut off"):
        read_retained(tmp_path / "run")


def test_the_metrics_need_no_model_library(tmp_path: Path) -> None:
    code = "import sys, gru_fast.metrics.muse; assert 'transformers' not in sys.modules"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
