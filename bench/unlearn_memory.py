"""Peak memory of `UnlearnTrainer` on a real model, against what has to be there.

    python bench/unlearn_memory.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data ../shared/tofu

Every mode runs in a process of its own: plain (the objective alone), collect and stream (with GRU). The peak is that of
the resident set while training (CPU), above the one before the model was loaded, in a process that has trained a tiny
model already: the libraries are there. On CUDA it is what the allocator held at most. glibc is told to hand freed
memory back, so that the resident set is what is in use.

Against it stands what must be there: parameters + optimizer + one set of gradients, and for GRU + the moving average.
The rest is activations, logits, and, with tied embeddings, autograd's own: at the end of backward it holds the
gradients of both uses and their sum, two more than the one that stays ("tied": their size, the same without GRU).
"B/param" is the peak over the number of parameters: 10 and the rest with `--dtype bfloat16 --optim gru_adamw --modes
stream`, 20 in float32.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

MODES = ("plain", "collect", "stream")
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status: no {field}")


def make_config(args: argparse.Namespace, mode: str, folder: str) -> Any:
    from gru_fast.unlearn import UnlearnConfig

    renamed = hasattr(UnlearnConfig, "activation_checkpointing")  # by newer versions of transformers
    flag = "activation_checkpointing" if renamed else "gradient_checkpointing"
    return UnlearnConfig(
        folder,
        method=args.method,
        rectify=mode != "plain",
        stream=mode == "stream",
        tau=1.0,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.accumulation,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        optim=args.optim,
        rectify_update=args.rectify_update and mode != "plain",
        **({"ema_dtype": args.dtype} if args.dtype != "float32" and mode != "plain" else {}),
        **({flag: True} if args.gradient_checkpointing else {}),
    )


def tiny_model(tokenizer: Any, dtype: torch.dtype) -> Any:
    """A model whose training brings in all that training brings in."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes)).to(dtype)


def measure(args: argparse.Namespace, mode: str) -> dict[str, Any]:
    """One run of `args.steps` steps."""
    from gru_fast.benchmarks import tofu
    from gru_fast.models.load import ModelOptions, load_model, load_template, load_tokenizer
    from gru_fast.unlearn import UnlearnTrainer

    options = ModelOptions(args.model, tokenizer=args.tokenizer, dtype=args.dtype)
    tokenizer = load_tokenizer(options)
    template = load_template(options, tokenizer)
    data = tofu.unlearning_data(tokenizer, template, args.split, args.data, args.max_length)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        small = UnlearnTrainer(
            tiny_model(tokenizer, getattr(torch, args.dtype)),
            make_config(args, mode, first),
            train_dataset=data,
            processing_class=tokenizer,
        )
        small.train()
        del small
        config = make_config(args, mode, second)
        gc.collect()
        before = resident("VmRSS")
        model = load_model(options, train=True)
        trainer = UnlearnTrainer(model, config, train_dataset=data, processing_class=tokenizer)
        gc.collect()
        cuda = config.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from here
        result = trainer.train()
        peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM") - before
        moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
        sizes = {
            "parameters": bytes_of(model.parameters()),
            "optimizer": bytes_of(value for value in moments if isinstance(value, torch.Tensor)),
            "gradients": bytes_of(param for param in model.parameters() if param.requires_grad),
            "ema": trainer.retain_ema.nbytes if mode != "plain" else 0,
        }
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
    numel = sum(param.numel() for param in model.parameters())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return {
        "mode": mode,
        "steps": result.global_step,
        "peak_bytes": peak,
        "budget_bytes": sum(sizes.values()),
        **{f"{name}_bytes": size for name, size in sizes.items()},
        "bytes_per_parameter": peak / numel,
        "tied_bytes": 2 * bytes_of([model.get_input_embeddings().weight]) if tied else 0,
        "first": log[0],
        "last": log[-1],
    }


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, hub name or file.gguf")
    parser.add_argument("--tokenizer", help="if not with the model")
    parser.add_argument("--data", default="locuslab/TOFU", help="hub name or folder (default %(default)s)")
    parser.add_argument("--split", default="forget05")
    parser.add_argument("--method", default="npo")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=500)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of weights, gradients, e")
    parser.add_argument("--optim", default="adamw_torch_fused", help="gru_adamw with --dtype bfloat16: all in 16 bits")
    parser.add_argument("--rectify-update", action="store_true", help="with gru_adamw")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--json", help="write the figures there")
    parser.add_argument("--in-process", choices=MODES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        print(json.dumps(measure(args, args.in_process)))
        return 0
    rows = []
    head = f"{'mode':8} {'peak':>9} {'must be':>9} {'ratio':>6} {'tied':>6} {'ratio without':>14} {'B/param':>8}"
    print(f"{head}   parameters + optimizer + gradients + EMA, MiB")
    for mode in args.modes:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--in-process", mode],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, **RETURN_MEMORY},
        )
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        mib = {name: value / 2**20 for name, value in row.items() if name.endswith("_bytes")}
        parts = " + ".join(f"{mib[f'{name}_bytes']:.0f}" for name in ("parameters", "optimizer", "gradients", "ema"))
        ratio, without = ((row["peak_bytes"] - less) / row["budget_bytes"] for less in (0, row["tied_bytes"]))
        line = f"{mode:8} {mib['peak_bytes']:9.0f} {mib['budget_bytes']:9.0f} {ratio:6.3f} {mib['tied_bytes']:6.0f}"
        print(f"{line} {without:14.3f} {row['bytes_per_parameter']:8.2f}   {parts}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
