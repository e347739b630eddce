"""Memory of unlearning beside a base in 4 bits: measured on a model of random weights, and forecast for larger ones.

    python bench/four_bit_memory.py --measure llama-3.2-1b --forecast llama2-7b llama-3.1-8b

Measured is the peak of the resident set while `UnlearnTrainer` trains a LoRA adapter (NPO+GD with GRU, checkpointed
layers), above that before the model was made, in a process that has trained a tiny model already; on CUDA, what the
allocator held at most. The model has a real one's shape; each matrix is quantized as it is drawn, so that the whole is
never there in 16 bits. What a forecast adds up is what must be there:

base        linear layers in 4 bits with their scales, the rest in --dtype
adapter     weights, gradients, two moments, e, and without --stream retain gradients: 4 bytes each
other       inputs of the layers that checkpoints keep, one layer's activations, its largest matrix expanded
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shapes import LLAMAS, Llama
from unlearn_memory import RETURN_MEMORY, resident

SCALES = {True: 8 / 64 + 32 / (64 * 256), False: 32 / 64}  # bits a weight: of blocks of 64, in 8 bits or as float32
TINY = Llama(256, 64, 1, 1, 1, 64, tied=True)


@dataclass(frozen=True)
class Forecast:
    """Bytes."""

    base: float
    adapter: float
    other: float

    @property
    def total(self) -> float:
        return self.base + self.adapter + self.other


def forecast(shape: Llama, args: argparse.Namespace) -> Forecast:
    """What must be there for a shape, by arithmetic."""
    matrices = _matrices(shape)
    linear = shape.layers * sum(rows * columns for rows, columns in matrices)
    rest = sum(_numel(each) for each in shape.shapes()) - linear
    wide = 2 if args.dtype == "bfloat16" else 4
    adapter = shape.layers * args.lora_r * sum(rows + columns for rows, columns in matrices)
    tokens = args.batch_size * args.tokens
    kept = shape.layers * tokens * shape.hidden * wide
    layer = tokens * wide * sum(rows for rows, _ in matrices) * 2  # outputs, and what the activation function keeps
    expanded = max(rows * columns for rows, columns in matrices) * wide
    return Forecast(
        linear * (4 + SCALES[args.double_quant]) / 8 + rest * wide,
        adapter * 4 * (5 if args.stream else 6),
        kept + layer + expanded,
    )


def _matrices(shape: Llama) -> list[tuple[int, int]]:
    """(rows, columns) of the matrices of a layer."""
    found = shape.shapes()[1 : 1 + (len(shape.shapes()) - 2) // shape.layers]
    return [(each[0], each[1]) for each in found if len(each) == 2]


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def random_model(shape: Llama, args: argparse.Namespace) -> Any:
    """A Llama of the shape in 4 bits with a new adapter, ready to train."""
    import bitsandbytes as bnb
    from transformers import LlamaConfig, LlamaForCausalLM

    from gru_fast.models.adapters import with_lora

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in block.named_children():
                if isinstance(linear, torch.nn.Linear):
                    setattr(block, name, _quantized(bnb, linear, dtype, args))
    model = _filled(model, dtype).to(args.device)
    model.is_loaded_in_4bit = True
    return with_lora(model, r=args.lora_r, alpha=32, dropout=0.0, targets=None)


def _quantized(bnb: Any, linear: Any, dtype: torch.dtype, args: argparse.Namespace) -> Any:
    new = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=dtype,
        compress_statistics=args.double_quant,
        quant_type="nf4",
        device="meta",
    )
    weight = torch.randn(linear.weight.shape, dtype=dtype) * 0.02
    new.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=args.double_quant, quant_type="nf4", module=new
    )
    return new.to(args.device)


def _filled(model: Any, dtype: torch.dtype) -> Any:
    """The parameters and buffers that are still without values get some."""
    for module in model.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            if param.is_meta:
                value = torch.ones(param.shape, dtype=dtype)
                setattr(module, name, torch.nn.Parameter(value if param.ndim < 2 else value.normal_(0, 0.02)))
    model.tie_weights()
    rotary = type(model.model.rotary_emb)
    model.model.rotary_emb = rotary(config=model.config)
    return model


def trainer_of(model: Any, shape: Llama, args: argparse.Namespace, folder: str) -> Any:
    from gru_fast.data.pairs import UnlearnDataset
    from gru_fast.unlearn import UnlearnConfig, UnlearnTrainer

    generator = torch.Generator().manual_seed(0)

    def rows() -> Any:
        drawn = torch.randint(3, shape.vocab, (args.batch_size * args.steps, args.tokens), generator=generator)
        return [{"input_ids": row, "labels": row} for row in drawn.tolist()]

    renamed = hasattr(UnlearnConfig, "activation_checkpointing")  # by newer versions of transformers
    config = UnlearnConfig(
        folder,
        method="npo_gd",
        rectify=True,
        stream=args.stream,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
        **{"activation_checkpointing" if renamed else "gradient_checkpointing": True},
    )
    return UnlearnTrainer(model, config, train_dataset=UnlearnDataset(rows(), rows()))


def measure(shape: Llama, args: argparse.Namespace) -> int:
    """Peak bytes of a training, above what was there before the model."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        trainer_of(random_model(TINY, args), TINY, args, first).train()
        gc.collect()
        before = resident("VmRSS")
        trainer = trainer_of(random_model(shape, args), shape, args, second)
        gc.collect()
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from here
        trainer.train()
        return torch.cuda.max_memory_allocated() if args.device == "cuda" else resident("VmHWM") - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="*", choices=LLAMAS, default=[], metavar="SHAPE", help=", ".join(LLAMAS))
    parser.add_argument("--forecast", nargs="*", choices=LLAMAS, default=[], metavar="SHAPE")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--lora-r", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="of each row")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--double-quant", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--in-process", choices=LLAMAS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        print(json.dumps(measure(LLAMAS[args.in_process], args)))
        return 0
    print(f"{'MiB':<14} {'base':>8} {'adapter':>8} {'other':>8} {'must be':>8} {'measured':>9}")
    for name in dict.fromkeys((*args.measure, *args.forecast)):
        parts = forecast(LLAMAS[name], args)
        cells = [f"{value / 2**20:8.0f}" for value in (parts.base, parts.adapter, parts.other, parts.total)]
        if name in args.measure:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--in-process", name],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={**os.environ, **RETURN_MEMORY},
            )
            cells.append(f"{json.loads(done.stdout.splitlines()[-1]) / 2**20:9.0f}")
        print(f"{name:<14} {' '.join(cells)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
