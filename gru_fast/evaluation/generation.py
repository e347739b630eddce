"""What a model writes: greedy continuations of prompts. The one place that generates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from gru_fast.data.sequences import SequenceCollator
from gru_fast.models.forward import Autocast, by_length, to_device
from gru_fast.models.frozen import frozen


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    *,
    batch_size: int,
    autocast: Autocast = nullcontext,
) -> list[str]:
    """Continuation of each prompt by greedy decoding, without special tokens; ends before the first end-of-sequence.

    Pure greedy: sampling and penalties of the model's own generation config are not applied. Padding is on the left,
    and each row has its own limit, so that in exact arithmetic the text does not depend on the batch.

    Args:
        model: a causal LM with ``generate``; eval mode and no gradients meanwhile.
        tokenizer: for decoding, its end-of-sequence and its padding token (end-of-sequence where it has none).
        prompts: token ids, each at least one.
        max_new_tokens: most tokens to write, one number or one per prompt; 0 gives "".
        batch_size: prompts per batch; they are sorted by length.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts):
        raise ValueError(f"max_new_tokens: expected one number or {len(prompts)}, got {len(limits)}")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompts[{i}]: expected at least one token, got none")
    texts = [""] * len(prompts)
    ends = _end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = SequenceCollator(pad, padding_side="left")
    writable = [i for i, limit in enumerate(limits) if limit > 0]
    with frozen(model):
        for some in by_length([len(prompts[i]) for i in writable], batch_size):
            rows = [writable[i] for i in some]
            batch = to_device(collate([{"input_ids": prompts[i]} for i in rows]), model)
            with autocast():
                output = model.generate(
                    **batch, generation_config=_greedy(max(limits[i] for i in rows), sorted(ends), pad)
                )
            written = output[:, batch["input_ids"].shape[1] :].tolist()
            for i, ids in zip(rows, written, strict=True):
                end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
                texts[i] = tokenizer.decode(ids[: min(end, limits[i])], skip_special_tokens=True)
    return texts


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
