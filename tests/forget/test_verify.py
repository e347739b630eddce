"""Files that are not those that were measured, and documents that are not at hand; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gru_fast.cli import main
from gru_fast.data.own import Document
from gru_fast.forget import manifest, verify


def model(folder: Path, weights: str = "after", **more: str) -> Path:
    folder.mkdir(parents=True)
    for name, content in {"config.json": "{}", "model.safetensors": weights, **more}.items():
        (folder / name).write_text(content)
    return folder


def adapter(folder: Path, base: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "peft_type": "LORA"}))
    (folder / "adapter_model.safetensors").write_text("change")
    return folder


def run(folder: Path, before: Path | str, **more: Any) -> Path:
    """A run folder whose model is the one in it, with a manifest."""
    salt = manifest.new_salt()
    said = {
        "format": 1, "earlier": [], "verdict": "removed",
        "model": {"files": manifest.files_of(before)}, "result": {"files": manifest.files_of(folder)},
        "documents": {"salt": salt, "forget": manifest.entries(salt, [Document("a", "", 0, "text", text="secret")])},
        "options": {"forget": [str(folder.parent / "gone")], "retain": ["self"]},
    }  # fmt: skip
    (folder / manifest.MANIFEST).write_text(json.dumps({**said, **more}))
    return folder


def said(folder: Path, at: Path) -> list[str]:
    return list(map(str, verify.check_files(folder, str(at))))


def test_a_file_put_beside_the_model_is_seen(tmp_path: Path) -> None:
    made = run(model(tmp_path / "run"), model(tmp_path / "before", "before"))
    assert said(made, made) == ["ok   files: all 2 are those that were measured"]
    (made / "report.html").write_text("no part of it")
    assert said(made, made) == ["ok   files: all 2 are those that were measured"]
    (made / "adapter_model.safetensors").write_text("?")
    assert said(made, made) == ["NOT  files: 1 more that were not there: adapter_model.safetensors"]


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "generation_config.json", "modeling_own.py", "vocab.json", "merges.txt",
             "model.safetensors.index.json"],
)  # fmt: skip
def test_what_a_model_is_asked_with_is_compared(tmp_path: Path, name: str) -> None:
    made = run(model(tmp_path / "run", **{name: "1"}), model(tmp_path / "before", "before"))
    (made / name).write_text("2")
    assert said(made, made) == [f"NOT  files: 1 of 3 differ or are not there: {name}"]


def test_the_model_below_an_adapter_is_compared(tmp_path: Path) -> None:
    base = model(tmp_path / "base", "base")
    first = run(adapter(tmp_path / "first", base), base)
    second = run(adapter(tmp_path / "second", first), first)
    assert [line[:4] for line in said(first, first)] == ["ok  "] * 2
    assert [line[:4] for line in said(second, second)] == ["ok  "] * 4
    (base / "model.safetensors").write_text("another")
    wrong = "NOT  files of the model below the adapter: 1 of 2 differ or are not there: model.safetensors"
    assert said(first, first)[1] == said(second, second)[3] == wrong
    base.rename(tmp_path / "moved")
    assert said(first, first)[1].startswith("NOT  files of the model below the adapter: model: no folder or file")


def test_without_hashes_no_model_is_the_one(tmp_path: Path) -> None:
    nothing = run(model(tmp_path / "run"), "org/on-the-hub", result={"files": {}}, verdict="unknown")
    served = model(tmp_path / "served")
    assert said(nothing, served)[0].startswith("NOT  files: the manifest has no hashes to compare with")
    before = model(tmp_path / "before", "before")
    assert "BEFORE" in said(run(model(tmp_path / "second"), before), before)[0]


def test_what_is_not_at_hand_is_not_called_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(model(tmp_path / "run"), model(tmp_path / "before", "before"))
    documents = tmp_path / "leak"
    documents.mkdir()
    (documents / "a.txt").write_text("secret")
    assert verify.documents_of(made, None)[1][0].is_so is None
    found, checks = verify.documents_of(made, [str(documents)])
    assert found is not None
    assert [check.is_so for check in checks] == [True]
    lost = {"forget": [str(documents)], "retain": [str(tmp_path / "moved")]}
    found, checks = verify.documents_of(run(made, tmp_path / "before", options=lost), None)
    assert found is None
    assert [check.is_so for check in checks] == [True, None]
    assert str(checks[1]).startswith("not checked measures: the texts to compare with are not at hand")
    kept = {"dtype": None, "template": None, "template_options": None, "trust_remote_code": False}
    run(made, tmp_path / "before", options={**lost, **kept})
    assert main(["verify", str(made)]) == 0
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["ok   ", "ok   ", "not c"]
