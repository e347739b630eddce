"""Scores of labels: the shift by one, the sums per sequence, the errors. Batch: forwards when asked, once."""

from __future__ import annotations

from collections.abc import Mapping
from math import log

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gru_fast.models.scores import Scores, label_scores
from gru_fast.unlearn.batch import Batch


def logits_of(probabilities: list[list[list[float]]]) -> Tensor:
    """(B, T, V) logits whose softmax is ``probabilities``, moved by a constant that the softmax takes away."""
    return torch.tensor(probabilities).log() + 3.0


# Two sequences of three tokens over a vocabulary of three.
LOGITS = logits_of(
    [
        [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]],
        [[0.25, 0.25, 0.5], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]],
    ]
)


def test_position_t_predicts_label_t_plus_one() -> None:
    scores = label_scores(LOGITS, torch.tensor([[0, 1, 2], [0, -100, 0]]))
    # Label 0 has no prediction; the last position's logits predict nothing.
    expected = [log(0.25), log(0.7), log(0.6)]
    torch.testing.assert_close(scores.log_probs, torch.tensor(expected))
    assert scores.rows.tolist() == [0, 0, 1]
    assert scores.counts.tolist() == [2, 1]
    torch.testing.assert_close(scores.sequence_log_probs, torch.tensor([log(0.25 * 0.7), log(0.6)]))
    torch.testing.assert_close(scores.mean_nll, torch.tensor(-log(0.25 * 0.7 * 0.6) / 3))


def test_mean_nll_is_a_models_own_loss() -> None:
    logits, labels = torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    labels[torch.rand(3, 7) < 0.4] = -100
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(label_scores(logits, labels).mean_nll, expected)


def test_a_sequence_without_labels_has_sum_zero_and_no_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    scores = label_scores(logits, torch.tensor([[0, -100, -100], [0, 1, -100]]))
    assert scores.counts.tolist() == [0, 1]
    assert scores.sequence_log_probs[0] == 0.0
    (gradient,) = torch.autograd.grad(scores.sequence_log_probs.sum(), logits)
    assert not gradient[0].any()
    assert gradient[1].any()


def test_a_hopeless_token_stays_in_its_own_sequence() -> None:
    logits = LOGITS.clone()
    logits[0, 0, 1] = -torch.inf
    scores = label_scores(logits, torch.tensor([[0, 1, 2], [0, 1, -100]]))
    assert scores.sequence_log_probs.tolist() == [-torch.inf, pytest.approx(log(0.25))]


def test_padding_and_its_side_change_nothing() -> None:
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[-100, 1, 2, 3], [-100, -100, 4, 0]])
    plain = label_scores(logits, labels)
    wide = label_scores(F.pad(logits, (0, 0, 2, 3), value=9.0), F.pad(labels, (2, 3), value=-100))
    assert torch.equal(plain.sequence_log_probs, wide.sequence_log_probs)
    assert torch.equal(plain.counts, wide.counts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_logits_are_summed_up_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 3, 50_000).to(dtype)  # a bfloat16 softmax over these would be off in the third digit
    labels = torch.tensor([[0, 17, 40_000]])
    scores = label_scores(logits, labels)
    exact = logits.double().log_softmax(-1)
    assert scores.log_probs.dtype == torch.float32
    torch.testing.assert_close(scores.log_probs.double(), exact[0, [0, 1], [17, 40_000]], rtol=1e-6, atol=0)


def test_float64_logits_stay_float64() -> None:
    assert label_scores(LOGITS.double(), torch.tensor([[0, 1, 2]] * 2)).sequence_log_probs.dtype == torch.float64


def test_sums_do_not_depend_on_the_number_of_threads(thread_count: object) -> None:
    assert callable(thread_count)
    logits, labels = torch.randn(4, 600, 3), torch.randint(0, 3, (4, 600))
    results = []
    for threads in (1, 2):
        thread_count(threads)
        results.append(label_scores(logits, labels).sequence_log_probs)
    assert torch.equal(*results)


@pytest.mark.parametrize("labels", [[[1, -100, -100]] * 2, [[-100, -100, -100]] * 2])
def test_no_label_at_all_is_an_error(labels: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"labels: no token of the 2 sequences is scored; .*max_length"):
        label_scores(LOGITS, torch.tensor(labels))


def test_log_ratios() -> None:
    scores = Scores(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 0, 1]), 2, torch.tensor([-2.5, -4.5]))
    assert scores.log_ratios.tolist() == [-0.5, 0.5]


def test_log_ratios_without_reference_say_what_to_do() -> None:
    scores = Scores(torch.tensor([-1.0]), torch.tensor([0]), 1)
    with pytest.raises(ValueError, match=r"log_ratios: .*`reference_log_probs`.*gru_fast.unlearn.references"):
        _ = scores.log_ratios


def parts() -> dict[str, dict[str, Tensor]]:
    return {
        "forget": {"labels": torch.tensor([[0, 1, 2], [3, -100, 0]])},
        "retain": {"labels": torch.tensor([[0, -100, 2], [3, -100, 0]])},
    }


def test_parts_are_forwarded_when_asked_for_and_once() -> None:
    asked: list[Mapping[str, Tensor]] = []

    def forward(part: Mapping[str, Tensor]) -> Scores:
        asked.append(part)
        return label_scores(LOGITS, part["labels"])

    data = parts()
    batch = Batch(data, forward)
    assert batch.num_labels("forget") == 3
    assert batch.num_labels("retain") == 2
    assert not asked
    first = batch.retain
    assert batch.retain is first
    assert len(asked) == 1
    assert asked[0] is data["retain"]
    assert int(first.counts.sum()) == batch.num_labels("retain")


def test_divergence_is_of_the_retain_part() -> None:
    seen: list[Mapping[str, Tensor]] = []

    def divergence(part: Mapping[str, Tensor]) -> Tensor:
        seen.append(part)
        return torch.tensor(0.5)

    data = parts()
    batch = Batch(data, lambda _: pytest.fail("no forward was asked for"), divergence)
    assert batch.retain_kl == 0.5
    assert batch.retain_kl == 0.5
    assert len(seen) == 1
    assert seen[0] is data["retain"]


def test_a_part_that_is_not_there() -> None:
    batch = Batch(parts(), lambda part: label_scores(LOGITS, part["labels"]))
    with pytest.raises(ValueError, match=r'batch: no part "idk" \(it has forget, retain\)'):
        _ = batch.idk
    with pytest.raises(ValueError, match=r"retain_kl: no reference model; .*`reference_model = True`"):
        _ = batch.retain_kl
