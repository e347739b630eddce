"""What FSDP's checkpointing of layers must not do to the names of an adapter."""

from __future__ import annotations

from pathlib import Path

import launched
import pytest
import tiny
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


def test_an_adapter_of_checkpointed_layers_is_saved(tmp_path: Path) -> None:
    """peft looks for its weights under the names of modules, in which the wrappers of layers stand."""
    pytest.importorskip("peft")
    from peft import PeftModel
    from peft.utils.save_and_load import load_peft_weights

    model = launched.model(lora=True)
    trainer = tiny.trainer(tmp_path / "run", model, launched.dataset(), method="ga")
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, LlamaDecoderLayer))
    wrapped = [name for name, module in model.named_modules() if isinstance(module, CheckpointWrapper)]
    assert len(wrapped) == 2
    trainer.save_model(tmp_path / "saved")
    saved = load_peft_weights(str(tmp_path / "saved"))
    expected = {name.replace(".default", ""): p for name, p in model.state_dict().items() if "lora_" in name}
    assert len(expected) == 8
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in expected.items())
    assert wrapped == [name for name, module in model.named_modules() if isinstance(module, CheckpointWrapper)]
    PeftModel.from_pretrained(tiny.llama(), tmp_path / "saved")
