"""What a model writes: continuations of prompts, greedy or drawn. The one place that generates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gru_fast.data.sequences import SequenceCollator
from gru_fast.models.batching import Together, together
from gru_fast.models.forward import Autocast, by_length, dtype_of, to_device
from gru_fast.models.frozen import frozen
from gru_fast.models.limits import padding_id


@dataclass(frozen=True)
class Draw:
    """How the continuation of one prompt is drawn: a pure function of the model, the prompt and this.

    Args:
        seed: of one uniform number a token, by which the token is looked up in the cumulated probabilities.
        temperature: what logits are divided by, above 0.
        top_p: of the most probable tokens, as many as have this share between them; 1 for all.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    *,
    batch_size: int,
    autocast: Autocast = nullcontext,
    draws: Sequence[Draw] | None = None,
) -> list[str]:
    """Continuation of each prompt, without special tokens; ends before the first end-of-sequence.

    Pure greedy decoding, or the pure probabilities of ``draws``: sampling and penalties of the model's own generation
    config are not applied. In exact arithmetic the text does not depend on the batch: padding is on the left, each row
    has its own limit and its own numbers to draw with, and a model that does not leave padding, or the rows beside a
    row, out of account is given prompts that it can run together (see :func:`gru_fast.models.batching.together`, which
    tries that with two tokens written after a prompt).

    Args:
        model: a causal LM with ``generate``; eval mode and no gradients meanwhile.
        tokenizer: for decoding, its end-of-sequence and its padding token (end-of-sequence where it has none).
        prompts: token ids, each at least one.
        max_new_tokens: most tokens to write, one number or one per prompt; 0 gives "".
        batch_size: prompts per batch; they are sorted by length.
        draws: one a prompt; None: greedy.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts):
        raise ValueError(f"max_new_tokens: expected one number or {len(prompts)}, got {len(limits)}")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompts[{i}]: expected at least one token, got none")
    if draws is not None and len(draws) != len(prompts):
        raise ValueError(f"draws: expected {len(prompts)}, one a prompt, got {len(draws)}")
    texts = [""] * len(prompts)
    ends = _end_tokens(model, tokenizer)
    pad = padding_id(model, tokenizer)
    collate = SequenceCollator(pad, padding_side="left")

    def run(some: Sequence[Sequence[int]], most: int, **settings: Any) -> Any:
        batch = to_device(collate([{"input_ids": ids} for ids in some]), model)
        with autocast():
            return model.generate(**batch, generation_config=_greedy(most, sorted(ends), pad), **settings)

    writable = [i for i, limit in enumerate(limits) if limit > 0]
    with frozen(model):
        choice = _together(
            model, [prompts[i] for i in writable], max(limits, default=0), run, ends, batch_size, autocast
        )
        for some in by_length([len(prompts[i]) for i in writable], batch_size, choice):
            rows = [writable[i] for i in some]
            most = max(limits[i] for i in rows)
            drawing = {} if draws is None else {"logits_processor": [_Drawing([draws[i] for i in rows], most)]}
            output = run([prompts[i] for i in rows], most, **drawing)
            written = output[:, max(len(prompts[i]) for i in rows) :].tolist()
            for i, ids in zip(rows, written, strict=True):
                end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
                texts[i] = tokenizer.decode(ids[: min(end, limits[i])], skip_special_tokens=True)
    return texts


class _Drawing:
    """Leaves of the logits (B, V) of a step one token a row, the one that is drawn; for transformers' generate."""

    def __init__(self, draws: Sequence[Draw], steps: int) -> None:
        self.numbers = torch.stack([_uniform(draw.seed, steps) for draw in draws])
        self.temperatures = torch.tensor([[draw.temperature] for draw in draws], dtype=torch.float64)
        self.shares = torch.tensor([[draw.top_p] for draw in draws], dtype=torch.float64)
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        device = scores.device
        number = self.numbers[:, self.step : self.step + 1].to(device)
        self.step += 1
        probs = (scores.double() / self.temperatures.to(device)).softmax(dim=-1)
        probs, tokens = probs.sort(dim=-1, descending=True, stable=True)
        sums = probs.cumsum(dim=-1)
        # Up to the token with which the share is reached, that one included.
        shares = self.shares.to(device).clamp(max=1)
        kept = (sums - probs < shares).sum(dim=-1, keepdim=True)
        whole = sums.gather(1, kept - 1)
        at = torch.searchsorted(sums, number * whole, right=True).minimum(kept - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.gather(1, at), 0.0)


def _uniform(seed: int, count: int) -> Tensor:
    """(count,) float64 in [0, 1); the first of them are the same for any count."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor([float(torch.rand((), generator=generator, dtype=torch.float64)) for _ in range(count)])


def _together(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limit: int,
    run: Any,
    ends: set[int],
    batch_size: int,
    autocast: Autocast,
) -> Together:
    """Which prompts may share a batch, by the logits of the first token written and of one that reads the cache."""
    # The same token is written everywhere: where two are as probable, the batch decides by its rounding.
    token = next(token for token in (*chain(*prompts[:1]), *range(len(ends) + 1)) if token not in ends)
    # A prompt may be as long as the model can read, if one token is all that is to be written.
    most, what = (2, "continued") if limit > 1 else (1, "continued by one token")

    def sample(some: list[Sequence[int]]) -> list[Tensor]:
        settings = {"output_logits": True, "return_dict_in_generate": True}
        logits = run(some, most, **settings, prefix_allowed_tokens_fn=lambda row, ids: [token]).logits
        return list(torch.stack(logits, dim=1))

    return together(model, what, prompts, sample, batch_size=batch_size, dtype=dtype_of(model, autocast))


def _greedy(max_new_tokens: int, ends: list[int], pad: int) -> Any:
    from transformers import GenerationConfig

    # Given explicitly, since what is left out comes from the model's own config: chat models ship penalties.
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=0,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokenizer's and the model's: chat models end their turn with another token than a text."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])}
    return {token for token in found if token is not None}
