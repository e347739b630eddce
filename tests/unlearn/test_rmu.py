"""RMU: hidden states of every family, what is trained and copied, and the trainer against a loop by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gru_fast.core.backends.reference import rectified_gradient
from gru_fast.unlearn import PairCollator, ReferenceModel, UnlearnTrainer
from gru_fast.unlearn.hidden import hidden_states, num_layers
from gru_fast.unlearn.methods import make
from gru_fast.unlearn.methods.rmu import control_vector, mean_square

Part = dict[str, Tensor]
SIZES = {"vocab_size": tiny.VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def deep(**config: Any) -> Any:
    """A Llama of 8 layers: RMU steers layer 1 and trains layers 0 and 1."""
    return tiny.llama(num_hidden_layers=8, **config)


def padded(name: str = "forget") -> Part:
    return PairCollator(0)([tiny.dataset()[i] for i in range(4)])[name]


def family(name: str) -> Any:
    """A tiny model of a family, 4 layers."""
    import transformers as hf

    torch.manual_seed(0)
    common = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
    if name == "gpt2":
        made = hf.GPT2Config(vocab_size=tiny.VOCAB_SIZE, n_embd=32, n_layer=4, n_head=2, n_positions=64)
        return hf.GPT2LMHeadModel(made).eval()
    heads = {"num_key_value_heads": 2}
    classes: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, heads),
        "mistral": (hf.MistralConfig, hf.MistralForCausalLM, heads),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, heads),
        "phi": (hf.PhiConfig, hf.PhiForCausalLM, {}),
        "gpt_neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, {}),
    }
    config, model, more = classes[name]
    return model(config(**common, **more)).eval()


FAMILIES = {
    "llama": "model.layers.{}.mlp.down_proj.weight",
    "mistral": "model.layers.{}.mlp.down_proj.weight",
    "qwen2": "model.layers.{}.mlp.down_proj.weight",
    "phi": "model.layers.{}.mlp.fc2.weight",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
    "gpt2": "transformer.h.{}.mlp.c_proj.weight",
}


# ---- hidden states ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_are_what_leaves_the_layer(name: str) -> None:
    model, part = family(name), padded()
    inputs = {"input_ids": part["input_ids"], "attention_mask": part["attention_mask"]}
    expected = model(**inputs, output_hidden_states=True).hidden_states  # of the embedding first
    attended = part["attention_mask"].bool()
    logits = model(**inputs).logits
    assert num_layers(model) == 4
    for layer in range(3):  # transformers puts the final norm on the last one
        found = hidden_states(model, part, layer)
        torch.testing.assert_close(found[attended], expected[layer + 1][attended], rtol=1e-5, atol=1e-6)
    assert torch.equal(model(**inputs).logits, logits)  # all layers are back
    last = hidden_states(model, part, 3)
    assert last.shape == expected[4].shape


def test_layers_that_give_a_list() -> None:
    """GPT-1's do; what leaves the layer is its first."""
    model = tiny.family("openai-gpt", vocab_size=tiny.VOCAB_SIZE, n_embd=32, n_layer=3, n_head=2, n_positions=64)
    part = padded()
    expected = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], output_hidden_states=True)
    attended = part["attention_mask"].bool()
    torch.testing.assert_close(hidden_states(model, part, 1)[attended], expected.hidden_states[2][attended])


def test_layers_that_give_several_streams_are_refused() -> None:
    model = deep()
    model.model.layers[1].register_forward_hook(lambda *args: args[2][None].expand(4, -1, -1, -1))
    said = r"^layer 1 of LlamaForCausalLM: expected hidden states \(rows, tokens, width\), got 4 dimensions \(4, "
    with pytest.raises(ValueError, match=said):
        hidden_states(model, padded(), 1)


def test_layers_above_are_not_run_and_come_back_after_an_error() -> None:
    model = deep()
    layers = model.model.layers
    run: list[int] = []

    def note(index: int) -> Any:
        return lambda *_: run.append(index)

    for index, layer in enumerate(layers):
        layer.register_forward_hook(note(index))
    hidden_states(model, padded(), 2)
    assert run == [0, 1, 2]
    assert model.model.layers is layers
    with pytest.raises((RuntimeError, IndexError)):
        hidden_states(model, {"input_ids": torch.tensor([[99]]), "attention_mask": torch.ones(1, 1)}, 2)
    assert model.model.layers is layers
    assert not any(len(layer._forward_hooks) > 1 for layer in layers)


def test_a_layer_that_is_run_twice_is_refused() -> None:
    """As several replicas of it would be."""
    model = deep()
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(RuntimeError, match=r"^layer 1: expected to be run once, was run 2 times; .* one process"):
        hidden_states(model, padded(), 1)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Linear: expected a list of config.num_hidden_layers=None layers in it"):
        num_layers(nn.Linear(2, 2))


def test_reference_hidden_states_stay_and_cost_a_copy_of_what_is_trained() -> None:
    model, part = deep(), padded()
    for name, param in model.named_parameters():
        param.requires_grad_(make("rmu").trains(name, 8))
    reference = ReferenceModel(model)
    before = hidden_states(model, part, 1).detach()
    assert reference.nbytes == 2 * 32 * 48 * 4  # two down projections, float32
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(1.0)
    found = reference.hidden_states(part, 1)
    assert torch.equal(found, before)
    assert not found.requires_grad
    assert not torch.equal(hidden_states(model, part, 1), before)


# ---- the objective ---------------------------------------------------------------------------------------------------


def test_the_direction_is_one_draw_of_the_seed() -> None:
    u = control_vector(4096, 0)
    torch.manual_seed(5)
    control_vector.cache_clear()
    assert torch.equal(control_vector(4096, 0), u)
    assert not torch.equal(control_vector(4096, 1), u)
    assert u.min() >= 0
    assert float(u.norm()) == pytest.approx(1.0, rel=1e-6)
    # Uniform in [0, 1), not normal: mean 1/2 and mean square 1/3 before the scaling.
    assert float(u.mean() * 4096**0.5) == pytest.approx(0.75**0.5, rel=0.02)


def test_each_row_counts_the_same_whatever_its_length() -> None:
    difference = torch.zeros(2, 4, 3)
    difference[0, 0], difference[1] = 2.0, 1.0
    counted = torch.tensor([[True, False, False, False], [True, True, True, True]])
    # Rows 4 and 1. Dividing each by the mean of 1 / count, as the unified framework does, would give 2.5 + 1.875.
    assert mean_square(difference, counted).item() == pytest.approx((4.0 + 1.0) / 2)


def test_padding_and_16_bit() -> None:
    difference, counted = torch.randn(2, 3, 8), torch.tensor([[True, True, False], [False, True, True]])
    wide = F.pad(difference, (0, 0, 0, 2), value=torch.inf)
    assert torch.equal(mean_square(wide, F.pad(counted, (0, 2))), mean_square(difference, counted))
    large = (difference * 1e3).half()  # squares beyond float16
    torch.testing.assert_close(mean_square(large, counted), mean_square(large.float(), counted))


@pytest.mark.parametrize(("layers", "layer"), [(1, 0), (2, 0), (4, 0), (8, 1), (24, 5), (32, 7), (60, 14)])
def test_the_layer_goes_with_the_depth(layers: int, layer: int) -> None:
    assert make("rmu").hidden_layer(layers) == layer
    assert make("rmu", {"layer": layers - 1}).hidden_layer(layers) == layers - 1
    with pytest.raises(ValueError, match=rf"^rmu.layer: expected at most {layers - 1}, .* got {layers}$"):
        make("rmu", {"layer": layers}).hidden_layer(layers)


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_are_the_mlp_outputs_of_three_layers(name: str) -> None:
    method = make("rmu", {"layer": 3})
    trained = [param for param, _ in family(name).named_parameters() if method.trains(param, 4)]
    assert trained == [FAMILIES[name].format(layer) for layer in (1, 2, 3)]


LIKE_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
OTHERS = {
    "gptj": ({"n_embd": 32, "n_layer": 3, "n_head": 2, "rotary_dim": 8}, "transformer.h.{}.mlp.fc_out.weight"),
    "codegen": ({"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}, "transformer.h.{}.mlp.fc_out.weight"),
    "mpt": ({"d_model": 32, "n_layers": 3, "n_heads": 2}, "transformer.blocks.{}.ffn.down_proj.weight"),
    "bloom": ({"hidden_size": 32, "n_layer": 3, "n_head": 2}, "transformer.h.{}.mlp.dense_4h_to_h.weight"),
    "gpt_neo": (
        {"hidden_size": 32, "num_layers": 3, "num_heads": 2, "attention_types": [[["global"], 3]]},
        "transformer.h.{}.mlp.c_proj.weight",
    ),
    "opt": (
        {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
        "model.decoder.layers.{}.fc2.weight",
    ),
    "falcon_h1": (
        {**LIKE_LLAMA, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "head_dim": 16},
        "model.layers.{}.feed_forward.down_proj.weight",
    ),
    "lfm2": (LIKE_LLAMA, "model.layers.{}.feed_forward.w2.weight"),
    "mixtral": ({**LIKE_LLAMA, "num_local_experts": 2}, "model.layers.{}.mlp.experts.down_proj"),
    "gpt_oss": ({**LIKE_LLAMA, "num_local_experts": 2, "head_dim": 16}, "model.layers.{}.mlp.experts.down_proj"),
    "rwkv": ({"hidden_size": 32, "num_hidden_layers": 3}, "rwkv.blocks.{}.feed_forward.value.weight"),
}


def other_family(name: str, settings: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return tiny.family(name, vocab_size=64, **settings)


@pytest.mark.parametrize("name", OTHERS)
def test_trained_in_families_with_other_names(name: str) -> None:
    settings, expected = OTHERS[name]
    method = make("rmu", {"layer": 2})
    trained = [param for param, _ in other_family(name, settings).named_parameters() if method.trains(param, 3)]
    assert trained == [expected.format(layer) for layer in (0, 1, 2)]


def test_all_experts_and_what_they_share_are_trained() -> None:
    """Half of Jamba's layers have experts; Qwen2-MoE's have one more that all tokens take."""
    settings = {"num_experts": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "head_dim": 16}
    model = other_family("qwen2_moe", {**{k: v for k, v in SIZES.items() if k != "vocab_size"}, **settings})
    found = [name for name, _ in model.named_parameters() if make("rmu", {"layer": 0}).trains(name, 4)]
    assert found == ["model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.shared_expert.down_proj.weight"]
    settings = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    more = {"num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8, "use_mamba_kernels": False}
    sizes = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    model = other_family("jamba", {**sizes, "intermediate_size": 48, "num_key_value_heads": 2, **settings, **more})
    found = [name for name, _ in model.named_parameters() if make("rmu", {"layer": 1}).trains(name, 4)]
    assert found == ["model.layers.0.feed_forward.down_proj.weight", "model.layers.1.feed_forward.experts.down_proj"]


def test_a_model_whose_layers_have_no_mlp_is_told_what_to_give() -> None:
    """Mamba: its mixer is the whole layer. What the message gives as an example works."""
    model = other_family("mamba", {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, "conv_kernel": 4})
    names = [name for name, _ in model.named_parameters()]
    method = make("rmu", {"layer": 2})
    assert not any(method.trains(name, 3) for name in names)
    advice = method.what_to_train(names, 3)
    example = r"backbone\.layers\.(0|1|2)\.mixer\.out_proj\.weight"
    assert advice == f"no MLP's output has a name that is known; give trained, such as {example}"
    given = make("rmu", {"trained": example})
    expected = [f"backbone.layers.{layer}.mixer.out_proj.weight" for layer in (0, 1, 2)]
    assert [name for name in names if given.trains(name, 3)] == expected
    assert method.what_to_train(["lm_head.weight"], 3) == "give a regular expression of names as trained"


def test_trained_parameters_can_be_named() -> None:
    # The unified framework's own expression; as there it must fit the whole name.
    method = make("rmu", {"trained": r"model\.layers\.(5|6|7)\.mlp\.down_proj\.weight"})
    assert method.trains("model.layers.6.mlp.down_proj.weight", 8)
    assert not method.trains("model.layers.4.mlp.down_proj.weight", 8)
    assert not method.trains("base.model.layers.6.mlp.down_proj.weight", 8)


# ---- the trainer -----------------------------------------------------------------------------------------------------


def trained(tmp_path: Path, model: Any, **settings: Any) -> tuple[UnlearnTrainer, list[Any]]:
    recorder = tiny.Recorder()
    settings = {"optim": "sgd", "learning_rate": 0.5, "weight_decay": 0.0, "num_train_epochs": 2, **settings}
    trainer = UnlearnTrainer(model, tiny.config(tmp_path, method="rmu", **settings), recorder, tiny.dataset())
    trainer.train()
    return trainer, recorder.batches


def states_after(model: Any, part: Part, layer: int) -> Tensor:
    outputs = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], output_hidden_states=True)
    return outputs.hidden_states[layer + 1]


def rmu(model: Any, reference: Any, batch: dict[str, Part], layer: int) -> Tensor:
    """The objective, row by row."""
    u = control_vector(32, 0)
    forget, retain = batch["forget"], batch["retain"]

    def mean_of(part: Part, target: Tensor) -> Tensor:
        states = states_after(model, part, layer)
        rows = [((states - target)[row][part["labels"][row] != -100] ** 2).mean() for row in range(len(part["labels"]))]
        return torch.stack(rows).mean()

    with torch.no_grad():
        before = states_after(reference, retain, layer)
    return mean_of(forget, 6.5 * u) + 100.0 * mean_of(retain, before)


def retain_nll(model: Any, part: Part) -> Tensor:
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), part["labels"][:, 1:].flatten(), ignore_index=-100)


def flat_gradient(loss: Tensor, params: list[Any]) -> Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, params)])


@pytest.mark.parametrize("how", ["plain", "collect", "stream"])
def test_training_is_what_a_loop_by_hand_does(how: str, tmp_path: Path) -> None:
    model = deep()
    start, ours = copy.deepcopy(model), copy.deepcopy(model)
    gru = {} if how == "plain" else {"rectify": True, "gamma": 0.6, "tau": 0.5, "stream": how == "stream"}
    _, batches = trained(tmp_path, model, **gru)

    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]
    params = [ours.get_parameter(name) for name in names]
    ema = torch.zeros(sum(p.numel() for p in params))
    projected = 0
    for step in range(len(batches) // 2):
        g, r = torch.zeros_like(ema), torch.zeros_like(ema)
        for batch in batches[2 * step : 2 * step + 2]:
            g += flat_gradient(rmu(ours, start, batch, 1) / 2, params)
            r += flat_gradient(retain_nll(ours, batch["retain"]) / 2, params)
        if gru:
            ema = 0.4 * ema + 0.6 * r
            projected += int(g @ ema < 0)
            g = rectified_gradient(g, ema, 0.5)
        with torch.no_grad():
            for param, part in zip(params, g.split([p.numel() for p in params]), strict=True):
                param.sub_(0.5 * part.view_as(param))
    assert bool(gru) == (projected > 0)
    for name, param in model.named_parameters():
        before, expected = start.get_parameter(name).detach(), ours.get_parameter(name).detach()
        assert param.requires_grad == (name in names)
        if name not in names:
            assert torch.equal(param, before), name
            continue
        moved = float((expected - before).norm())
        assert moved > 1e-3
        assert float((param.detach() - expected).norm()) < 1e-4 * moved


def test_forget_states_go_to_the_direction_and_alpha_keeps_the_retain_states(tmp_path: Path) -> None:
    moved = []
    for alpha in (0.0, 5.0):
        model, options = deep(), {"steering": 3.0, "alpha": alpha}
        trainer = tiny.trainer(
            tmp_path, model, method="rmu", method_options=options, optim="sgd", learning_rate=2.0, num_train_epochs=4
        )
        before = trainer.evaluate(tiny.dataset())
        trainer.train()
        after = trainer.evaluate(tiny.dataset())
        assert after["eval_forget_loss"] < 0.8 * before["eval_forget_loss"]
        assert after["eval_loss"] >= after["eval_forget_loss"] * (1 - 1e-6)  # with alpha 0 the same, but for rounding
        part = padded("retain")
        moved.append(float((hidden_states(model, part, 1) - hidden_states(deep(), part, 1)).detach().norm()))
    assert moved[1] < 0.8 * moved[0]


@pytest.mark.parametrize("rectify", [False, True])
def test_resumed_is_unbroken_bit_for_bit(rectify: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rectify": rectify, "optim": "adamw_torch", "learning_rate": 1e-3}
    settings |= {"save_strategy": "steps", "save_steps": 2}
    whole = deep()
    trained(tmp_path / "whole", whole, **settings)
    again = deep()
    trainer = UnlearnTrainer(
        again,
        tiny.config(tmp_path / "again", method="rmu", **{**settings, "num_train_epochs": 2, "weight_decay": 0.0}),
        train_dataset=tiny.dataset(),
    )
    trainer.train(tmp_path / "whole" / "checkpoint-4")
    for (name, a), b in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_another_model_cannot_go_on_with_it(tmp_path: Path) -> None:
    trained(tmp_path, deep(), save_strategy="steps", save_steps=2)
    other = UnlearnTrainer(deep(seed=1), tiny.config(tmp_path / "b", method="rmu"), train_dataset=tiny.dataset())
    with pytest.raises(ValueError, match=r"checkpoint-2: expected to resume with the model that the run started from"):
        other.train(tmp_path / "checkpoint-2")


def test_lora_trains_the_adapters_of_these_outputs_alone(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(deep(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    trainer, _ = trained(tmp_path, model, rectify=True, method_options={"layer": 3})
    assert trainer.reference_model is not None
    assert trainer.reference_model.nbytes == 0  # the base with its adapters off
    changed = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    stem = "base_model.model.model.layers.{}.mlp.down_proj.lora_{}.default.weight"
    assert changed == {stem.format(layer, factor) for layer in (1, 2, 3) for factor in "AB"}


@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing_kwargs": {"use_reentrant": True}}, {"bf16": True}])
def test_runs_like_any_method(settings: dict[str, Any], tmp_path: Path) -> None:
    model, plain = deep(), deep()
    settings = settings if "bf16" in settings else {"activation_checkpointing": True, **settings}
    trained(tmp_path / "a", model, rectify=True, **settings)
    trained(tmp_path / "b", plain, rectify=True)
    for a, b, start in zip(model.parameters(), plain.parameters(), deep().parameters(), strict=True):
        moved = float((b - start).detach().norm())
        assert float((a - b).detach().norm()) <= (0.2 if "bf16" in settings else 1e-5) * moved


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"trained": "nope"},
            r"^rmu: expected some of the model's trainable parameters .* got none of 75 \(model.emb.*",
        ),
        ({"layer": 8}, r"^rmu.layer: expected at most 7, the model's last layer, got 8"),
    ],
)
def test_nothing_to_train_is_refused(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        tiny.trainer(tmp_path, deep(), method="rmu", method_options=options)


def test_trained_layers_above_are_no_trouble_for_the_reference(tmp_path: Path) -> None:
    """The unified framework's own recipe trains everything."""
    model = deep()
    start = copy.deepcopy(model)
    trained(tmp_path, model, method_options={"trained": ".*", "alpha": 1.0})
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, start.get_parameter(name))}
    assert {name.split(".")[2] for name in moved if ".layers." in name} == {"0", "1"}
    assert "model.embed_tokens.weight" in moved
