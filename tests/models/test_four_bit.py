"""A base in 4 bits: the values it has, an adapter trained beside them, saved, merged, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tofu_folders import save_data, save_model

from gru_fast.attacks.parts import formats, weights
from gru_fast.cli import main
from gru_fast.models import four_bit
from gru_fast.models.load import ModelOptions, four_bit_of_run, load_merged, load_model
from gru_fast.unlearn import UnlearnTrainer
from gru_fast.unlearn.finetune import FinetuneConfig, FinetuneTrainer, finetune_trainer

pytest.importorskip("bitsandbytes", reason="the extra 4bit is not installed")

TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The matrices are of whole blocks of 64."""
    path = tmp_path_factory.mktemp("four") / "model"
    tiny.llama(hidden_size=64, intermediate_size=64).save_pretrained(path)
    return path


def options(model: Path | str, **settings: Any) -> ModelOptions:
    return ModelOptions(str(model), **{"load_in_4bit": True, "lora_dropout": 0.0, "lora_r": 4, **settings})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters() if "lora_" in name}


def with_adapter(folder: Path, **settings: Any) -> Any:
    """Ready to train; the same numbers are drawn in each."""
    torch.manual_seed(3)
    return load_model(options(folder, use_peft=True, **settings), train=True)


def in_full(folder: Path) -> Any:
    """The same without bitsandbytes: every matrix but embedding and head rounded as the attack rounds it."""
    model = with_adapter(folder, load_in_4bit=False)
    with torch.no_grad():
        for name, param in weights.to_round(model.get_base_model()).items():
            if "lora_" not in name:
                param.copy_(formats.get("nf4").rounded(param).values)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a command, with data and model beside it."""
    place = tmp_path_factory.mktemp("run")
    save_data(place / "data")
    save_model(place / "model", hidden_size=64, intermediate_size=64)
    argv = ["--max-steps", "2", "--learning-rate", "0.05", "--use-peft", "--lora-r", "4", "--rectify"]
    assert unlearn(place, "run", *argv) == 0
    return place / "run"


def unlearn(place: Path, name: str, *argv: str, command: str = "unlearn") -> int:
    where = ["--model", place / "model", "--data", place / "data", "--output-dir", place / name]
    quiet = ["--use-cpu", "--disable-tqdm"] if command == "unlearn" else ["--device", "cpu"]
    return main([command, *map(str, where), "--load-in-4bit", *quiet, *argv])


# ---- the base --------------------------------------------------------------------------------------------------------


def test_values_of_nf4_in_the_linear_layers_alone(folder: Path) -> None:
    model = load_model(options(folder, bnb_4bit_use_double_quant=False))
    assert four_bit.is_four_bit(model)
    torch.testing.assert_close(logits(model), logits(in_full(folder)))
    packed = [name for name, param in model.named_parameters() if param.dtype == torch.uint8]
    assert len(packed) == 2 * 7  # two layers
    assert not any("embed" in name or "lm_head" in name for name in packed)


@pytest.mark.parametrize(
    "settings",
    [{"bnb_4bit_quant_type": "fp4"}, {"bnb_4bit_use_double_quant": True}, {"bnb_4bit_compute_dtype": "bfloat16"}],
)
def test_each_option_changes_what_it_is_for(folder: Path, settings: dict[str, Any]) -> None:
    plain = options(folder, bnb_4bit_use_double_quant=False)
    changed = options(folder, **{"bnb_4bit_use_double_quant": False, **settings})
    assert not torch.equal(logits(load_model(plain)), logits(load_model(changed)))


def test_computed_in_the_dtype_of_the_rest_by_default(folder: Path) -> None:
    model = load_model(options(folder, dtype="bfloat16"))
    layer = model.model.layers[0].mlp.up_proj
    assert (model.dtype, layer.compute_dtype) == (torch.bfloat16, torch.bfloat16)
    assert load_model(options(folder, dtype="auto")).model.layers[0].mlp.up_proj.compute_dtype == torch.float32


def test_gradients_flow_after_a_pass_without(folder: Path) -> None:
    """bitsandbytes 0.50 would pack the weights in that pass, on CPUs with AVX512-BF16, and none would."""

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
        return {name: param.grad.clone() for name, param in model.named_parameters() if "lora_B" in name}

    model = with_adapter(folder)
    before = gradients()
    logits(model)
    after = gradients()
    assert len(before) == 2 * 7
    for name, grad in before.items():
        assert grad.any(), name
        assert torch.equal(after[name], grad), name
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules())


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["npo", "gd", "simnpo_gd", "npo_kl", "rmu"])
def test_unlearns_as_on_the_same_values_in_full(folder: Path, tmp_path: Path, method: str) -> None:
    runs = []
    for model in (with_adapter(folder, bnb_4bit_use_double_quant=False), in_full(folder)):
        base = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}
        trainer = tiny.trainer(tmp_path / str(len(runs)), model, method=method, rectify=True, max_steps=3)
        trainer.train()
        assert all(torch.equal(p.detach(), base[n]) for n, p in model.named_parameters() if n in base)
        runs.append(([e for e in trainer.state.log_history if "cos" in e], adapter_of(model)))
    (log, adapter), (wanted_log, wanted) = runs
    assert len(log) == 3
    for entry, other in zip(log, wanted_log, strict=True):
        for name in ("loss", "forget_loss", "retain_loss", "cos", "norm_after"):
            assert entry[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
    moved = {name: value for name, value in wanted.items() if "lora_B" in name and value.any()}
    assert moved
    for name, value in wanted.items():
        torch.testing.assert_close(adapter[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_references_are_of_the_base_without_the_adapter(folder: Path, tmp_path: Path) -> None:
    model = with_adapter(folder)
    trainer = tiny.trainer(tmp_path, model, method="npo_kl", max_steps=1)
    trainer.train()
    assert trainer.reference_model.nbytes == 0  # the adapter is switched off, nothing is copied
    part = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    wanted = logits(load_model(options(folder)))
    torch.testing.assert_close(trainer.reference_model.logits(part), wanted)
    assert not torch.allclose(logits(model), wanted)


def test_resumed_it_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    settings = {"method": "npo", "rectify": True, "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        model = with_adapter(folder)
        tiny.trainer(tmp_path, model, **settings).train(resume_from_checkpoint=resume)
        ends.append(adapter_of(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_full_training_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^load_in_4bit: weights in 4 bits cannot be trained.* --use-peft"):
        load_model(options(folder), train=True)
    with pytest.raises(ValueError, match=r"^load_in_4bit: weights in 4 bits cannot be trained"):
        UnlearnTrainer(load_model(options(folder)), tiny.config(tmp_path / "run"), train_dataset=tiny.dataset())
    assert not (tmp_path / "run").exists()


def test_weights_packed_for_inference_are_refused(folder: Path, tmp_path: Path) -> None:
    model = with_adapter(folder)
    model.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"^model: bitsandbytes has packed 1 of its weights .*layers\.1\.mlp\.up_proj"):
        UnlearnTrainer(model, tiny.config(tmp_path / "run"), train_dataset=tiny.dataset())
    assert not (tmp_path / "run").exists()


def test_finetuning_in_python_asks_the_same(folder: Path, tmp_path: Path) -> None:
    class Sharded(FinetuneTrainer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.is_fsdp_enabled = True

    config = FinetuneConfig(str(tmp_path), use_cpu=True)
    model = with_adapter(folder)
    with pytest.raises(ValueError, match=r"^load_in_4bit: not with FSDP or DeepSpeed"):
        finetune_trainer(model, config, tiny.rows(4, 0), None, Sharded)
    model.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"^model: bitsandbytes has packed 1 of its weights"):
        finetune_trainer(model, config, tiny.rows(4, 0), None)


def test_without_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(ImportError, match=r"^load_in_4bit: needs bitsandbytes: pip install 'gru_fast\[4bit\]'"):
        load_model(options(folder))


def test_gguf_files() -> None:
    with pytest.raises(ValueError, match=r"^load_in_4bit: model\.gguf is a GGUF file"):
        options("model.gguf")


@pytest.mark.parametrize(
    ("command", "argv", "message"),
    [
        ("unlearn", [], "load_in_4bit: weights in 4 bits cannot be trained"),
        ("unlearn", ["--use-peft", "--model", "RUN"], "is an adapter, and a new one would go on what it gives merged"),
        ("tru", [], "load_in_4bit: a task vector is of all weights"),
        ("calibrate", [], "load_in_4bit: the weights of two models are mixed"),
        ("merge", [], "load_in_4bit: what is merged is written in --dtype"),
    ],
)
def test_commands_refuse_in_one_line(
    run: Path, command: str, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(run) if word == "RUN" else word for word in argv]
    if command == "merge":
        status = main(["merge", "--model", str(run), "--output-dir", str(run.parent / "new"), "--load-in-4bit"])
    else:
        status = unlearn(run.parent, "new", *argv, command=command)
    assert status == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gru-fast")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (run.parent / "new").exists()


# ---- the adapter afterwards ------------------------------------------------------------------------------------------


def test_it_goes_back_on_the_base_as_it_was_trained(run: Path) -> None:
    assert four_bit_of_run(str(run)) == {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": None, "dtype": "float32",
    }  # fmt: skip
    assert four_bit_of_run(str(run.parent / "model")) == {}
    on_top = load_model(options(run))
    assert len(adapter_of(on_top)) == 2 * 7
    base = logits(load_model(options(run.parent / "model")))
    assert not torch.allclose(logits(on_top), base, atol=1e-2)
    torch.testing.assert_close(logits(load_merged(options(run), into_4bit=True)), logits(on_top))
    plain = options(run, load_in_4bit=False)
    assert not torch.allclose(logits(load_model(plain)), logits(on_top), atol=1e-2)  # another base
    assert torch.equal(logits(load_merged(plain)), logits(load_model(plain)))


def test_the_command_merges_with_the_options_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = run.parent / "merged"
    stopped = run.parent / ".merged.partial"  # what a merge that was killed leaves
    stopped.mkdir()
    (stopped / "model.safetensors").write_text("half")
    assert main(["merge", "--model", str(run), "--into-4bit", "--output-dir", str(target)]) == 0
    assert not stopped.exists()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{target}: {run} in float32, merged into what nf4 with scales in 8 bits makes of its base",
        f"{target}: not in its run's folder, which says how it was asked: give --template plain with it",
    ]
    assert main(["merge", "--model", str(run)]) == 0  # by default in that folder
    assert capsys.readouterr().out.splitlines() == [f"{run / 'merged'}: {run} in float32, merged into its base"]
    torch.testing.assert_close(
        logits(load_model(options(target, load_in_4bit=False))), logits(load_model(options(run)))
    )
    assert main(["merge", "--model", str(run), "--output-dir", str(target)]) == 1
    assert "expected a new or an empty folder" in capsys.readouterr().err
    assert main(["merge", "--model", str(target)]) == 1
    assert "is no adapter" in capsys.readouterr().err


def test_4_bits_are_made_from_the_dtype_of_the_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights in float32, loaded in bfloat16 and rounded to 4 bits: merged, they are those that the adapter was on."""
    from bitsandbytes.functional import dequantize_4bit

    trained, target = run.parent / "in16", run.parent / "merged16"
    argv = ["--max-steps", "1", "--learning-rate", "0.05", "--use-peft", "--lora-r", "4", "--dtype", "bfloat16"]
    assert unlearn(run.parent, trained.name, *argv) == 0
    assert main(["merge", "--model", str(trained), "--into-4bit", "--output-dir", str(target)]) == 0
    assert "in float32, merged into what nf4" in capsys.readouterr().out
    merged = dict(load_model(options(target, load_in_4bit=False)).named_parameters())
    model = load_model(options(trained, dtype="bfloat16")).get_base_model()
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert len(layers) == 7
    for name, layer in layers.items():
        weight = layer.base_layer.weight
        wanted = dequantize_4bit(weight.data, weight.quant_state).float() + layer.get_delta_weight("default").float()
        torch.testing.assert_close(merged[f"{name}.weight"], wanted, rtol=0, atol=1e-6, msg=name)
    assert main(["eval", "tofu", "--model", str(trained), "--print-config"]) == 0
    assert "dtype: bfloat16" in capsys.readouterr().out
    assert main(["eval", "tofu", "--model", str(trained), "--no-load-in-4bit", "--print-config"]) == 0
    assert "dtype: bfloat16" not in capsys.readouterr().out


def test_into_4_bits_only_what_was_trained_on_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--max-steps", "1", "--use-peft", "--lora-r", "4", "--no-load-in-4bit"]
    assert unlearn(run.parent, "in-full", *argv) == 0
    target = run.parent / "never"
    assert main(["merge", "--model", str(run.parent / "in-full"), "--into-4bit", "--output-dir", str(target)]) == 1
    assert "into_4bit: " in (said := capsys.readouterr().err)
    assert "was not trained on a base in 4 bits; leave it out" in said
    assert not target.exists()


def test_evaluated_as_it_was_trained(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gru_fast.benchmarks.tofu import evaluate

    seen: list[Any] = []
    monkeypatch.setattr(evaluate, "run", lambda chosen, subject: seen.append((subject.asked, subject.load()[0])) or {})
    monkeypatch.setattr(evaluate, "report", str)
    ask = ["eval", "tofu", "--model", str(run), "--device", "cpu"]
    assert main(ask) == 0
    assert main([*ask, "--no-load-in-4bit"]) == 0
    (asked, model), (asked_in_full, in_full_) = seen
    assert asked["bnb_4bit_quant_type"] == "nf4"
    assert "load_in_4bit" not in asked_in_full
    assert four_bit.is_four_bit(model)
    assert not four_bit.is_four_bit(in_full_)
    assert torch.equal(logits(model), logits(load_model(options(run))))
