#!/usr/bin/env bash
# A model folder written by transformers 5.24.0, read by transformers 4.45.2 and 4.57.6 (the last of 4): the model loads without a
# word and computes something else; the tokenizer does not load.
#
# Guess: it loads, at most with a warning, and gives the same logits; the tokenizer falls back to the class of tokenizer.json.
# Seen:  5 writes the base and scaling of the rotary embedding as "rope_parameters" alone. 4 looks for "rope_theta" and
#        "rope_scaling", finds neither and takes the family's default, 10000 without scaling for Llama. For a Llama with the base
#        and scaling of Llama 3 all positions are rotated wrongly: here 1 nat of KL divergence a token. No warning is given. A
#        Llama with the default base is right. AutoTokenizer raises ValueError: 5 names a class that 4 does not have,
#        "TokenizersBackend". PreTrainedTokenizerFast.from_pretrained reads it; 4.45 then has no chat template, which 5 writes
#        to a file of its own. With both keys of 4 in config.json beside that of 5, and the old class in
#        tokenizer_config.json, 4.45.2, 4.57.6 and 5.24.0 agree.
#
# What it means here: gru_fast writes folders with transformers 5, and frameworks that evaluate them may pin 4
# (open-unlearning does). docs/open-unlearning.md has the lines to add.
#
# Needs a package index and some GB in a temporary folder. Exit status 0: as described; 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0
"${pip[@]}" numpy==2.4.6
for version in 5.24.0 4.57.6 4.45.2; do
  "${pip[@]}" --target "$work/$version" transformers=="$version"
done

cat >"$work/write.py" <<'PROGRAM'
import json
import shutil

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ids = torch.arange(64)[None]
llama3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), unk_token="[UNK]"
)
tokenizer.chat_template = "{{ messages[0]['content'] }}"
for name, rope in (("default", {"rope_type": "default", "rope_theta": 10000.0}), ("llama3", llama3)):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=131072, rope_parameters=rope)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    with torch.no_grad():
        torch.save(model(ids).logits, f"{name}.pt")

shutil.copytree("llama3", "mended")
shutil.copy("llama3.pt", "mended.pt")
with open("mended/config.json") as file:
    config = json.load(file)
rope = config["rope_parameters"]
config |= {"rope_theta": rope["rope_theta"], "rope_scaling": {key: rope[key] for key in rope if key != "rope_theta"}}
with open("mended/config.json", "w") as file:
    json.dump(config, file)
with open("mended/tokenizer_config.json") as file:
    config = json.load(file)
with open("mended/tokenizer_config.json", "w") as file:
    json.dump(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, file)
PROGRAM

cat >"$work/read.py" <<'PROGRAM'
import contextlib
import io
import logging
import warnings

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

log = io.StringIO()
logging.getLogger("transformers").addHandler(logging.StreamHandler(log))


def divergence(folder):
    """Mean KL divergence a token from what 5.24.0 computed, in nats, and what was said on the way."""
    log.seek(0)
    log.truncate()
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(torch.arange(64)[None]).logits.log_softmax(-1)
    wanted = torch.load(f"{folder}.pt").log_softmax(-1)
    said = [line for line in [*log.getvalue().splitlines(), *(str(each.message) for each in warned)] if "rope" in line]
    return float((wanted.exp() * (wanted - found)).sum(-1).mean()), said


def tokenizer(folder):
    try:
        return type(AutoTokenizer.from_pretrained(folder)).__name__
    except ValueError as error:
        return str(error)


plain, wrong, right = (divergence(folder) for folder in ("default", "llama3", "mended"))
unread, read = tokenizer("llama3"), tokenizer("mended")
template = PreTrainedTokenizerFast.from_pretrained("llama3").chat_template
version = transformers.__version__
print(f"transformers {version}: KL divergence a token, nats: default base {plain[0]:.1e}, Llama 3's {wrong[0]:.1e} "
      f"(warnings of it: {len(wrong[1])}), with the keys of 4 {right[0]:.1e}")
print(f"  tokenizer: {unread!r}, chat template by the class: {template is not None}; mended: {read!r}")
is_old = version.startswith("4.")
as_described = plain[0] < 1e-5 and right[0] < 1e-5 and not wrong[1] and (wrong[0] > 0.1) == is_old
as_described &= ("TokenizersBackend does not exist" in unread) == is_old and "does not exist" not in read
as_described &= (template is None) == version.startswith("4.45")
raise SystemExit(0 if as_described else 1)
PROGRAM

cd "$work"
export HF_HUB_OFFLINE=1
PYTHONPATH=$work/5.24.0 venv/bin/python write.py 2>"$work/log" || { cat "$work/log"; exit 1; }
for version in 5.24.0 4.57.6 4.45.2; do
  PYTHONPATH=$work/$version venv/bin/python read.py 2>"$work/log" || { cat "$work/log"; exit 1; }
done
