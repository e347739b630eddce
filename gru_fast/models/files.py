"""The files of a model in a folder, looked at before they are loaded: what is wrong with one is said with its name.

Libraries say it with a traceback of their own each, or not at all. Only heads of files are read.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from gru_fast.runs.files import read_json

_CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json")
_TOKENIZER = "tokenizer.json"
_POINTER = b"version https://git-lfs.github.com/"
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")


def check_readable(folder: Path) -> None:
    """Refuses a folder whose configurations or tokenizer cannot be read: ValueError, with the file and what to do.

    Found are pointers of git-lfs, web pages, empty files and broken JSON.
    """
    for name in _CONFIGS:
        if (folder / name).is_file():
            _config(folder / name)
    if (folder / _TOKENIZER).is_file():  # too large to be read twice
        _check_head(folder / _TOKENIZER)


def check_files(folder: Path) -> None:
    """Refuses a readable folder (:func:`check_readable`) whose model cannot be loaded: ValueError, as there.

    Found are weights that are none, or cut, shards that are not there, dtypes that torch has not, and models that are
    no causal language models.
    """
    if (folder / "config.json").is_file():
        _check_config(folder / "config.json")
    for file in weight_files(folder):
        _check_weights(file)


def _config(file: Path) -> dict[str, Any]:
    config = _json(file)
    if not isinstance(config, dict):
        raise ValueError(f"model: {file}: expected names and values in braces, got {type(config).__name__}")
    return config


def _check_config(file: Path) -> None:
    config = _config(file)
    if config.get("is_encoder_decoder"):
        raise ValueError(
            f"model: {file} is of an encoder-decoder ({config.get('model_type', 'unknown')}); expected a causal "
            "language model, which continues its prompt"
        )
    import torch

    dtype = config.get("dtype", config.get("torch_dtype"))
    if isinstance(dtype, str) and not isinstance(getattr(torch, dtype.removeprefix("torch."), None), torch.dtype):
        raise ValueError(f'model: {file}: "dtype" is "{dtype}", which torch has not; expected bfloat16, float32, ...')


def _json(file: Path) -> Any:
    _check_head(file)
    try:
        return read_json(file)
    except ValueError as error:
        raise ValueError(f"model: {error}") from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; of an index its shards."""
    for name in _INDEX:
        index = folder / name
        if not index.is_file() or any((folder / whole).is_file() for whole in _WHOLE):
            continue
        content = _json(index)
        if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
            raise ValueError(f'model: {index}: expected a "weight_map" of names and files, found none')
        shards = sorted({folder / str(shard) for shard in content["weight_map"].values()})
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise ValueError(f"model: {folder}: {len(missing)} of {len(shards)} shards are missing, {missing[0]} first")
        return shards
    return [folder / name for name in (*_WHOLE, *_ADAPTER) if (folder / name).is_file()]


def _check_head(file: Path) -> None:
    """Refuses what is no file of a model at all."""
    with file.open("rb") as content:
        head = content.read(256).lstrip()
    if not head:
        raise ValueError(f"model: {file} is empty; fetch it again")
    if head.startswith(_POINTER):
        raise ValueError(f"model: {file} is a pointer of git-lfs, not the file itself; in its folder: git lfs pull")
    if head[:1] == b"<":
        raise ValueError(
            f"model: {file} is a web page, not the file itself; fetch it again, with a login if it needs one"
        )


def _check_weights(file: Path) -> None:
    _check_head(file)
    if file.suffix != ".safetensors":
        return
    size = file.stat().st_size
    with file.open("rb") as content:
        length = struct.unpack("<Q", content.read(8).ljust(8, b"\0"))[0]  # of the header, which is JSON
        if length > size - 8:
            raise ValueError(f"model: {file} is cut, or no safetensors file: {size} bytes; fetch it again")
        try:
            header = json.loads(content.read(length))
        except ValueError:
            raise ValueError(f"model: {file} is no safetensors file: its header is no JSON; fetch it again") from None
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise ValueError(f"model: {file} is cut: expected {expected} bytes, found {size}; fetch it again")
