#!/usr/bin/env bash
# transformers 5.24.0 beside an installed DeepSpeed 0.19.8, without a GPU: saving a model writes a line of log to stdout.
#
# Guess: a package that is installed and never asked for says nothing; a library's log goes to stderr.
# Seen:  save_pretrained() of a plain model imports DeepSpeed. That looks for an accelerator, finds none, and warns; the
#        handler of its logger writes to stdout. A program whose output is JSON has a line before it that is none.
#        Generating does not import it.
#
# What it means here: gru_fast/cli/logs.py sends that log to stderr, and drops what it says of accelerators; else
# `gru-fast calibrate --save-models --json` is broken wherever DeepSpeed is installed (tests/cli/test_calibrate.py).
#
# Needs a package index and some GB in a temporary folder. Exit status 0: as described; 1: it has changed; 2: there is
# an accelerator.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" torch==2.13.0 setuptools
"${pip[@]}" transformers==5.24.0 accelerate==1.15.0
"${pip[@]}" --no-build-isolation deepspeed==0.19.8  # its setup.py imports torch
cat >"$work/save.py" <<'PROGRAM'
import contextlib
import io
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

if torch.accelerator.is_available():
    sys.exit(2)
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
model = LlamaForCausalLM(LlamaConfig(num_attention_heads=1, num_key_value_heads=1, **sizes))


def said(work):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        work()
    return out.getvalue(), "deepspeed" in sys.modules


written, used = said(lambda: model.generate(torch.zeros(1, 1, dtype=torch.long), max_new_tokens=1))
print(f"generate: DeepSpeed {'imported' if used else 'not imported'}, {len(written)} characters on stdout")
saved, used_then = said(lambda: model.save_pretrained(sys.argv[1]))
print(f"save_pretrained: DeepSpeed {'imported' if used_then else 'not imported'}, on stdout: {saved.strip()!r}")
sys.exit(0 if (written, used) == ("", False) and used_then and "Setting accelerator to CPU" in saved else 1)
PROGRAM
"$work/venv/bin/python" "$work/save.py" "$work/model"
