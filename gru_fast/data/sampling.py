"""Texts and answers drawn from a model, each by its number alone: what is asked, how it is drawn, what comes of it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gru_fast.data.hashes import hash_of
from gru_fast.data.own.cutting import AS_IS
from gru_fast.data.own.documents import Document
from gru_fast.data.templates import Template, encode_prompt

SOURCE = "self-written"  # of its documents


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn.

    Args:
        max_new_tokens: most tokens that are written.
        top_k: only so many of the most probable tokens are drawn from.
        temperature: at the first token of a text, from 1; an answer to a question is drawn at 1. Carlini et al. begin
            at 10, for texts of all kinds. Here what is written is to be kept, and what the model would not say weighs
            most in its gradient: the first 20 tokens of SmolLM2-135M have a mean loss of 5.2 at 10, 3.9 at 2, 2.9 at 1.
        decay_tokens: tokens over which it falls to 1, in a straight line.
    """

    max_new_tokens: int = 256
    top_k: int = 40
    temperature: float = 2.0
    decay_tokens: int = 20

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 2), ("top_k", 1), ("temperature", 1.0), ("decay_tokens", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    def temperature_at(self, token: int, *, of_text: bool) -> float:
        """At token ``token`` of what is written, from 0."""
        if not of_text or token >= self.decay_tokens:
            return 1.0
        return self.temperature + (1.0 - self.temperature) * token / self.decay_tokens


def is_chat(template: Template) -> bool:
    """Whether its model answers. Those that have a tag for the answer (phi, plain) are words for models of texts."""
    return template.chat or bool(template.question_end and not template.answer_tag)


@dataclass(frozen=True)
class Draft:
    """What is to be written: prompt, and the question or the first words of the text."""

    number: int
    ids: list[int]
    is_text: bool
    words: str


@dataclass(frozen=True)
class Writer:
    """Draws documents from a model.

    Args:
        model, tokenizer, template: a causal LM on its device, its tokenizer, the words around a question.
        openings, questions: how texts begin, and what a chat model is asked; one of them is drawn each time.
        seed: with a document's number, of all that is drawn.
        with_texts: whether a chat model writes a text every second time.
    """

    model: Any
    tokenizer: Any
    template: Template
    sampling: Sampling
    openings: tuple[str, ...]
    questions: tuple[str, ...]
    seed: int
    with_texts: bool

    def write(self, numbers: Sequence[int], batch_size: int) -> list[Document]:
        """The documents of some numbers; the model is in eval mode meanwhile."""
        drafts = [self._draft(number) for number in numbers]
        found: dict[int, Document] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            for some in _batches(drafts, batch_size):
                for draft, text in zip(some, self._go_on(some), strict=True):
                    found[draft.number] = _document(draft, text)
        finally:
            self.model.train(was_training)
        return [found[number] for number in numbers]

    def _draft(self, number: int) -> Draft:
        draw = random.Random(f"{self.seed}/{number}")
        asks = is_chat(self.template) and not (self.with_texts and number % 2)
        if asks:
            question = draw.choice(self.questions)
            return Draft(number, encode_prompt(self.tokenizer, self.template, question), False, question)
        opening = draw.choice(self.openings)
        ids = encode_prompt(self.tokenizer, AS_IS, opening) or [self._first()]
        return Draft(number, ids, True, opening)

    def _first(self) -> int:
        """The token that a text begins after, for tokenizers that put none in front."""
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return next((int(token) for token in known if token is not None), 0)

    @torch.no_grad()
    def _go_on(self, drafts: Sequence[Draft]) -> list[str]:
        """What comes after each prompt. All are of one length, so that nothing is padded."""
        from transformers import GenerationConfig

        ids = torch.tensor([draft.ids for draft in drafts], device=self.model.device)
        ends = _ends(self.model, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        config = GenerationConfig(
            max_new_tokens=self.sampling.max_new_tokens,
            do_sample=False,  # of what Sampler leaves
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            eos_token_id=sorted(ends) or None,
            pad_token_id=pad if pad is not None else next(iter(sorted(ends)), 0),
        )
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=[Sampler(self.sampling, self.seed, drafts)],
        )
        texts: list[str] = []
        for row in output[:, ids.shape[1] :].tolist():
            end = next((at for at, token in enumerate(row) if token in ends), len(row))
            text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
            # An end token is scored after an answer: it must not be taught in the middle of a sentence.
            is_cut = end == len(row) and not drafts[len(texts)].is_text
            texts.append(whole_sentences(text) if is_cut else text)
        return texts


class Sampler:
    """Leaves one token of a row's scores: drawn from the ``top_k`` by noise of the row's own (Gumbel), on the CPU.

    So the draw does not depend on the rows beside it, nor on the device.
    """

    def __init__(self, sampling: Sampling, seed: int, drafts: Sequence[Draft]) -> None:
        self.sampling = sampling
        self.drafts = drafts
        self.start = len(drafts[0].ids)
        self.noise = [torch.Generator().manual_seed(_as_int(f"{seed}/{draft.number}")) for draft in drafts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, vocabulary) -> the same shape, 0 at the token drawn and -inf elsewhere."""
        token = input_ids.shape[1] - self.start
        best, which = scores.float().topk(min(self.sampling.top_k, scores.shape[-1]), dim=-1)
        heat = [self.sampling.temperature_at(token, of_text=draft.is_text) for draft in self.drafts]
        uniform = torch.stack([torch.rand(best.shape[1], generator=each, dtype=torch.float64) for each in self.noise])
        gumbel = -(-uniform.clamp(1e-300, 1 - 1e-16).log()).log()
        drawn = best.double().cpu() / torch.tensor(heat, dtype=torch.float64)[:, None] + gumbel
        chosen = which.gather(1, drawn.argmax(dim=-1, keepdim=True).to(which.device))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _batches(drafts: Sequence[Draft], batch_size: int) -> Iterator[list[Draft]]:
    """Drafts whose prompts are of one length, up to ``batch_size`` of them at a time."""
    by_length: dict[int, list[Draft]] = {}
    for draft in drafts:
        by_length.setdefault(len(draft.ids), []).append(draft)
    for group in by_length.values():
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a text: the tokenizer's, and the model's, whose turns may end otherwise."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])}
    return {token for token in found if token is not None}


def _document(draft: Draft, text: str) -> Document:
    id_ = f"{SOURCE}#{draft.number}"
    if draft.is_text:
        return Document(id_, SOURCE, draft.number, "text", text=draft.words + text)
    return Document(id_, SOURCE, draft.number, "pair", question=draft.words, answer=text.strip())


def _as_int(text: str) -> int:
    return int(hash_of([text])[:15], 16)


def whole_sentences(text: str) -> str:
    """A text that was cut off, up to where its last sentence ends; as it is where none does.

    >>> whole_sentences("It is 5.30 now. So let us"), whole_sentences("So let us")
    ('It is 5.30 now.', 'So let us')
    """
    found = re.match(r".*(?:[.!?](?=\s|$)|[。！？])", text, re.DOTALL)
    return found[0] if found else text


# ---- prompts ---------------------------------------------------------------------------------------------------------

_STARTS = (
    "The", "In", "A", "It", "When", "How", "There are", "I", "We", "On", "At", "For", "This", "Many", "As", "She",
    "He", "According to", "During the", "One of", "What is", "If you", "After", "People", "#", "Chapter", "Today",
    "My", "The first", "Once upon a time", "Most", "Because",
)  # fmt: skip
_TOPICS = (
    "the weather", "cooking rice", "a long journey by train", "the moon", "learning to swim", "gardens",
    "old bridges", "how bread is baked", "the human heart", "volcanoes", "friendship", "computers", "the sea",
    "a day in a village", "music for children", "sleep", "bicycles", "the history of paper", "bees", "chess", "money",
    "glass", "winter in the city", "maps", "teachers", "the number zero", "rivers", "a lost dog", "telephones",
    "healthy food", "the desert", "painting", "running a small shop", "stars", "families", "how laws are made",
    "snow", "dreams", "tea and coffee", "a rainy afternoon", "mountains", "programming", "the life of trees",
    "sports", "medicine", "castles", "electricity", "languages", "birds", "travelling alone", "repairing things",
    "clocks", "vegetables", "trains", "newspapers", "films", "a new job", "islands",
)  # fmt: skip
_REQUESTS = (
    "Write a short text about {}.",
    "Explain {} to a child.",
    "What should everybody know about {}?",
    "Tell me a story about {}.",
    "Write a letter to a friend about {}.",
    "Give me some advice about {}.",
)


def default_openings() -> tuple[str, ...]:
    return (*_STARTS, *[""] * len(_STARTS))


def default_questions() -> tuple[str, ...]:
    return tuple(request.format(topic) for topic in _TOPICS for request in _REQUESTS)
