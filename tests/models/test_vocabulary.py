"""Log-probabilities and divergences in blocks of the vocabulary against torch's own, from whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gru_fast.models import vocabulary
from gru_fast.models.vocabulary import AfterHead, Head, label_log_probs, mean_divergence

AFTER = [AfterHead(), AfterHead(scale=0.25), AfterHead(cap=3.0)]
LABELS = torch.tensor([0, 12, 3, 3, 7])  # the first and the last of 13 tokens among them


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """13 tokens in blocks of 4: three whole ones and one of a single column."""
    monkeypatch.setattr(vocabulary, "_LEAST_COLUMNS", 4)
    monkeypatch.setattr(vocabulary, "_BLOCK_ELEMENTS", 20)


def drawn(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias, with gradients."""
    torch.manual_seed(seed)
    return tuple(torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((5, 6), (13, 6), (13,)))


def whole(hidden: Tensor, weight: Tensor, bias: Tensor | None, after: AfterHead) -> Tensor:
    logits = after.scale * F.linear(hidden, weight, bias)
    return logits if after.cap is None else after.cap * torch.tanh(logits / after.cap)


@pytest.mark.parametrize("after", AFTER, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_log_probs_and_gradients_are_those_of_whole_logits(after: AfterHead, biased: bool) -> None:
    hidden, weight, bias = drawn()
    given = (hidden, weight, bias) if biased else (hidden, weight)
    head = Head(weight, bias if biased else None, after, torch.float64)
    found = label_log_probs(hidden, LABELS, head)
    expected = -F.cross_entropy(whole(hidden, weight, head.bias, after), LABELS, reduction="none")
    torch.testing.assert_close(found, expected)
    by = torch.linspace(-1, 2, 5, dtype=torch.float64)  # each token with another weight, as NPO has it
    for ours, theirs in zip(
        torch.autograd.grad(found @ by, given), torch.autograd.grad(expected @ by, given), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("after", AFTER, ids=str)
def test_divergence_and_gradients_are_those_of_whole_logits(after: AfterHead) -> None:
    hidden, weight, bias = drawn()
    others = [tensor.detach() for tensor in drawn(seed=1)]
    found = mean_divergence(
        hidden, Head(weight, bias, after, torch.float64), others[0], Head(others[1], others[2], after, torch.float64)
    )
    log_p, log_ref = (whole(*of, after).log_softmax(-1) for of in ((hidden, weight, bias), others))
    expected = F.kl_div(log_p, log_ref, reduction="batchmean", log_target=True)
    assert expected.item() > 0.1
    torch.testing.assert_close(found, expected)
    given = (hidden, weight, bias)
    for ours, theirs in zip(torch.autograd.grad(found, given), torch.autograd.grad(expected, given), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nothing_is_made_for_what_is_frozen() -> None:
    hidden, weight, _ = drawn()
    label_log_probs(hidden, LABELS, Head(weight.detach(), None, AfterHead(), torch.float64)).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_bfloat16_is_that_of_whole_logits() -> None:
    """Products in bfloat16, softmax in float32; the hidden states' gradient is summed in float32 and rounded once."""
    hidden, weight, _ = drawn(dtype=torch.bfloat16)
    found = label_log_probs(hidden, LABELS, Head(weight, None, AfterHead(), torch.bfloat16))
    expected = -F.cross_entropy(F.linear(hidden, weight).float(), LABELS, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    given = (hidden, weight)
    pairs = zip(torch.autograd.grad(found.sum(), given), torch.autograd.grad(expected.sum(), given), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)


def test_tokens_of_probability_0_count_nothing() -> None:
    """A bias of -Inf: a vocabulary that was padded; here a whole block of it, and the first."""
    hidden, weight, bias = drawn()
    with torch.no_grad():
        bias[:5] = -torch.inf
    head = Head(weight, bias, AfterHead(), torch.float64)
    labels = torch.tensor([5, 12, 6, 6, 7])
    found = label_log_probs(hidden, labels, head)
    torch.testing.assert_close(found, -F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="none"))
    assert mean_divergence(hidden, head, hidden.detach(), head).item() == pytest.approx(0.0, abs=1e-12)
    assert torch.isfinite(torch.autograd.grad(found.sum(), hidden)[0]).all()


def test_nan_stays_nan() -> None:
    hidden, weight, _ = drawn()
    with torch.no_grad():
        hidden[2, 0] = torch.nan
    found = label_log_probs(hidden, LABELS, Head(weight, None, AfterHead(), torch.float64))
    assert found.isnan().tolist() == [False, False, True, False, False]
