"""Files of a model that are none: each is named, in one line, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tofu_folders import save_model

from gru_fast.models.files import check_files
from gru_fast.models.load import ModelOptions, load_model, load_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
PAGE = "<!DOCTYPE html><html><body>Sign in</body></html>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_its_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def written(text: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(text) and None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", written(POINTER), "is a pointer of git-lfs, not the file itself; .*: git lfs pull"),
        ("config.json", written(POINTER), "is a pointer of git-lfs, not the file itself; .*: git lfs pull"),
        ("model.safetensors", written(""), "is empty; fetch it again"),
        ("config.json", written(""), "is empty; fetch it again"),
        ("model.safetensors", written(PAGE), "is a web page, not the file itself"),
        ("model.safetensors", cut, r"is cut: expected \d+ bytes, found \d+; fetch it again"),
        ("model.safetensors", cut_in_its_header, "is cut, or no safetensors file: 100 bytes"),
        ("model.safetensors", written("abc"), "is cut, or no safetensors file: 3 bytes"),
        ("config.json", written('{"a": '), "not JSON"),
        ("config.json", written("[1]"), "expected names and values in braces, got list"),
    ],
)
def test_damaged_files(folder: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    check_files(folder)
    damage(folder / name)
    with pytest.raises(ValueError, match=rf"^model: {folder / name}:? ?{message}") as caught:
        load_model(ModelOptions(str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_the_tokenizer_is_not_blamed_for_a_pointer(folder: Path, name: str) -> None:
    """Commands load it first."""
    (folder / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"^model: {folder / name} is a pointer of git-lfs"):
        load_tokenizer(ModelOptions(str(folder)))


def test_a_dtype_that_torch_has_not(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "bfloat17"}))
    with pytest.raises(ValueError, match=r'config.json: "dtype" is "bfloat17", which torch has not'):
        load_model(ModelOptions(str(folder)))


def test_one_bad_shard_of_several(folder: Path) -> None:
    model = load_model(ModelOptions(str(folder)))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=4000)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_model(ModelOptions(str(folder)))
    whole = shards[1].read_bytes()
    shards[1].write_text(POINTER)
    with pytest.raises(ValueError, match=rf"^model: {shards[1]} is a pointer of git-lfs"):
        load_model(ModelOptions(str(folder)))
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"1 of {len(shards)} shards are missing, {shards[1].name} first"):
        load_model(ModelOptions(str(folder)))
    shards[1].write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    for text, message in (("{", "not JSON"), ("{}", 'expected a "weight_map" of names and files, found none')):
        index.write_text(text)
        with pytest.raises(ValueError, match=rf"^model: {index}: {message}"):
            load_model(ModelOptions(str(folder)))


def test_a_damaged_adapter(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    model = load_model(ModelOptions(str(folder), use_peft=True), train=True)
    model.save_pretrained(adapter)
    load_model(ModelOptions(str(adapter)))
    cut(adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"^model: {adapter}/adapter_model.safetensors is cut: expected"):
        load_model(ModelOptions(str(adapter)))
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=rf"^model: {adapter}/adapter_config.json: not JSON"):
        load_model(ModelOptions(str(adapter)))
