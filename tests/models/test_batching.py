"""Which rows may share a batch: tried with rows that answer as told, and with real families that are known to mix."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from gru_fast.data.sequences import Encoded
from gru_fast.evaluation.scoring import label_log_probs
from gru_fast.models.batching import Together, together
from gru_fast.models.forward import by_length, dtype_of

ROWS = [[1, 2, 3, 4, 5, 6, 7, 8], [3, 4, 5]]


class Told:
    """Stands for a model: (1, 3) logits of each row, its sum of tokens in one place, moved as it is told to.

    Args:
        padded, equal: what is added to the logits of rows that are run beside a shorter one, or one as long; an error
            is raised instead.
    """

    def __init__(self, padded: float | Exception = 0.0, equal: float | Exception = 0.0) -> None:
        self.padded, self.equal = padded, equal
        self.batches: list[list[list[int]]] = []

    def __call__(self, rows: list[Sequence[int]]) -> list[Tensor]:
        self.batches.append([list(row) for row in rows])
        moved: float | Exception = 0.0
        if len(rows) > 1:
            moved = self.equal if len(rows[0]) == len(rows[1]) else self.padded
        if isinstance(moved, Exception):
            raise moved
        return [torch.tensor([[sum(row) / 10 + moved, 0.0, 0.0]]) for row in rows]


def ask(run: Any, model: nn.Module | None = None, rows: Any = ROWS, batch_size: int = 4, dtype: Any = None) -> Together:
    dtype = dtype or torch.float32
    return together(
        nn.Linear(1, 1) if model is None else model, "scored", rows, run, batch_size=batch_size, dtype=dtype
    )


def test_a_pair_that_gets_what_each_gets_alone_may_be_padded() -> None:
    run = Told()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask(run) is Together.ANY
    longest, quarter = ROWS[0], ROWS[0][-2:]
    assert run.batches == [[longest], [quarter], [longest, quarter]]


@pytest.mark.parametrize(
    ("padded", "equal", "expected", "message"),
    [
        (
            0.5,
            0.0,
            Together.EQUAL_LENGTH,
            r"Linear: rows of up to 8 tokens that are scored in one batch do not get what",
        ),
        (0.5, 0.0, Together.EQUAL_LENGTH, r"\(\d+\.\d% of the probability .*\); so only rows of equal length are run"),
        (0.5, 0.5, Together.NONE, r"so rows are run one at a time, which takes longer"),
        (ValueError("no\npads"), 0.0, Together.EQUAL_LENGTH, r"\(no pads\); so only rows of equal length"),
        (float("nan"), 0.0, Together.EQUAL_LENGTH, r"\(100\.0% of the probability"),
        (IndexError("pads"), RuntimeError("batch"), Together.NONE, r"\(batch\); so rows are run one at a time"),
    ],
)
def test_where_the_batch_matters_it_is_made_narrower_and_said(
    padded: Any, equal: Any, expected: Together, message: str
) -> None:
    with pytest.warns(UserWarning, match=message):
        assert ask(Told(padded, equal)) is expected


def test_what_is_too_large_for_the_device_says_nothing_of_the_model() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        ask(Told(padded=torch.OutOfMemoryError("full")))


def test_rounding_is_no_difference_and_16_bits_round_more() -> None:
    # The moved share of softmax(x, 0, 0) for x + dx is p (1 - p) dx: below 0.25 dx.
    assert ask(Told(padded=0.008)) is Together.ANY
    assert ask(Told(padded=0.1), dtype=torch.bfloat16) is Together.ANY  # sqrt(eps) is 0.088
    with pytest.warns(UserWarning, match="equal length"):
        assert ask(Told(padded=0.1)) is Together.EQUAL_LENGTH


def test_a_model_that_has_diverged_is_not_blamed_for_it() -> None:
    assert ask(lambda rows: [torch.full((1, 3), torch.nan) for _ in rows]) is Together.ANY


def test_what_has_been_found_is_not_tried_again() -> None:
    model, run = nn.Linear(1, 1), Told()
    assert ask(run, model) is Together.ANY
    assert ask(run, model, [row[1:] for row in ROWS]) is Together.ANY  # shorter: nothing new
    assert len(run.batches) == 3
    assert ask(run, model, [[*ROWS[0], 9], [1]]) is Together.ANY
    assert len(run.batches) == 6
    assert ask(Told(), nn.Linear(1, 1)) is Together.ANY
    # As long as these two, or between them, it is known; the warning is one for all.
    model, run = nn.Linear(1, 1), Told(padded=0.5)
    with pytest.warns(UserWarning, match="up to 4 tokens"):
        assert ask(run, model, [[1] * 4, [1]]) is Together.EQUAL_LENGTH
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask(run, model, [[1] * 9, [1]]) is Together.EQUAL_LENGTH
        tried = len(run.batches)
        assert ask(run, model, [[1] * 6, [1]]) is Together.EQUAL_LENGTH
        assert len(run.batches) == tried
    with pytest.warns(UserWarning, match="up to 10 tokens"):
        assert ask(Told(0.5, 0.5), model, [[*range(10)], [1]]) is Together.NONE
    assert ask(Told(), model, [[*range(20)], [1]]) is Together.NONE


@pytest.mark.filterwarnings("ignore:Linear")
@pytest.mark.parametrize("order", list(itertools.permutations((3, 8, 9, 20))))
def test_what_is_found_does_not_depend_on_the_rows_before(order: tuple[int, ...]) -> None:
    """Several processes each meet with some of the rows, and give them what one process does."""
    model, by_length = nn.Linear(1, 1), {3: Told(), 8: Told(), 9: Told(padded=1.0), 20: Told(padded=1.0)}
    found = {length: ask(by_length[length], model, [[1] * length, [1]]) for length in order}
    assert found == {3: Together.ANY, 8: Together.ANY, 9: Together.EQUAL_LENGTH, 20: Together.EQUAL_LENGTH}


def test_rows_that_share_no_batch_are_not_tried() -> None:
    run = Told(0.5, 0.5)
    assert ask(run, batch_size=1) is ask(run, rows=ROWS[:1]) is ask(run, rows=[]) is Together.ANY
    assert run.batches == []


def test_batches_are_of_rows_that_may_share_them() -> None:
    lengths = [3, 9, 3, 5, 9, 3]
    assert list(by_length(lengths, 2, Together.ANY)) == [[1, 4], [3, 0], [2, 5]]
    assert list(by_length(lengths, 2, Together.EQUAL_LENGTH)) == [[1, 4], [3], [0, 2], [5]]
    assert list(by_length(lengths, 2, Together.NONE)) == [[1], [4], [3], [0], [2], [5]]


def test_the_dtype_is_that_of_the_computation() -> None:
    model = nn.Linear(1, 1)
    assert dtype_of(model, lambda: torch.autocast("cpu", enabled=False)) == torch.float32
    assert dtype_of(model, lambda: torch.autocast("cpu", torch.bfloat16)) == torch.bfloat16
    assert dtype_of(model.half(), lambda: torch.autocast("cpu", enabled=False)) == torch.float16


# ---- real models -----------------------------------------------------------------------------------------------------


def long_rope() -> Any:
    """Other rotary frequencies for a batch whose longest row has more than 16 tokens, as in Phi 3 beyond 4096."""
    torch.manual_seed(0)
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
    }
    config = Phi3Config(**_SMALL, max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=rope)
    return Phi3ForCausalLM(config)


_SMALL = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def rows(*lengths: int) -> list[Encoded]:
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 40, (length,), generator=draw).tolist() for length in lengths]
    return [{"input_ids": row, "labels": list(row)} for row in ids]


def test_log_probs_do_not_depend_on_the_longest_row_of_the_batch() -> None:
    model, texts = long_rope(), rows(30, 20, 12, 10, 8, 8)
    with pytest.warns(UserWarning, match="Phi3ForCausalLM: .* only rows of equal length are run together"):
        found = label_log_probs(model, texts, batch_size=6, pad_token_id=0)
    for row, log_probs in zip(texts, found, strict=True):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            alone = model(ids).logits[0, :-1].log_softmax(dim=-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(log_probs, alone, atol=1e-5, rtol=1e-5)


def test_rows_below_the_length_from_which_it_matters_are_padded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label_log_probs(long_rope(), rows(15, 12, 8), batch_size=3, pad_token_id=0)
        torch.manual_seed(0)
        label_log_probs(LlamaForCausalLM(LlamaConfig(**_SMALL)), rows(30, 12, 8), batch_size=3, pad_token_id=0)
