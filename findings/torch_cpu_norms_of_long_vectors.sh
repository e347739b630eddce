#!/usr/bin/env bash
# torch 2.13.0 on the CPU: the float32 norm of a long vector is wrong in the second digit, and clip_grad_norm_ with it.
#
# Guess: some 1e-5 whatever the length, since sums are made in vector lanes, blocks and threads, and put together in the end.
# Seen:  |x|^2 of standard normals, by norm(), is short by 1.8e-5 at 1 M elements, 1.3e-3 at 16 M and 7.4e-2 at 262.7 M (the
#        embedding of Llama 3.2 1B). It is added up in eight running float32 sums, one thread, whatever the machine has; next
#        to a sum of millions small squares are rounded away, so the error is a bias. clip_grad_norm_(max_norm=1) of that
#        gradient leaves a norm of 1.039; cosine_similarity(x, x) at 16 M is 1.0013. J @ J.T is as wrong as norm(); dot() less,
#        by threads and BLAS. (x * x).sum(), which adds in pairs, is right to 1e-7, and so is norm(dtype=torch.float64).
#        The same with 1 and 2 threads, and with ATEN_CPU_CAPABILITY=default, avx2 and avx512.
#
# What it means here: every sum of the step is good to 1e-6 at any size (docs/numerics.md says why that needs saying); norms
# of gradients elsewhere, in gru_fast/evaluation/scoring.py and gru_fast/unlearn/lora_start.py, are roots of .square().sum().
#
# Needs a package index, some GB in a temporary folder and 4 GB of memory. Exit status 0: as described; 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$work/norms.py" <<'PROGRAM'
import torch

MILLION = 1_000_000
EMBEDDING = 128_256 * 2_048


def exact(a):
    """|a|^2, float64, a block at a time."""
    return sum(float(block.double().square().sum()) for block in a.split(1 << 22))


def error(found, wanted):
    return float(found) / wanted - 1


torch.manual_seed(0)
as_described = True
for numel, least, most in ((MILLION, 1e-5, 3e-5), (16 * MILLION, 1e-3, 2e-3), (EMBEDDING, 5e-2, 1e-1)):
    x = torch.randn(numel)
    wanted = exact(x)
    by_norm, by_sum = error(x.norm().double() ** 2, wanted), error((x * x).sum(), wanted)
    print(f"{numel:>11,}: |x|^2 by norm() {by_norm:+.1e}, by dot() {error(x @ x, wanted):+.1e}, by sum() {by_sum:+.1e}")
    as_described &= least < -by_norm < most and abs(by_sum) < 1e-6
    if numel == 16 * MILLION:
        rows = torch.stack([x, torch.randn(numel)])
        lanes = torch.from_numpy((x * x).view(-1, 8).numpy().cumsum(axis=0, dtype="float32")[-1])
        by_lanes, by_gram = error(lanes.double().sum(), wanted), error((rows @ rows.T)[0, 0], wanted)
        itself = float(torch.nn.functional.cosine_similarity(x, x, dim=0))
        wide = error(x.norm(dtype=torch.float64) ** 2, wanted)
        print(f"{'':>11}  eight running float32 sums {by_lanes:+.1e}, J @ J.T {by_gram:+.1e}, in float64 {wide:+.1e};")
        print(f"{'':>11}  cosine_similarity(x, x) {itself:.4f}")
        as_described &= abs(by_lanes - by_norm) < 1e-5 and itself > 1.001 and abs(wide) < 1e-9
weight = torch.nn.Parameter(torch.zeros(0))
weight.data, weight.grad = torch.zeros(EMBEDDING), x
torch.nn.utils.clip_grad_norm_([weight], max_norm=1.0)
left = exact(weight.grad) ** 0.5
print(f"torch {torch.__version__}, {torch.get_num_threads()} threads: clip_grad_norm_ to 1 leaves a norm of {left:.4f}")
raise SystemExit(0 if as_described and left > 1.02 else 1)
PROGRAM
"$work/venv/bin/python" "$work/norms.py"
