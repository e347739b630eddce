#!/usr/bin/env bash
# peft 0.21.2 with torch 2.13's checkpoint wrappers (what accelerate's fsdp_activation_checkpointing puts around layers): the
# adapter that is saved has no tensors, and nothing says so.
#
# Guess: the wrapper leaves names as they are (its state_dict() does), so the adapter is saved as before.
# Seen:  8 LoRA tensors before the layers are wrapped, 0 after, from the same model. The model's own state_dict() still has
#        all 8 under their old names, and all 8 get gradients: training looks as it should. peft asks named_modules(), in
#        which each wrapped layer has one more part in its name, and looks the state_dict up by those names.
#
# What it means here: gru_fast/unlearn/engines/fsdp.py takes that part out of the names while an adapter is saved or loaded,
# tests/unlearn/test_fsdp_names.py holds it to that.
#
# Needs a package index and some GB in a temporary folder. Exit status 0: as described; 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy transformers==5.24.0 peft==0.21.2
cat >"$work/adapter.py" <<'PROGRAM'
import warnings

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)
model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
before = len(get_peft_model_state_dict(model))
apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == "LlamaDecoderLayer")
plain = sum("lora" in name for name in model.state_dict())
after = len(get_peft_model_state_dict(model))
ids = torch.zeros(1, 4, dtype=torch.int64)
model.train()(input_ids=ids, labels=ids).loss.backward()
trained = sum(each.grad is not None for name, each in model.named_parameters() if "lora" in name)
print(f"tensors of the adapter: {before} before, {after} after; {plain} in state_dict(); {trained} have gradients")
raise SystemExit(0 if (before, after, plain, trained) == (8, 0, 8, 8) else 1)
PROGRAM
"$work/venv/bin/python" "$work/adapter.py"
