"""A tiny Llama far from uniform, so that a wrong mask shows, rows for it, and a tokenizer that reads ids aloud."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gru_fast.data.sequences import Encoded

END = 1


class Words:
    """Just enough of a tokenizer: token 7 reads "7"."""

    eos_token_id: int | None = END
    pad_token_id: int | None = END  # as in the original code: padding is the end token

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


def sequences() -> list[Encoded]:
    """Lengths 2 to 9; of each the first two tokens are prompt, where there are so many."""
    draw = torch.Generator().manual_seed(0)
    rows: list[Encoded] = []
    for length in (5, 2, 9, 3, 7, 9):
        ids = torch.randint(2, 23, (length,), generator=draw).tolist()
        ids[-1] = END
        rows.append({"input_ids": ids, "labels": [-100] * min(2, length - 1) + ids[min(2, length - 1) :]})
    return rows
