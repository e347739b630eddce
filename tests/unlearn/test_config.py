"""UnlearnConfig and GRUOptions: defaults, help, and every wrong setting named at once."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from interpreter import run_python

from gru_fast.unlearn import GRUOptions, UnlearnConfig
from gru_fast.unlearn.engines import zero_config
from gru_fast.unlearn.finetune import FinetuneConfig
from gru_fast.unlearn.methods import names


def make(**settings: Any) -> UnlearnConfig:
    return UnlearnConfig("unused", **{"use_cpu": True, **settings})


def test_defaults_are_those_of_the_public_code() -> None:
    config = make()
    assert (config.learning_rate, config.lr_scheduler_type.value, config.weight_decay) == (1e-5, "constant", 0.01)
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.gradient_accumulation_steps) == (
        5,
        4,
        8,
    )
    assert (config.rectify, config.gamma, config.tau, config.monitor, config.stream) == (False, 0.8, None, False, False)
    assert (config.max_grad_norm, config.report_to, config.remove_unused_columns) == (0.0, [], False)
    assert not config.follows_retain
    assert GRUOptions().rectify, "the mixin's switch is on when somebody asks for it"


def test_every_field_has_its_help_and_choices_where_there_are_few() -> None:
    """Flags, YAML keys and --help are made from the fields."""
    for field in dataclasses.fields(UnlearnConfig):
        assert field.metadata.get("help"), field.name
    choices = {f.name: f.metadata["choices"] for f in dataclasses.fields(UnlearnConfig) if "choices" in f.metadata}
    assert choices["method"] == tuple(names())
    assert choices["ema_dtype"] == (None, "float32", "bfloat16", "float16")
    assert choices["kl_positions"] == ("all", "attended")


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"^9 wrong settings:") as caught:
        make(
            method="nqo",
            gamma=1.5,
            tau=0.0,
            ema_dtype="int8",
            stream=True,
            max_skipped_steps=-1,
            reference_batch_size=0,
            kl_positions="some",
            logging_steps=1.5,
        )
    text = str(caught.value)
    for said in (
        "gamma: expected a number in [0, 1]",
        "tau: expected a number above 0 or None",
        "ema_dtype: expected one of none, float32, bfloat16, float16, got 'int8'",
        "stream: expected rectify or monitor beside it",
        "max_skipped_steps: expected a whole number of at least 0, got -1",
        f'method: expected one of {", ".join(names())}, got "nqo", did you mean "npo"?',
        "reference_batch_size: expected a whole number of at least 1, got 0",
        "kl_positions: expected one of all, attended, got 'some'",
        "logging_steps must be an integer",
    ):
        assert said in text, said


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"gamma": 1.5}, r"^gamma: expected a number in \[0, 1\]"),
        ({"gamma": "0.8"}, r"^gamma: expected a number in \[0, 1\], got str"),
        ({"method_options": {"bta": 1.0}}, r'^method_options: npo takes beta, got "bta"; did you mean "beta"\?'),
        ({"method_options": {"beta": -1.0}}, r"^npo.beta: expected a number above 0"),
        ({"method_options": [1]}, r"^method_options: expected name: value pairs"),
        ({"method_options": "{beta"}, r"^method_options: expected name: value pairs"),
        ({"remove_unused_columns": True}, r"^remove_unused_columns: expected False"),
        ({"label_smoothing_factor": 0.1}, r"^label_smoothing_factor: expected 0, .* got 0.1"),
    ],
)
def test_one_wrong_setting_is_one_line(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is for a GPU")
@pytest.mark.parametrize("config", [UnlearnConfig, FinetuneConfig])
def test_fp16_without_an_accelerator(config: Any) -> None:
    """It would be left out without a word."""
    with pytest.raises(ValueError, match=r"^fp16: a CPU does not compute in it; give --bf16, or leave it out$"):
        config("unused", fp16=True, use_cpu=True)


@pytest.mark.parametrize("config", [UnlearnConfig, FinetuneConfig])
def test_bf16_without_an_accelerator_says_what_to_do(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.training_args, "is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match=r"^bf16: no accelerator here .* add --use-cpu .*, or --bf16 false$"):
        config("unused", bf16=True)
    assert config("unused", bf16=True, use_cpu=True).bf16


def test_streaming_goes_with_no_loss_scale() -> None:
    with pytest.raises(ValueError, match="stream: not with fp16, where an overflow could not be taken back"):
        make(rectify=True, stream=True, fp16=True)


def test_method_options_reach_the_method_as_mapping_or_json() -> None:
    assert make(method_options={"beta": 0.3}).make_method().beta == 0.3
    assert make(method_options='{"beta": 0.3}').make_method().beta == 0.3


def test_options_of_the_mixin_are_a_part_of_the_config() -> None:
    config = make(rectify=True, gamma=0.1, tau=2, ema_dtype="bfloat16", stream=True, max_skipped_steps=3)
    options = config.gru_options()
    assert options == GRUOptions(gamma=0.1, tau=2, ema_dtype="bfloat16", stream=True, max_skipped_steps=3)
    assert options.ema_torch_dtype is torch.bfloat16
    assert isinstance(config, transformers.TrainingArguments)


def test_wrong_options_of_the_mixin_are_named() -> None:
    with pytest.raises(ValueError, match=r"^2 wrong settings:\n- gamma: .*\n- tau: "):
        GRUOptions(gamma=-0.1, tau=-1.0)


def test_it_survives_its_own_dictionary(tmp_path: Path) -> None:
    """Trainer's loggers, and the saved run, go through to_dict."""
    config = make(method_options={"beta": 0.2}, rectify=True, tau=0.01)
    again = UnlearnConfig(**{f.name: config.to_dict()[f.name] for f in dataclasses.fields(UnlearnConfig) if f.init})
    assert again.to_dict() == config.to_dict()
    assert '"gamma": 0.8' in config.to_json_string()


def test_methods_and_data_need_no_transformers(tmp_path: Path) -> None:
    code = (
        "import sys, gru_fast.unlearn, gru_fast.unlearn.methods as m; m.names(); "
        "assert 'transformers' not in sys.modules; gru_fast.unlearn.nothing"
    )
    done = run_python(code, tmp_path)
    assert "AttributeError: module 'gru_fast.unlearn' has no attribute 'nothing'" in done.stderr


def test_offloading_a_reference_that_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^offload_reference: expected a method that keeps a copy .* got npo; leave it"
    ):
        UnlearnConfig(str(tmp_path), use_cpu=True, method="npo", offload_reference=True)
    assert UnlearnConfig(str(tmp_path), use_cpu=True, method="rmu", offload_reference=True).offload_reference


@pytest.mark.parametrize(
    ("settings", "environment", "said"),
    [
        ({"fsdp": "full_shard", "deepspeed": "zero.json"}, {}, r"^fsdp, deepspeed: expected one of them, got both"),
        ({"deepspeed": "zero.json"}, {"ACCELERATE_USE_FSDP": "true"}, r"^fsdp, deepspeed: expected one of them"),
        ({"fsdp": "true"}, {"ACCELERATE_USE_DEEPSPEED": "1"}, r"^fsdp, deepspeed: expected one of them"),
        ({"deepspeed": "none.json"}, {}, r"^deepspeed: none\.json: No such file or directory; expected a DeepSpeed"),
        ({"deepspeed": "broken.json"}, {}, r"^deepspeed: broken\.json: expected JSON, Expecting property name"),
    ],
)
def test_engines_are_one_at_a_time(
    settings: dict[str, Any],
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zero.json").write_text("{}")
    Path("broken.json").write_text("{stage: 2")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        make(**settings)


def test_fsdp_is_a_flag_too() -> None:
    """transformers types it as a text, and says of texts that they are deprecated."""
    assert make(fsdp="true").fsdp == make(fsdp=True).fsdp


def test_deepspeed_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look for MPI, and miss a package that nobody needs."""
    told = dict.fromkeys(("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"), "0")
    assert zero_config.errors_of_launch(told) == []
    del told["MASTER_PORT"], told["RANK"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (said,) = zero_config.errors_of_launch(told)
    assert said.startswith("deepspeed: expected a launcher, since RANK, MASTER_PORT is not set; start a single process")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert zero_config.errors_of_launch(told) == []


def test_a_deepspeed_file_that_says_little_gets_the_trainers_rows() -> None:
    config: dict[str, Any] = {"zero_optimization": {"stage": 2}}
    zero_config.settle(config, 0.0, 2, 8)
    assert config == {
        "zero_optimization": {"stage": 2},
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 0.0,
    }
    given: dict[str, Any] = {"zero_optimization": {"stage": 2}, "train_batch_size": 16}
    zero_config.settle(given, 0.0, 2, 8)
    assert given == {"zero_optimization": {"stage": 2}, "train_batch_size": 16, "gradient_clipping": 0.0}
