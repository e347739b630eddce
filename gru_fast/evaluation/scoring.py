"""What an evaluation asks of a model: log-probabilities of labels, greedy generations.

A benchmark says what a row's sequences and prompts are, and :mod:`gru_fast.evaluation.record_folder` keeps what is said
of them row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gru_fast.core.sharded.shards import is_sharded
from gru_fast.data.sequences import IGNORE_INDEX, Encoded, SequenceCollator
from gru_fast.models.frozen import frozen
from gru_fast.models.scores import label_scores
from gru_fast.runs.processes import here

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Subject:
    """A model to be evaluated, which is loaded only if something is left to score.

    Args:
        asked: how it was asked for (model, revision, dtype, ...); kept in the summary.
        output_dir: where its evaluation goes.
        load: the model on its device, its tokenizer, and its prompts' template.
        is_older_than: whether its files are older than another file, as far as can be told without loading it.
        batch_size: rows at a time.
        overwrite: score anew what is there.
        progress: whether to show progress bars.
    """

    asked: Mapping[str, Any]
    output_dir: Path
    load: Callable[[], tuple[Any, Any, Any]]
    is_older_than: Callable[[Path], bool]
    batch_size: int = 16
    overwrite: bool = False
    progress: bool = True


def check_whole(model: Any) -> None:
    """Refuses to deal rows out to processes that have a model only together."""
    _, world = here()
    if world > 1 and any(is_sharded(param) for param in model.parameters()):
        raise ValueError(
            f"model: it is sharded over {world} processes (FSDP2, tensor parallel), which run every batch together, so "
            "that rows cannot be dealt out to them; save it, and evaluate what was saved"
        )


# ---- what a model says of given sequences ----------------------------------------------------------------------------


@dataclass(frozen=True)
class SequenceLoss:
    """Teacher-forced loss of one sequence: mean of -log p over its ``num_tokens`` label tokens, natural logarithm."""

    loss: float
    num_tokens: int


def label_log_probs(
    model: Any, sequences: Sequence[Encoded], *, batch_size: int, pad_token_id: int, autocast: Autocast = nullcontext
) -> list[Tensor]:
    """log p of every label token given what comes before it, per sequence: float32 on the CPU, of shape (labels,).

    Args:
        model: a causal LM; run in eval mode without gradients, its modes come back.
        sequences: tokens and labels, -100 where nothing is scored; in any order, longest are run first.
        batch_size: sequences per forward pass.
        pad_token_id: for padding on the right; never attended.
        autocast: makes the context to run the model in.
    """
    found: list[Tensor] = [torch.empty(0)] * len(sequences)
    collate = SequenceCollator(pad_token_id)
    with frozen(model):
        for rows in by_length([len(row["input_ids"]) for row in sequences], batch_size):
            batch = {name: value.to(model.device) for name, value in collate([sequences[i] for i in rows]).items()}
            with autocast():
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
            scores = label_scores(logits, batch["labels"])
            for i, log_probs in zip(rows, scores.log_probs.cpu().split(scores.counts.tolist()), strict=True):
                found[i] = log_probs
    return found


def losses(
    model: Any, sequences: Sequence[Encoded], *, batch_size: int, pad_token_id: int, autocast: Autocast = nullcontext
) -> list[SequenceLoss]:
    """Mean loss of each sequence, see :func:`label_log_probs`. The mean is taken in float64.

    Raises:
        ValueError: a sequence without a label token; RuntimeError: a loss that is NaN or Inf (a diverged model).
    """
    for i, row in enumerate(sequences):
        if not num_labels(row):
            raise ValueError(f"sequences[{i}]: none of its {len(row['input_ids'])} tokens is scored")
    found = label_log_probs(model, sequences, batch_size=batch_size, pad_token_id=pad_token_id, autocast=autocast)
    result = [SequenceLoss(-float(row.double().mean()), len(row)) for row in found]
    broken = sum(not math.isfinite(row.loss) for row in result)
    if broken:
        raise RuntimeError(
            f"the model gives NaN or Inf for {broken} of {len(result)} sequences; it has diverged (look at the run's "
            "losses), or its numbers do not fit float16 (use bfloat16 or float32)"
        )
    return result


def num_labels(row: Encoded) -> int:
    """Label tokens of a sequence; label 0 has no prediction and never counts."""
    return sum(label != IGNORE_INDEX for label in row["labels"][1:])


# ---- what a model writes ---------------------------------------------------------------------------------------------


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
            batch = {
                name: value.to(model.device)
                for name, value in collate([{"input_ids": prompts[i]} for i in rows]).items()
            }
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


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows in batches, longest first: little padding, and a batch that does not fit in memory shows at once."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
