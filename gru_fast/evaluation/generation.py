"""What a model writes: continuations of prompts, greedy or drawn. The one place that generates.

Rows that have ended leave the batch: when a quarter of its rows have, `generate` is stopped, its cache is cut to the
rows that go on, and it is called again with that. Not every cache can be cut; it is tried out on each model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gru_fast.data.sequences import SequenceCollator
from gru_fast.models.batching import ERRORS, Together, moved, together, tolerance
from gru_fast.models.forward import Autocast, by_length, dtype_of, to_device
from gru_fast.models.frozen import frozen
from gru_fast.models.limits import padding_id

_Run = Callable[..., Any]  # a batch, the most tokens to write, and what else transformers' generate takes
_LEAVE_AT = 4  # one of so many rows has ended: then those leave
_TRIED = 16  # tokens of a prompt with which it is tried out whether rows may leave

# Model -> whether rows may leave a batch, the others getting what they get alone.
_leaves: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


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
    begun: Sequence[Sequence[int]] | None = None,
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
        begun: of each prompt, tokens that are known to be written first; not with ``draws``.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts):
        raise ValueError(f"max_new_tokens: expected one number or {len(prompts)}, got {len(limits)}")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompts[{i}]: expected at least one token, got none")
    if draws is not None and len(draws) != len(prompts):
        raise ValueError(f"draws: expected {len(prompts)}, one a prompt, got {len(draws)}")
    ends = _end_tokens(model, tokenizer)
    known = [_until_end(ids, ends, limit) for ids, limit in zip(begun or [()] * len(prompts), limits, strict=True)]
    if draws is not None and any(known):
        raise ValueError("begun: expected none with draws, by which all tokens are drawn")
    prompts = [[*prompt, *ids] for prompt, ids in zip(prompts, known, strict=True)]
    texts = [tokenizer.decode([t for t in ids if t not in ends], skip_special_tokens=True) for ids in known]
    limits = [0 if ends & {*ids} else limit - len(ids) for ids, limit in zip(known, limits, strict=True)]
    pad = padding_id(model, tokenizer)
    collate = SequenceCollator(pad, padding_side="left")

    def run(batch: Mapping[str, Tensor], most: int, *returned: str, **how: Any) -> Any:
        config = _greedy(most, sorted(ends), pad, **dict.fromkeys(returned, True))
        with autocast():
            return model.generate(**batch, generation_config=config, **how)

    def padded(some: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        return to_device(collate([{"input_ids": ids} for ids in some]), model)

    writable = [i for i, limit in enumerate(limits) if limit > 0]
    with frozen(model):
        token = next(token for token in (*chain(*prompts[:1]), *range(len(ends) + 1)) if token not in ends)
        trial = _Trial(model, run, padded, token, dtype_of(model, autocast))
        choice, leaving = trial.outcome([prompts[i] for i in writable], max(limits, default=0), batch_size)
        for some in by_length([len(prompts[i]) for i in writable], batch_size, choice):
            rows = [writable[i] for i in some]
            drawing = None if draws is None else _Drawing([draws[i] for i in rows], max(limits[i] for i in rows))
            of_rows = [limits[i] for i in rows]
            written = _written(run, padded([prompts[i] for i in rows]), of_rows, ends, drawing, leaving=leaving)
            for i, ids in zip(rows, written, strict=True):
                new = [token for token in _until_end(ids, ends, limits[i]) if token not in ends]
                texts[i] = tokenizer.decode([*known[i], *new], skip_special_tokens=True)
    return texts


def _until_end(ids: Sequence[int], ends: set[int], limit: int) -> list[int]:
    """What is written of some tokens: up to the first that ends it, that one too, and to the limit."""
    end = next((at + 1 for at, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: min(end, limit)])


# ---- a batch ---------------------------------------------------------------------------------------------------------


def _written(
    run: _Run,
    batch: Mapping[str, Tensor],
    limits: Sequence[int],
    ends: set[int],
    drawing: _Drawing | None,
    *,
    leaving: bool,
) -> list[list[int]]:
    """What is written after each row of a batch, up to its end token or its limit, maybe with more behind that."""
    left, step = list(range(len(limits))), 0
    written: list[list[int]] = [[] for _ in limits]
    cache: dict[str, Any] = {}
    while left:
        stop = _Stop([limits[i] - step for i in left], ends)
        how: dict[str, Any] = {} if drawing is None else {"logits_processor": [drawing]}
        if leaving:
            how |= {"stopping_criteria": [stop]}
        returned = ["return_dict_in_generate"] if leaving else []
        output = run(batch, max(limits[i] - step for i in left), *returned, **how, **cache)
        ids = output.sequences if leaving else output
        new = ids[:, batch["input_ids"].shape[1] :].tolist()
        for i, tokens in zip(left, new, strict=True):
            written[i] += tokens
        step += len(new[0])
        kept = stop.going_on if leaving else []
        left = [left[at] for at in kept]
        if left:
            batch, cache = _cut(output, batch, kept)
            if drawing is not None:
                drawing.keep(kept)
    return written


class _Stop:
    """Stops a batch when a quarter of its rows has ended; for transformers' generate.

    Args:
        limits: of each row, tokens that it may still write.
        ends: tokens that end a row.
    """

    def __init__(self, limits: Sequence[int], ends: set[int]) -> None:
        self._limits, self._ends = torch.tensor(limits), torch.tensor(sorted(ends), dtype=torch.int64)
        self._ended = torch.zeros(len(limits), dtype=torch.bool)
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self._step += 1
        self._ended |= torch.isin(input_ids[:, -1].cpu(), self._ends) | (self._limits <= self._step)
        enough = int(self._ended.sum()) * _LEAVE_AT >= len(self._ended)
        return torch.full_like(self._ended, enough, device=input_ids.device) | self._ended.to(input_ids.device)

    @property
    def going_on(self) -> list[int]:
        """The rows that have not ended."""
        return (~self._ended).nonzero()[:, 0].tolist()


def _cut(output: Any, batch: Mapping[str, Tensor], kept: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What goes on of a batch and its cache: rows by their places."""
    name = "cache" if "cache" in output else "past_key_values"  # the first from transformers 5.24 on
    cache, index = output[name], torch.tensor(kept, device=output.sequences.device)
    cache.reorder_cache(index)  # not batch_select_indices, which caches of recurrent layers have not
    ids = output.sequences[index]
    mask = batch["attention_mask"][index]
    written = mask.new_ones(len(kept), ids.shape[1] - mask.shape[1])
    return {"input_ids": ids, "attention_mask": torch.cat([mask, written], dim=1)}, {name: cache}


class _Drawing:
    """Leaves of the logits (B, V) of a step one token a row, the one that is drawn; for transformers' generate."""

    def __init__(self, draws: Sequence[Draw], steps: int) -> None:
        self.numbers = torch.stack([_uniform(draw.seed, steps) for draw in draws])
        self.temperatures = torch.tensor([[draw.temperature] for draw in draws], dtype=torch.float64)
        self.shares = torch.tensor([[draw.top_p] for draw in draws], dtype=torch.float64)
        self.step = 0

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on for some rows of those that there are, by their places."""
        for name in ("numbers", "temperatures", "shares"):
            setattr(self, name, getattr(self, name)[list(rows)])

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


# ---- which rows, and whether they may leave --------------------------------------------------------------------------


class _Trial:
    """What a model is tried out for, with one token that is written everywhere.

    Where two tokens are as probable, the batch would decide by its rounding.
    """

    def __init__(
        self, model: Any, run: _Run, padded: Callable[..., dict[str, Tensor]], token: int, dtype: torch.dtype
    ) -> None:
        self._model, self._run, self._padded, self._dtype = model, run, padded, dtype
        self._token = token

    def outcome(self, prompts: Sequence[Sequence[int]], limit: int, batch_size: int) -> tuple[Together, bool]:
        """Which prompts may share a batch, and whether rows may leave it."""
        choice = self._together(prompts, limit, batch_size)
        if limit == 1 or min(batch_size, len(prompts)) < 2 or choice is Together.NONE:
            return choice, False
        if self._model not in _leaves:
            one = max(prompts, key=len)[-_TRIED:]
            other = one[-max(1, len(one) // 4) :] if choice is Together.ANY else one[::-1]
            _leaves[self._model] = self._goes_on_as_alone([one, other])
        return choice, _leaves[self._model]

    def _together(self, prompts: Sequence[Sequence[int]], limit: int, batch_size: int) -> Together:
        """By the logits of the first token written and of one that reads the cache."""
        # A prompt may be as long as the model can read, if one token is all that is to be written.
        most, what = (2, "continued") if limit > 1 else (1, "continued by one token")

        def sample(some: list[Sequence[int]]) -> list[Tensor]:
            return list(torch.stack(self._write(self._padded(some), most).logits, dim=1))

        return together(self._model, what, prompts, sample, batch_size=batch_size, dtype=self._dtype)

    def _write(self, batch: Mapping[str, Tensor], most: int, **cache: Any) -> Any:
        asked = ("return_dict_in_generate", "output_logits")
        return self._run(batch, most, *asked, prefix_allowed_tokens_fn=lambda row, ids: [self._token], **cache)

    def _goes_on_as_alone(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether each of two rows gets what it gets alone when the other has left."""
        try:
            for row, prompt in enumerate(prompts):
                alone = self._write(self._padded([prompt]), 2).logits[-1]
                batch = self._padded(prompts)
                batch, cache = _cut(self._write(batch, 1), batch, [row])
                # By its length generate knows which tokens are new; caches of recurrent layers alone have none.
                if max(each.get_seq_length() for each in cache.values()) != batch["input_ids"].shape[1] - 1:
                    return False
                found = self._write(batch, 1, **cache).logits[-1]
                if moved(found, alone) > tolerance(self._dtype):
                    return False
        except torch.OutOfMemoryError:
            raise
        except ERRORS:
            return False
        return True


def _greedy(max_new_tokens: int, ends: list[int], pad: int, **returned: bool) -> Any:
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
        **returned,
    )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokenizer's and the model's: chat models end their turn with another token than a text."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])}
    return {token for token in found if token is not None}
