"""Scoring token by token, and by gradients: against float64 by hand, and the model left as it was."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from gru_fast.data.sequences import Encoded
from gru_fast.evaluation import scoring
from gru_fast.evaluation.generation import generate
from gru_fast.evaluation.scoring import gradient_norms, token_scores
from gru_fast.metrics.memorization import extraction_strength
from gru_fast.metrics.scores import TextRecord

END = 2  # of tiny.llama


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.llama().eval()


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    """Five rows of different lengths, with the end token inside and at the end, and a gap in the labels."""
    found = tiny.rows(5, seed=4)
    found[0]["labels"][-2] = -100
    found[1]["input_ids"][3] = found[1]["labels"][3] = END
    found[2]["input_ids"][-1] = found[2]["labels"][-1] = END
    return found


@torch.no_grad()
def by_hand(model: Any, row: Encoded) -> Tensor:
    """(n, vocabulary) float64 log p at each label token, one prefix at a time: no mask, no padding."""
    at = [i for i, label in enumerate(row["labels"]) if i and label != -100]
    logits = [model(input_ids=torch.tensor([row["input_ids"][:i]])).logits[0, -1] for i in at]
    return torch.stack(logits).double().log_softmax(-1)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("pad_token_id", [0, END])
def test_token_scores_are_those_of_each_sequence_alone(
    model: Any, rows: list[Encoded], batch_size: int, pad_token_id: int
) -> None:
    """With the end token for padding too: in the unified framework the attention mask was made from the ids, so that
    the end tokens of a text were not attended either."""
    found = token_scores(model, rows, batch_size=batch_size, pad_token_id=pad_token_id)
    for row, scores in zip(rows, found, strict=True):
        table = by_hand(model, row)
        labels = torch.tensor([label for label in row["labels"][1:] if label != -100])
        probs = table.exp()
        means = (probs * table).sum(-1)
        torch.testing.assert_close(scores.log_probs.double(), table[range(len(labels)), labels], atol=2e-5, rtol=0)
        torch.testing.assert_close(scores.means.double(), means, atol=2e-5, rtol=0)
        squares = (probs * table**2).sum(-1)  # the other formula of the variance
        torch.testing.assert_close(scores.variances.double(), squares - means**2, atol=1e-4, rtol=1e-4)
        assert scores.correct.tolist() == (table.argmax(-1) == labels).tolist()
        assert (scores.correct.dtype, scores.log_probs.dtype) == (torch.bool, torch.float32)


def test_pieces_of_the_vocabulary_make_no_difference(
    model: Any, rows: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = token_scores(model, rows, batch_size=3, pad_token_id=0)
    for elements in (1, tiny.VOCAB_SIZE * 2, tiny.VOCAB_SIZE * 7):  # one, two and seven tokens at a time
        monkeypatch.setattr(scoring, "_MAX_ELEMENTS", elements)
        pieces = token_scores(model, rows, batch_size=3, pad_token_id=0)
        for one, other in zip(whole, pieces, strict=True):
            for name in ("log_probs", "correct", "means", "variances"):
                torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-6, rtol=1e-6)


def test_tokens_that_cannot_be_have_no_part_in_the_spread() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, :, 2:] = -math.inf
    scores = scoring._scores_of_labels(logits, torch.tensor([[-100, 0, 1]]))
    half = math.log(0.5)
    torch.testing.assert_close(scores, torch.tensor([[half, half], [1.0, 0.0], [half, half], [0.0, 0.0]]))


@torch.no_grad()
def test_extraction_strength_is_that_of_greedy_continuation(model: Any) -> None:
    """Its definition: the fewest tokens k from which greedy decoding gives all the others."""

    class Ids:
        eos_token_id, pad_token_id = None, 0

        def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
            return " ".join(map(str, ids))

    draw = torch.Generator().manual_seed(1)
    held, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    strengths = set()
    for known in (0, 1, 3, 5):
        # A prompt of two tokens, 5 - known at random and then what the model itself would write; one that is not seen.
        ids = torch.randint(3, tiny.VOCAB_SIZE, (2 + 5 - known,), generator=draw).tolist()
        for _ in range(known):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        answer = ids[2:]
        least = next(
            k
            for k in range(6)
            if k == 5 or generate(model, Ids(), [ids[: 2 + k]], 5 - k, batch_size=1) == [" ".join(map(str, answer[k:]))]
        )
        row: Encoded = {"input_ids": [*ids, 7], "labels": [-100, -100, *answer, 7]}
        scores = token_scores(model, [row], batch_size=1, pad_token_id=0)[0]
        correct = "".join("1" if right else "0" for right in scores.correct.tolist())
        assert extraction_strength(TextRecord(0, correct=correct)) == pytest.approx(1 - least / 5)
        strengths.add(least)
    model.generation_config.eos_token_id = held
    assert len(strengths) > 2  # the cases are different ones


def test_the_model_runs_inside_autocast_and_keeps_its_modes(model: Any, rows: list[Encoded]) -> None:
    def bfloat16() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16)

    model.train()
    model.model.layers[0].eval()
    plain = token_scores(model, rows, batch_size=3, pad_token_id=0)
    lower = token_scores(model, rows, batch_size=3, pad_token_id=0, autocast=bfloat16)
    norms = gradient_norms(model, rows[:1]), gradient_norms(model, rows[:1], autocast=bfloat16)
    assert (model.training, model.model.layers[0].training) == (True, False)
    model.eval()
    assert plain[0].log_probs.tolist() != lower[0].log_probs.tolist()
    torch.testing.assert_close(plain[0].log_probs, lower[0].log_probs, atol=0.2, rtol=0.1)
    assert norms[0] != norms[1]
    assert norms[0] == pytest.approx(norms[1], rel=0.2)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_gradient_norms_are_those_of_autograd(rows: list[Encoded], tied: bool) -> None:
    model = tiny.llama(dtype=torch.float64, tie_word_embeddings=tied)
    params = list(model.parameters())
    found = gradient_norms(model, rows)
    for row, norm in zip(rows, found, strict=True):
        at = [i for i, label in enumerate(row["labels"]) if i and label != -100][:-1]  # the last label is left out
        table = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        loss = -sum(table[i - 1, row["labels"][i]] for i in at) / len(at)
        grads = torch.autograd.grad(loss, params)
        assert norm == pytest.approx(sum(float(grad.norm()) for grad in grads) / len(params), rel=1e-12)


def test_norms_of_long_gradients_keep_the_small_elements(rows: list[Encoded]) -> None:
    """Eight float32 sums in a row, as torch's norm() has on the CPU, stay at 2^24 each: every 1 after it is lost."""
    model = tiny.llama(vocab_size=1 << 15)
    params = list(model.parameters())
    long = torch.ones(params[0].shape)
    long.view(-1)[:8] = 2.0**12
    params[0].register_hook(lambda _: long)
    for param in params[1:]:
        param.register_hook(torch.zeros_like)
    norm = math.sqrt(8 * 2.0**24 + (1 << 20) - 8)
    assert gradient_norms(model, rows[:1]) == [pytest.approx(norm / len(params), rel=1e-6)]


def test_gradients_are_dropped_as_they_come_and_the_models_own_come_back(rows: list[Encoded]) -> None:
    model = tiny.llama()
    params = list(model.parameters())
    params[1].requires_grad_(False)
    held = torch.ones_like(params[2])
    params[2].grad = held
    alive: list[int] = []
    hooks = [
        param.register_post_accumulate_grad_hook(lambda _: alive.append(sum(p.grad is not None for p in params)))
        for param in params
        if param.requires_grad
    ]
    whole = gradient_norms(model, rows)
    for hook in hooks:
        hook.remove()
    assert alive
    assert max(alive) == 1
    assert [param.requires_grad for param in params] == [i != 1 for i in range(len(params))]
    assert params[2].grad is held
    assert bool((held == 1).all())
    assert [param.grad is None for param in params] == [i != 2 for i in range(len(params))]
    assert whole == gradient_norms(tiny.llama(), rows)  # frozen parameters count
    model(input_ids=torch.tensor([[3, 4]])).logits.sum().backward()  # no hook is left
    assert params[0].grad is not None


def test_the_models_gradients_come_back_after_an_error(rows: list[Encoded]) -> None:
    model = tiny.llama()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    with torch.no_grad():
        model.lm_head.weight[5, 0] = math.nan
    with pytest.raises(RuntimeError, match=r"NaN or Inf for 5 of 5 sequences; it has diverged"):
        gradient_norms(model, rows)
    assert bool((first.grad == 1).all())
    with pytest.raises(RuntimeError, match=r"NaN or Inf for 5 of 5 sequences; it has diverged"):
        token_scores(model, rows, batch_size=2, pad_token_id=0)


def test_nothing_to_score_is_refused(model: Any, rows: list[Encoded]) -> None:
    bare: Encoded = {"input_ids": [4, 5], "labels": [4, -100]}  # label 0 has no prediction
    for work in (
        lambda rows: token_scores(model, rows, batch_size=2, pad_token_id=0),
        lambda r: gradient_norms(model, r),
    ):
        with pytest.raises(ValueError, match=r"sequences\[1\]: none of its 2 tokens is scored"):
            work([rows[0], bare])
        assert work([]) == []
