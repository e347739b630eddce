"""Attacks in a request's dossier: what is read of them, what the verdict and both reports say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dossiers import EVIL, Reader, manifest, view

from gru_fast.forget import attacked, dossier, words


def finding(what: str, score: str, back: float | None, **more: Any) -> dict[str, Any]:
    own = {
        "before": 0.1,
        "after": 0.4,
        "original": 0.9,
        "is_knowledge": True,
        "is_shown": True,
        "interval": None,
        "retained_back": None,
    }
    return {"what": what, "score": score, "back": back, **own, **more}


def save(folder: Path, attack: str, findings: Sequence[dict[str, Any]]) -> None:
    place = folder / "attacks" / "own-leak" / attack
    (place / "unlearned" / "full").mkdir(parents=True)
    (place / "unlearned" / "full" / "answers.jsonl").write_text('{"prompt": "secret"}\n')
    summary = {"attack": attack, "seconds": 1.5, "findings": findings, "settings": {"data": "secret"}}
    (place / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sampling, of which less came back than of rounding; and what is no knowledge came back wholly."""
    save(tmp_path, "sample", [finding("leak@1", "forget ROUGE-L", 0.1), finding("leak@4", "forget ROUGE-L", 0.25)])
    kept = finding("int8", "Prob retain", 1.0, is_knowledge=False)
    hidden = finding("int4-g64, step 1", "EM forget", 0.3, is_shown=False)
    save(tmp_path, "quantize", [kept, hidden, finding("int8", "EM forget", -0.2)])
    return tmp_path


def test_what_is_read_is_in_order_and_without_texts(folder: Path) -> None:
    found = attacked.read(folder)
    assert [each["attack"] for each in found] == ["quantize", "sample"]
    assert [each["worst"]["back"] for each in found] == [0.3, 0.25]  # over points that are not shown as well
    assert [[row["back"] for row in each["findings"]] for each in found] == [[-0.2], [0.1, 0.25]]
    assert "secret" not in json.dumps(found)
    attacked.forget_texts(folder)
    assert {file.name for file in folder.rglob("*") if file.is_file()} == {"summary.json"}
    assert attacked.read(folder) == found
    assert attacked.read(folder / "nowhere") == []


def test_the_verdict_says_how_far_back_it_got(folder: Path) -> None:
    said = {**manifest(), "attacks": attacked.read(folder)}
    assert words.headline(said).endswith(
        "is left. Attacked (quantize, sample), at most 30% of the way back to the original was made (quantize: "
        "int4-g64, step 1; EM forget)."
    )
    assert "made were quantize, sample, below, and the same with more effort" in " ".join(words.guarantee(said))
    assert "not retraining on a part of them" in " ".join(words.guarantee(manifest()))
    asked = manifest()
    asked["options"] |= {"attack": True}
    assert "those that were asked for are not done yet" in " ".join(words.guarantee(asked))


@pytest.mark.parametrize(
    ("back", "said"),
    [(-0.5, "Attacked (sample), nothing came back."), (None, "Attacked (sample), nothing can be said: by none of")],
)
def test_what_came_to_nothing_is_said_as_such(tmp_path: Path, back: float | None, said: str) -> None:
    save(tmp_path, "sample", [finding("leak@1", "forget exact", back)])
    assert attacked.sentence(attacked.read(tmp_path)).startswith(said)
    assert attacked.sentence([]) == ""


def test_a_retrained_model_stands_beside_it(tmp_path: Path) -> None:
    save(tmp_path, "sample", [finding("leak@4", "forget ROUGE-L", 0.25, retained_back=0.125)])
    shown = view({**manifest(), "attacks": attacked.read(tmp_path)})
    assert words.headline(shown.manifest).endswith("(sample: leak@4; forget ROUGE-L; of the retrained model 12%).")
    assert "| 0.1 | 0.4 | 0.9 | 25% | 12% |" in dossier.markdown(shown)
    read = Reader(dossier.page(shown))
    assert "retrained" in read.text
    assert "is not known here" not in read.text


def test_both_reports_have_them(tmp_path: Path) -> None:
    came_back, unknown = (
        finding(f"wording: {EVIL}", "forget exact", 0.376),
        finding("repeat", "forget exact", None, original=None),
    )
    save(tmp_path, "extract", [came_back, unknown, finding("twice", "forget exact", -0.001)])
    save(tmp_path, "sample", [finding("leak@1", "forget exact", None)])
    shown = view({**manifest(), "attacks": attacked.read(tmp_path)})
    read = Reader(dossier.page(shown))
    assert read.open == []
    assert "script" not in read.tags
    assert "at most 38% back" in read.text
    assert "-0%" not in read.text
    assert "not known: the original knows no more" in read.text
    lines = dossier.markdown(shown).splitlines()
    at = lines.index("## Does it come back?")
    rows = [line for line in lines[at:] if line.startswith(("| extract", "| sample", "| attack"))]
    assert [line.replace("\\|", "").count("|") for line in rows] == [9, 9, 9]
    assert rows[2].endswith("| forget exact | 0.1 | 0.4 | 0.9 | 38% | - |")
    assert "is not known here" in read.text
    assert "## Does it come back?" not in dossier.markdown(view(manifest()))
