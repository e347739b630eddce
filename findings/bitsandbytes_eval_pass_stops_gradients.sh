#!/usr/bin/env bash
# bitsandbytes 0.50.2 on a CPU with AVX512-BF16: after one forward pass in eval mode, no gradient flows through a 4-bit layer.
#
# Guess: eval mode and torch.no_grad() change nothing that a later training step sees.
# Seen:  in the first pass without gradients Linear4bit packs its weight anew, its scales in bfloat16. From then on, in
#        training mode too, it computes with an operator that has no derivative: the layer's input gets no gradient (torch
#        warns once), and its values are others. LoRA beside it trains on what comes around the layer, or not at all.
#
# What it means here: gru_fast/models/four_bit.py switches the packing off (Linear4bit.support_avx512bf16_for_cpu), since
# reference log-probabilities are such a pass, and refuses a model that has been packed.
#
# Needs a package index and some GB in a temporary folder. Exit status 0: as described; 1: it has changed; 2: this CPU
# has no AVX512-BF16.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy bitsandbytes==0.50.2
cat >"$work/eval_pass.py" <<'PROGRAM'
import sys
import warnings

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import has_avx512bf16

warnings.simplefilter("ignore")
if not has_avx512bf16():
    sys.exit(2)
torch.manual_seed(0)
layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
x = torch.randn(2, 64)


def gradient():
    given = x.clone().requires_grad_()
    (layer.train()(given).sum() + 0.0 * given.sum()).backward()  # the second term: else there is nothing to run back
    return float(given.grad.norm())


before = gradient()
with torch.no_grad():
    layer.eval()(x)
after = gradient()
print(f"norm of the input's gradient: {before:.4f} before, {after:.4f} after")
sys.exit(0 if before > 0 and after == 0 else 1)
PROGRAM
"$work/venv/bin/python" "$work/eval_pass.py"
