"""Does training in bfloat16 go where float32 goes? Loss curves of the same unlearning run in both, over seeds.

    gru-fast finetune ... --output-dir original          # a model that knows what it is to forget
    python bench/bf16_curves.py --model original --data ../tofu --split forget05 --method npo --epochs 2

float32 by `--optim gru_adamw` over --seeds says how far runs lie apart that differ in nothing but the order of rows.
Then, with the first seed: weights, gradients, moments and e in bfloat16 by `--optim gru_adamw`, and by torch's AdamW,
which rounds to nearest. Prints, of each, the losses at the end, the largest distance of its curve from the float32 one
of the first seed (moving means over --window steps), and the share of weights that an ordinary step moves.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from gru_fast import models
from gru_fast.benchmarks import tofu
from gru_fast.unlearn import UnlearnConfig, UnlearnTrainer

LOSSES = ("forget_loss", "retain_loss")


class Moved(TrainerCallback):
    """The share of weights that each step has changed."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self._before: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self._before = [param.detach().clone() for param in model.parameters()]

    def on_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        pairs = zip(self._before, model.parameters(), strict=True)
        changed = sum(int((a != b).sum()) for a, b in pairs)
        self.shares.append(changed / sum(param.numel() for param in model.parameters()))


def run(args: argparse.Namespace, dtype: str, optim: str, seed: int) -> dict[str, Any]:
    """One run: its curves and the median share of weights moved in a step."""
    options = models.ModelOptions(model=args.model, dtype=dtype, template=args.template)
    tokenizer = models.load_tokenizer(options)
    template = models.load_template(options, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        config = UnlearnConfig(
            folder, method=args.method, rectify=True, gamma=args.gamma, tau=1.0, optim=optim, seed=seed,
            ema_dtype="bfloat16" if dtype == "bfloat16" else None, learning_rate=args.learning_rate,
            per_device_train_batch_size=4, gradient_accumulation_steps=1, num_train_epochs=args.epochs,
            save_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        data = tofu.unlearning_data(tokenizer, template, args.split, args.data, 200, seed)
        moved = Moved()
        model = models.load_model(options, train=True)
        trainer = UnlearnTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[moved])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps = [entry for entry in trainer.state.log_history if "forget_loss" in entry]
    curves = {name: [entry[name] for entry in steps] for name in LOSSES}
    return {
        **curves,
        "moved": sorted(moved.shares)[len(moved.shares) // 2],
        "dtype": dtype,
        "optim": optim,
        "seed": seed,
    }


def smooth(curve: list[float], window: int) -> torch.Tensor:
    return torch.tensor(curve, dtype=torch.float64).unfold(0, window, 1).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="forget05")
    parser.add_argument("--template", default=None)
    parser.add_argument("--method", default="npo")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--gamma", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--window", type=int, default=10, help="steps of a moving mean")
    parser.add_argument("--json", type=Path, help="where the curves go")
    args = parser.parse_args()
    plan = [("float32", "gru_adamw", seed) for seed in args.seeds]
    plan += [("bfloat16", "gru_adamw", args.seeds[0]), ("bfloat16", "adamw_torch", args.seeds[0])]
    runs = []
    print(f"torch {torch.__version__}, {platform.machine()}, {args.method}, learning rate {args.learning_rate:g}")
    print(f"{'':32} {'at the end':>23} {'largest distance':>23} {'moved':>8}")
    print(f"{'':32} {'forget':>11} {'retain':>11} {'forget':>11} {'retain':>11}")
    for dtype, optim, seed in plan:
        found = run(args, dtype, optim, seed)
        runs.append(found)
        if args.json:
            args.json.write_text(json.dumps(runs))
        curves = {name: (smooth(found[name], args.window), smooth(runs[0][name], args.window)) for name in LOSSES}
        ends = [f"{float(mine[-1]):11.4f}" for mine, _ in curves.values()]
        apart = [f"{float((mine - first).abs().max()):11.4f}" for mine, first in curves.values()]
        print(f"{f'{dtype}, {optim}, seed {seed}':32} {' '.join([*ends, *apart])} {found['moved']:8.1%}", flush=True)


if __name__ == "__main__":
    main()
