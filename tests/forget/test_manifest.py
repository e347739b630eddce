"""Hashes: of files as sha256sum has them, of weights to the bit, of documents by what they say and the salt."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from tiny import llama

from gru_fast.data.own import Document
from gru_fast.forget import manifest


def text(name: str, content: str) -> Document:
    return Document(name, "", None, "text", text=content)


def test_files_are_hashed_as_sha256sum_does(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 5_000_000)  # more than a block
    (tmp_path / "delta.safetensors").write_bytes(b"1")
    (tmp_path / "report.html").write_text("no part of the model")
    assert manifest.files_of(tmp_path) == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "model.safetensors": hashlib.sha256(b"\0" * 5_000_000).hexdigest(),
    }
    assert manifest.files_of("org/on-the-hub") == {}


def test_weights_are_told_apart_to_the_bit() -> None:
    model = llama()
    before = manifest.weights_hash(model)
    assert manifest.weights_hash(llama()) == before
    with torch.no_grad():
        model.lm_head.weight.view(torch.int32)[3, 4] ^= 1
    assert manifest.weights_hash(model) != before
    assert manifest.weights_hash(llama().double()) != before


def test_documents_are_known_by_what_they_say_and_not_without_the_salt() -> None:
    salt, other = manifest.new_salt(), manifest.new_salt()
    assert salt != other
    ours = manifest.document_hash(salt, text("a.txt", "secret"))
    assert ours == manifest.document_hash(salt, text("b.txt", "secret"))
    assert ours != manifest.document_hash(other, text("a.txt", "secret"))
    pair = Document("c", "", 0, "pair", question="sec", answer="ret")
    assert ours != manifest.document_hash(salt, pair)
    assert "secret" not in str(manifest.entries(salt, [text("a.txt", "secret")]))


def test_documents_that_differ_are_named() -> None:
    salt = manifest.new_salt()
    said = {"documents": {"salt": salt, "forget": manifest.entries(salt, [text("a", "one"), text("b", "two")])}}
    assert manifest.differing(said, [text("moved", "two"), text("a", "one")]) == []
    assert manifest.differing(said, [text("a", "one"), text("b", "changed")]) == [
        "b is not there, or says something else",
        "b was not in the request",
    ]


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no manifest\.json in it; expected the --output-dir of gru-fast forget"
    ):
        manifest.read(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="expected a manifest of format 1; upgrade gru_fast"):
        manifest.read(tmp_path)


def test_a_model_given_back_still_knows_the_requests_before(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert manifest.earlier(str(tmp_path)) == []
    (tmp_path / manifest.EARLIER).write_text('[{"run": "first"}]')
    assert manifest.earlier(str(tmp_path)) == [{"run": "first"}]
    (tmp_path / manifest.MANIFEST).write_text(
        '{"format": 1, "finished": "", "verdict": "", "documents": {}, "options": {}, "level": {}, '
        '"measures": {"before": {"forget": []}}, "earlier": [{"run": "zeroth"}]}'
    )  # a run's own manifest has them itself
    assert [each["run"] for each in manifest.earlier(str(tmp_path))] == ["zeroth", str(tmp_path.resolve())]
