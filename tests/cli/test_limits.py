"""Commands on models with learned positions, and on tokenizers with tokens that the model has no embedding for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import muse_files
import pytest
import wmdp_files
from tofu_folders import save_data, tokenizer
from words import word_llama

from gru_fast import runs
from gru_fast.cli import main

TRAINING = (
    "--use-cpu", "--disable-tqdm", "--per-device-train-batch-size", 2, "--gradient-accumulation-steps", 1,
    "--max-steps", 1, "--save-strategy", "no",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_data(tmp_path_factory.mktemp("data"))


def save_gpt2(folder: Path, words: Any, positions: int) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": positions, "vocab_size": len(words)}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_llama(folder: Path, words: Any, vocab_size: int, **config: Any) -> Path:
    word_llama(words, vocab_size=vocab_size, bos_token_id=None, **config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def run(command: str, *argv: Any) -> int:
    return main([*command.split(), *map(str, argv)])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# ---- positions -------------------------------------------------------------------------------------------------------


# A row of the data has 20 tokens or so; an evaluation writes until prompt and answer are 200.
@pytest.mark.parametrize(
    ("command", "argv", "positions", "where"),
    [
        ("unlearn", ("--split", "forget05", "--method", "npo", *TRAINING), 12, "forget[0]"),
        ("finetune", TRAINING, 12, "rows[0]"),
        ("tru", ("--split", "forget05", "--device", "cpu"), 12, "forget[0]"),
        ("eval tofu", ("--split", "forget05", "--device", "cpu"), 12, "forget, row 0"),
        ("eval tofu", ("--split", "forget05", "--device", "cpu"), 40, "forget, row 0, its prompt"),
    ],
)
def test_rows_longer_than_the_positions_are_named_before_the_work(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    argv: tuple[Any, ...],
    positions: int,
    where: str,
) -> None:
    model = save_gpt2(tmp_path / "model", tokenizer(), positions)
    assert run(command, "--model", model, "--data", data, "--output-dir", tmp_path / "out", *argv) == 1
    line = said(capsys)
    assert f"ValueError: {where}: " in line
    assert f"more than the model's {positions} positions; give --max-length {positions} or leave the row out" in line
    assert not (tmp_path / "out").exists()


def test_the_length_that_is_named_serves(data: Path, tmp_path: Path) -> None:
    model = save_gpt2(tmp_path / "model", tokenizer(), 14)
    argv = ("--model", model, "--data", data, "--split", "forget05", "--max-length", 14)
    assert run("unlearn", *argv, "--output-dir", tmp_path / "run", *TRAINING) == 0
    assert run("eval tofu", *argv, "--output-dir", tmp_path / "eval", "--device", "cpu") == 0


def test_muse_is_cut_to_the_positions_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = muse_files.save_data(tmp_path / "data")
    model = save_gpt2(tmp_path / "model", muse_files.tokenizer(), 32)
    argv = ("--benchmark", "muse", "--model", model, "--data", data, *TRAINING)
    assert run("unlearn", *argv, "--output-dir", tmp_path / "run") == 0
    captured = capsys.readouterr()
    assert "--max-length: 32, the positions of the model, in place of 2048\n" in captured.err
    assert runs.read_run(tmp_path / "run").config["max_length"] == 32
    # What was asked for is not changed, but refused.
    assert run("unlearn", *argv, "--output-dir", tmp_path / "other", "--max-length", 64) == 1
    assert "forget[0]: 64 tokens are more than the model's 32 positions; give --max-length 32" in said(capsys)


def test_wmdp_is_cut_to_the_positions_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = wmdp_files.save_data(tmp_path / "data")
    model = save_gpt2(tmp_path / "model", wmdp_files.tokenizer(), 16)
    argv = ("--benchmark", "wmdp", "--method", "gd", "--model", model, "--data", data, *TRAINING)
    assert run("unlearn", *argv, "--output-dir", tmp_path / "run") == 0
    err = capsys.readouterr().err
    assert "--max-length: 16, the positions of the model, in place of 1024\n" in err
    assert "--retain-max-length: 16, the positions of the model, in place of 2048\n" in err
    config = runs.read_run(tmp_path / "run").config
    assert (config["max_length"], config["retain_max_length"]) == (16, 16)
    assert run("unlearn", *argv, "--output-dir", tmp_path / "other", "--retain-max-length", 20) == 1
    assert "retain[0]: 20 tokens are more than the model's 16 positions; give --retain-max-length 16" in said(capsys)


def test_a_model_without_limit_has_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = wmdp_files.save_data(tmp_path / "data"), wmdp_files.save_model(tmp_path / "model")
    argv = ("--benchmark", "wmdp", "--method", "gd", "--model", model, "--data", data, *TRAINING)
    assert run("unlearn", *argv, "--output-dir", tmp_path / "run") == 0
    assert "positions" not in capsys.readouterr().err
    config = runs.read_run(tmp_path / "run").config
    assert (config["max_length"], config["retain_max_length"]) == (1024, None)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (
            24,
            "verbmem_f, row 0: 9 tokens and 128 to write are more than the model's 24 positions; give --verbmem",
        ),
        (150, "knowmem_f, row 0: "),
    ],
)
def test_an_evaluation_on_muse_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], positions: int, message: str
) -> None:
    data = muse_files.save_data(tmp_path / "data")
    model = save_gpt2(tmp_path / "model", muse_files.tokenizer(), positions)
    assert run("eval muse", "--model", model, "--data", data, "--device", "cpu") == 1
    assert message in said(capsys)


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("added", ["a place-holder", "a padding token"])
def test_tokens_that_never_occur_are_no_hindrance(data: Path, tmp_path: Path, added: str) -> None:
    words = tokenizer()
    size = len(words)
    words.add_special_tokens(
        {"pad_token": "[PAD]"} if added == "a padding token" else {"extra_special_tokens": ["<img>"]}
    )
    assert len(words) == size + 1
    model = save_llama(tmp_path / "model", words, vocab_size=size)
    argv = ("--data", data, "--split", "forget05")
    assert run("unlearn", "--model", model, "--output-dir", tmp_path / "run", "--method", "npo", *argv, *TRAINING) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["pad_token_id"] < size
    metrics = ("--batch-size", 5, "--metrics", "exact_memorization")
    assert run("eval tofu", "--model", tmp_path / "run", *argv, *metrics) == 0
    more = ("--data", data, "--output-dir", tmp_path / "more", *TRAINING)
    assert run("finetune", "--model", tmp_path / "run", *more) == 0
    tru = ("--method", "tv", "--epochs", 1, "--stg", 0.5, "--device", "cpu", "--output-dir", tmp_path / "tv")
    assert run("tru", "--model", model, *argv, *tru) == 0


@pytest.mark.parametrize(
    ("command", "argv", "where"),
    [
        ("unlearn", ("--split", "forget05", *TRAINING), "forget[0]"),
        ("finetune", TRAINING, "rows["),
        ("tru", ("--split", "forget05", "--device", "cpu"), "forget[0]"),
        ("eval tofu", ("--split", "forget05", "--device", "cpu"), "forget, row 0"),
    ],
)
def test_tokens_that_occur_are_named_with_their_row(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, argv: tuple[Any, ...], where: str
) -> None:
    words = tokenizer()
    model = save_llama(tmp_path / "model", words, vocab_size=len(words) - 4)  # without the last authors' numbers
    assert run(command, "--model", model, "--data", data, "--output-dir", tmp_path / "out", *argv) == 1
    line = said(capsys)
    assert f"ValueError: {where}" in line
    assert f"has the token {len(words) - 4}, and the model embeddings of 0 to {len(words) - 5} alone" in line
    assert not (tmp_path / "out").exists()
