"""What a model says of labels without whole logits, against the same from whole logits, model by model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from processes import Processes
from torch import Tensor, nn
from wrapped import scores_of_a_llama

from gru_fast.data.sequences import SequenceCollator
from gru_fast.models import head, vocabulary
from gru_fast.models.forward import logits_of
from gru_fast.models.head import divergence_of, label_scores_of, reference_of
from gru_fast.models.scores import Scores, label_scores
from gru_fast.models.vocabulary import AfterHead
from gru_fast.unlearn.references import kl_divergence

SMALL: dict[str, Any] = {"vocab_size": 48, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
LAYERED: dict[str, Any] = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 16}
MODELS: dict[str, tuple[Any, AfterHead]] = {
    "llama": (tiny.llama, AfterHead()),
    "tied": (lambda: tiny.llama(tie_word_embeddings=True), AfterHead()),
    "biased": (lambda: tiny.family("phi", **{**LAYERED, "num_key_value_heads": None}), AfterHead()),
    "gemma2": (lambda: tiny.family("gemma2", **LAYERED, final_logit_softcapping=30.0), AfterHead(cap=30.0)),
    "granite": (lambda: tiny.family("granite", **LAYERED, logits_scaling=8.0), AfterHead(scale=0.125)),
    "cohere": (lambda: tiny.family("cohere", **LAYERED, logit_scale=0.0625), AfterHead(scale=0.0625)),
}


@pytest.fixture(autouse=True)
def no_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are; in blocks of 16 columns."""
    monkeypatch.setattr(head, "SMALL_LOGITS", 0)
    monkeypatch.setattr(vocabulary, "_LEAST_COLUMNS", 16)
    monkeypatch.setattr(vocabulary, "_BLOCK_ELEMENTS", 16)


def part(count: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Rows of several lengths, padded."""
    return dict(SequenceCollator(0)(tiny.rows(count, seed)))


def expected(model: nn.Module, some: dict[str, Tensor]) -> Scores:
    return label_scores(logits_of(model, some), some["labels"])


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_gradients_are_those_of_whole_logits(name: str) -> None:
    make, after = MODELS[name]
    model, some = make().double().train(), part()
    found, whole = label_scores_of(model, some), expected(model, some)
    assert head._found[model] == after
    torch.testing.assert_close(found.log_probs, whole.log_probs)
    assert torch.equal(found.rows, whole.rows)
    assert found.num_rows == 3
    ours, theirs = (gradients(model, scores.sequence_log_probs.square().sum()) for scores in (found, whole))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert model.training


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("attended", [True, False])
def test_divergence_is_that_of_whole_logits(name: str, attended: bool) -> None:
    model, some = MODELS[name][0]().double(), part()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for param in other.parameters():
            param.add_(0.05 * torch.randn_like(param))
    positions = some["attention_mask"] if attended else None
    params = dict(other.named_parameters())
    with torch.no_grad():
        reference = reference_of(model, some, params)
    assert isinstance(reference, head.HiddenStates)
    found = divergence_of(model, some, reference, positions)
    whole = kl_divergence(logits_of(model, some), logits_of(other, some), positions)
    assert whole.item() > 1e-3
    torch.testing.assert_close(found, whole)
    for one, another in zip(gradients(model, found), gradients(model, whole), strict=True):
        torch.testing.assert_close(one, another)


def test_logits_never_exist_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's head itself is never called."""
    model = tiny.llama()
    label_scores_of(model, part())

    def refused(*_: Any) -> Tensor:
        raise AssertionError("the head was called")

    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: refused() if self is model.lm_head else x @ self.weight.T)
    with pytest.raises(AssertionError, match="the head was called"):
        logits_of(model, part())
    label_scores_of(model, part()).mean_nll.backward()
    assert model.lm_head.weight.grad is not None
    assert "forward" not in vars(model.lm_head)


def test_small_logits_are_taken_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit what they were before there were blocks."""
    monkeypatch.setattr(head, "SMALL_LOGITS", 2**24)
    model, some = tiny.llama(), part()
    assert torch.equal(label_scores_of(model, some).log_probs, expected(model, some).log_probs)
    assert model not in head._found


class Odd(nn.Module):
    """A causal LM that squares its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.llama()

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.lm_head

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        output.logits = output.logits.square()
        return output


def test_a_model_that_does_something_else_gives_whole_logits() -> None:
    model, some = Odd(), part()
    torch.testing.assert_close(label_scores_of(model, some).log_probs, expected(model, some).log_probs)
    assert head._found[model] is None
    assert isinstance(reference_of(model, some), Tensor)


def test_an_adapter_on_the_head_gives_whole_logits() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny.llama(), LoraConfig(target_modules=["lm_head", "q_proj"], init_lora_weights=False))
    some = part()
    torch.testing.assert_close(label_scores_of(adapted, some).log_probs, expected(adapted, some).log_probs)
    others = get_peft_model(tiny.llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    torch.testing.assert_close(label_scores_of(others, some).log_probs, expected(others, some).log_probs)
    assert head._found[others] == AfterHead()


def test_autocast_is_the_models() -> None:
    model, some = tiny.llama(), part()
    with torch.autocast("cpu", torch.bfloat16):
        found, whole = label_scores_of(model, some), expected(model, some)
    assert found.log_probs.dtype == torch.float32
    torch.testing.assert_close(found.log_probs, whole.log_probs, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(model, found.mean_nll), gradients(model, whole.mean_nll), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2e-3)


def test_no_label_is_an_error_as_with_whole_logits() -> None:
    some = part()
    some["labels"] = torch.full_like(some["labels"], -100)
    with pytest.raises(ValueError, match="no token of the 3 sequences is scored"):
        label_scores_of(tiny.llama(), some)


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model, some = tiny.llama(), part()
    label_scores_of(model, some)
    with pytest.raises(IndexError):
        label_scores_of(model, {**some, "input_ids": some["input_ids"] + 1000})
    assert "forward" not in vars(model.lm_head)
    torch.testing.assert_close(label_scores_of(model, some).log_probs, expected(model, some).log_probs)


@pytest.mark.parametrize("how", ["ddp", "fsdp", "fsdp head"])
def test_wrapped_models_are_read_in_blocks(processes: Processes, how: str) -> None:
    for apart in processes.run(scores_of_a_llama, 2, how):
        assert max(apart) < 1e-9
