"""What both examples need: a tiny Llama made here, and rows that it is taught. In a program of yours both are yours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

VOCAB_SIZE = 64
QUESTION_TOKENS = 3  # not scored


def model() -> Any:
    """A Llama of some 60 thousand parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def rows(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Made-up facts, a question and an answer each, as tokens; label -100: not scored."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCAB_SIZE, (count, 10), generator=generator).tolist()
    return [{"input_ids": row, "labels": [-100] * QUESTION_TOKENS + row[QUESTION_TOKENS:]} for row in tokens]


def batch(part: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows as what the model takes. They are equally long, so that nothing is padded."""
    return {name: torch.tensor([row[name] for row in part]) for name in ("input_ids", "labels")}


def teach(student: Any, part: list[dict[str, list[int]]], steps: int) -> None:
    """Plain training: the model learns the rows."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    data = batch(part)
    for _ in range(steps):
        student(**data).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def taught() -> tuple[Any, list[Any], list[Any]]:
    """A model that knows forty facts: four to forget, the others to keep."""
    forget_rows, retain_rows = rows(4, seed=1), rows(36, seed=2)
    student = model()
    teach(student, forget_rows + retain_rows, steps=150)
    return student, forget_rows, retain_rows


def show(found: Mapping[str, tuple[float, float]]) -> None:
    """Prints the losses on rows to forget and rows to keep, by run."""
    print(f"{'loss on':10}{'to forget':>12}{'to keep':>12}")
    for name, (forgotten, kept) in found.items():
        print(f"{name:10}{forgotten:12.3f}{kept:12.3f}")


@torch.no_grad()
def loss(student: Any, part: list[dict[str, list[int]]]) -> float:
    """The mean of -log p over the answers: near 0 for what it knows, 4.2 for a guess, more for what it avoids."""
    return float(student(**batch(part)).loss)
