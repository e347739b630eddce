"""How a model's texts are drawn: as often as it says, whatever stands beside, and ended with a sentence."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from words import word_tokenizer

from gru_fast.data import sampling
from gru_fast.data.sampling import Sampling
from gru_fast.data.templates import resolve_template

CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w0 {% endif %}"


def test_the_temperature_falls_to_one() -> None:
    how = Sampling(temperature=5.0, decay_tokens=4)
    assert [how.temperature_at(token, of_text=True) for token in range(6)] == [5.0, 4.0, 3.0, 2.0, 1.0, 1.0]
    assert how.temperature_at(0, of_text=False) == 1.0
    assert Sampling(decay_tokens=0).temperature_at(0, of_text=True) == 1.0


@pytest.mark.parametrize(("temperature", "is_text"), [(1.0, True), (3.0, True), (3.0, False)])
def test_tokens_are_drawn_as_often_as_the_model_says(temperature: float, is_text: bool) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])
    drafts = [sampling.Draft(number, [0], is_text, "") for number in range(4000)]
    sampler = sampling.Sampler(Sampling(top_k=3, temperature=temperature), 7, drafts)
    chosen = sampler(torch.zeros(4000, 1, dtype=torch.long), logits.expand(4000, -1))
    assert ((chosen == 0).sum(1) == 1).all()
    assert (chosen.isinf().sum(1) == 4).all()
    counts = Counter(chosen.argmax(1).tolist())
    heat = temperature if is_text else 1.0
    weights = [math.exp(value / heat) for value in (2.0, 1.0, 0.0)]
    assert set(counts) == {0, 1, 2}
    for token, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(counts[token] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000), (token, counts)


def test_an_answer_that_was_cut_off_ends_with_a_sentence() -> None:
    assert sampling.whole_sentences("One. Two!\nThree is") == "One. Two!"
    assert sampling.whole_sentences("One, two") == "One, two"
    assert sampling.whole_sentences("一。二") == "一。"
    tokens = word_tokenizer(["w0 . w1"], bos=True, chat_template=CHAT)

    class Model:
        """Writes a sentence and a word more; then a sentence and its end."""

        training, device, generation_config = False, torch.device("cpu"), None

        def eval(self) -> None: ...
        def train(self, mode: bool) -> None: ...

        def generate(self, input_ids: Tensor, **_: Any) -> Tensor:
            written = torch.tensor([[5, 4, 5], [5, 4, 1]])  # w1 . w1, w1 . </s>
            return torch.cat([input_ids, written[: len(input_ids)]], dim=1)

    template = resolve_template("chat", tokens)
    found = sampling.Writer(Model(), tokens, template, Sampling(max_new_tokens=6), ("",), ("w0",), 0, False).write(
        [0, 1], 2
    )
    assert [each.answer for each in found] == ["w1 .", "w1 ."]


def test_noise_does_not_depend_on_the_rows_beside() -> None:
    drafts = [sampling.Draft(number, [0], True, "") for number in range(3)]
    scores: Tensor = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(3, 1, dtype=torch.long)
    together = sampling.Sampler(Sampling(), 0, drafts)(ids, scores)
    alone = sampling.Sampler(Sampling(), 0, drafts[2:])(ids[2:], scores[2:])
    assert torch.equal(together[2:], alone)
