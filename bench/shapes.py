"""Parameter shapes of real models, computed from their public configurations.

Tied embeddings count once, as `model.parameters()` yields them. Every entry states the number of tensors and of
parameters it must come to, and `shapes_of` checks both.

    >>> len(shapes_of("smollm2-135m"))
    272
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]

# Sizes of custom tensors are multiples of this where they can be, as those of real models are.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Llama:
    """The Llama family, Mistral and Qwen2 included. Sizes in elements."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    tied: bool
    qkv_bias: bool = False

    def shapes(self) -> list[Shape]:
        kv = self.hidden // self.heads * self.kv_heads
        attention: list[Shape] = [(rows, self.hidden) for rows in (self.hidden, kv, kv, self.hidden)]
        bias: list[Shape] = [(self.hidden,), (kv,), (kv,)] if self.qkv_bias else []
        mlp: list[Shape] = [(self.intermediate, self.hidden)] * 2 + [(self.hidden, self.intermediate)]
        norms: list[Shape] = [(self.hidden,)] * 2
        head: list[Shape] = [] if self.tied else [(self.vocab, self.hidden)]
        return [(self.vocab, self.hidden), *(attention + bias + mlp + norms) * self.layers, (self.hidden,), *head]


def _with_bias(rows: int, columns: int) -> list[Shape]:
    return [(rows, columns), (rows,)]


def _gpt2(vocab: int, context: int, hidden: int, layers: int) -> list[Shape]:
    norm: list[Shape] = [(hidden,)] * 2
    # GPT-2 keeps its matrices as (in, out), with a bias of `out` elements.
    attention: list[Shape] = [(hidden, 3 * hidden), (3 * hidden,), (hidden, hidden), (hidden,)]
    mlp: list[Shape] = [(hidden, 4 * hidden), (4 * hidden,), (4 * hidden, hidden), (hidden,)]
    return [(vocab, hidden), (context, hidden), *(norm + attention + norm + mlp) * layers, *norm]


def _phi(vocab: int, hidden: int, layers: int, intermediate: int) -> list[Shape]:
    norm: list[Shape] = [(hidden,)] * 2
    attention = _with_bias(hidden, hidden) * 4
    mlp = _with_bias(intermediate, hidden) + _with_bias(hidden, intermediate)
    return [(vocab, hidden), *(norm + attention + mlp) * layers, *norm, *_with_bias(vocab, hidden)]


@dataclass(frozen=True)
class Model:
    tensors: int
    numel: int
    build: Callable[[], list[Shape]]


LLAMAS: dict[str, Llama] = {
    "smollm2-135m": Llama(49152, 576, 30, 9, 3, 1536, tied=True),
    "qwen2.5-0.5b": Llama(151936, 896, 24, 14, 2, 4864, tied=True, qkv_bias=True),
    "llama-3.2-1b": Llama(128256, 2048, 16, 32, 8, 8192, tied=True),
    "qwen2.5-1.5b": Llama(151936, 1536, 28, 12, 2, 8960, tied=True, qkv_bias=True),
    "llama2-7b": Llama(32000, 4096, 32, 32, 32, 11008, tied=False),
    "mistral-7b": Llama(32000, 4096, 32, 32, 8, 14336, tied=False),
    "llama-3.1-8b": Llama(128256, 4096, 32, 32, 8, 14336, tied=False),
}

MODELS: dict[str, Model] = {
    "gpt2-124m": Model(148, 124_439_808, lambda: _gpt2(50257, 1024, 768, 12)),
    "smollm2-135m": Model(272, 134_515_008, LLAMAS["smollm2-135m"].shapes),
    "qwen2.5-0.5b": Model(290, 494_032_768, LLAMAS["qwen2.5-0.5b"].shapes),
    "llama-3.2-1b": Model(146, 1_235_814_400, LLAMAS["llama-3.2-1b"].shapes),
    "phi-1.5": Model(341, 1_418_270_720, lambda: _phi(51200, 2048, 24, 8192)),
    "qwen2.5-1.5b": Model(338, 1_543_714_304, LLAMAS["qwen2.5-1.5b"].shapes),
    "llama2-7b": Model(291, 6_738_415_616, LLAMAS["llama2-7b"].shapes),
    "mistral-7b": Model(291, 7_241_732_096, LLAMAS["mistral-7b"].shapes),
    "llama-3.1-8b": Model(291, 8_030_261_248, LLAMAS["llama-3.1-8b"].shapes),
}


def count(shapes: list[Shape]) -> int:
    """Elements over all shapes."""
    return sum(prod(shape) for shape in shapes)


def shapes_of(name: str) -> list[Shape]:
    """The shapes of a model of `MODELS`, in the order of its parameters."""
    if name not in MODELS:
        raise ValueError(f"no shapes for {name!r}; there are {', '.join(MODELS)}")
    model = MODELS[name]
    shapes = model.build()
    found = (len(shapes), count(shapes))
    if found != (model.tensors, model.numel):
        raise RuntimeError(f"{name}: expected (tensors, parameters) = {(model.tensors, model.numel)}, built {found}")
    return shapes


def custom(tensors: int, numel: int) -> list[Shape]:
    """`tensors` vectors of about equal size with `numel` elements in all (the last takes the remainder)."""
    if tensors < 1 or numel < tensors:
        raise ValueError(f"need 1 <= tensors <= numel, got tensors={tensors}, numel={numel}")
    each = numel // tensors
    if each >= _ALIGNMENT:
        each -= each % _ALIGNMENT
    return [(each,)] * (tensors - 1) + [(numel - each * (tensors - 1),)]
