"""Retain data that the model writes itself, where nobody has any: what it says now is what it should go on saying.

Sampled as by Carlini et al. 2021 (arXiv 2012.07805, section 4.1.1): from nothing or from the first words of a text, of
the ``top_k`` most probable tokens, at a temperature that begins high, so that texts differ, and decays to 1. Models
with a chat template are asked questions, in that template. What shares a long run of words with the documents to forget
is dropped, and so is what repeats itself or another text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gru_fast.data.hashes import hash_of
from gru_fast.data.ngrams import Known, repetition, words_of
from gru_fast.data.own.cutting import AS_IS
from gru_fast.data.own.documents import Document, to_row
from gru_fast.data.templates import Template, encode_prompt
from gru_fast.runs.files import read_json, write_json, write_text
from gru_fast.runs.progress import progress_bar

SOURCE = "self-written"  # of its documents
KEPT, SHORT, REPETITIVE, COPIES, SHARED = "kept", "short", "repetitive", "copies", "shared"
WHY = {
    SHORT: "too short",
    REPETITIVE: "repeat themselves",
    COPIES: "like one before",
    SHARED: "share a run of words with the forget set",
}


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


@dataclass(frozen=True)
class Rules:
    """What is dropped.

    Args:
        ngram: a text that has so many words in a row with a document to forget.
        min_words: a text of fewer words.
        max_repetition: a text more of whose runs of four words were in it before than this share.
        max_copied: a text more of whose runs of ``ngram`` words were in texts before than this share.
    """

    ngram: int = 8
    min_words: int = 16
    max_repetition: float = 0.3
    max_copied: float = 0.5

    def __post_init__(self) -> None:
        if self.ngram < 2:
            raise ValueError(f"ngram: expected at least 2 words, got {self.ngram}")


def write_retain(
    model: Any,
    tokenizer: Any,
    template: Template,
    count: int,
    seed: int,
    *,
    forget: Sequence[Document],
    batch_size: int = 8,
    sampling: Sampling | None = None,
    rules: Rules | None = None,
    openings: Sequence[str] | None = None,
    questions: Sequence[str] | None = None,
    tries: int = 4,
    file: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[list[Document], dict[str, int]]:
    """``count`` documents that the model writes, and how many were written, kept, and dropped for which reason.

    A text is a pure function of the model, ``seed`` and its number: the batch size does not change it but by rounding,
    nor does a stop. A model without chat template writes texts. One with a template answers questions; where a document
    to forget is a text, every second one is a text all the same, since texts are what will be trained on.

    Args:
        model: a causal LM with ``generate``, on its device; in eval mode meanwhile.
        template: of the model's prompts.
        seed: of everything that is drawn.
        forget: what must not come back in.
        batch_size: texts written at a time.
        openings: how texts begin, "" for nothing; by default nothing every second time, else an English word or two.
        questions: for models with a chat template; by default some hundreds in English.
        tries: at most ``tries * count`` are written.
        file: JSON lines for the documents, kept up to date: a call after a stop goes on, one after the end only reads.
            What was dropped is counted in the ``.json`` of that name.
        about: what else a file depends on, such as the fingerprint of the model: another one is not gone on with.
        progress: show a bar.

    Returns:
        The documents, fewer than ``count`` where too many were dropped, and the counts: "written", "kept", "short",
        "repetitive", "copies", "shared".

    Raises:
        ValueError: a file of other settings; RuntimeError: all that the model wrote was dropped.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    writer = _Writer(
        model,
        tokenizer,
        template,
        sampling or Sampling(),
        tuple(openings) if openings else _openings(),
        tuple(questions) if questions else _questions(),
        seed,
        with_texts=not _is_chat(template) or any(document.kind == "text" for document in forget),
    )
    sieve = _Sieve(rules or Rules(), forget)
    settings = {
        "count": count,
        "seed": seed,
        "tries": tries,
        "sampling": asdict(writer.sampling),
        "rules": asdict(sieve.rules),
        "prompts": hash_of([*writer.openings, *writer.questions]),
        "forget": hash_of(text for document in forget for text in document.texts),
        "about": dict(about or {}),
    }
    shelf = _Shelf(None if file is None else Path(file), settings)
    for document in shelf.documents:
        sieve.add(document)
    with progress_bar(
        count, "writing retain texts", unit="text", initial=len(shelf.documents), shown=progress
    ) as advance:
        while len(shelf.documents) < count and shelf.written < tries * count:
            before = len(shelf.documents)
            some = min(4 * batch_size, count - before)
            numbers = range(shelf.written, min(shelf.written + some, tries * count))
            for number, document in zip(numbers, writer.write(numbers, batch_size), strict=True):
                if len(shelf.documents) < count:
                    shelf.put(number, document, sieve.judge(document))
            shelf.save()
            advance(len(shelf.documents) - before)
    if not shelf.documents:
        raise RuntimeError(
            f"the model writes nothing to keep it by: of {shelf.written} texts, {describe(shelf.counts)}; give "
            "documents with --retain"
        )
    return shelf.documents, shelf.counts


def describe(counts: Mapping[str, int]) -> str:
    """The counts of :func:`write_retain` in words.

    >>> describe({"written": 9, "kept": 7, "short": 0, "repetitive": 2, "copies": 0, "shared": 0})
    '7 kept, 2 repeat themselves'
    """
    dropped = [f"{counts[key]} {why}" for key, why in WHY.items() if counts[key]]
    return ", ".join([f"{counts[KEPT]} kept", *dropped])


def whole_sentences(text: str) -> str:
    """A text that was cut off, up to where its last sentence ends; as it is where none does.

    >>> whole_sentences("It is 5.30 now. So let us"), whole_sentences("So let us")
    ('It is 5.30 now.', 'So let us')
    """
    found = re.match(r".*(?:[.!?](?=\s|$)|[。！？])", text, re.DOTALL)
    return found[0] if found else text


# ---- writing ---------------------------------------------------------------------------------------------------------


def _is_chat(template: Template) -> bool:
    """Whether its model answers. Those that have a tag for the answer (phi, plain) are words for models of texts."""
    return template.chat or bool(template.question_end and not template.answer_tag)


@dataclass(frozen=True)
class _Draft:
    """What is to be written: prompt, and the question or the first words of the text."""

    number: int
    ids: list[int]
    is_text: bool
    words: str


@dataclass(frozen=True)
class _Writer:
    model: Any
    tokenizer: Any
    template: Template
    sampling: Sampling
    openings: tuple[str, ...]
    questions: tuple[str, ...]
    seed: int
    with_texts: bool

    def write(self, numbers: Sequence[int], batch_size: int) -> list[Document]:
        """The documents of some numbers."""
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

    def _draft(self, number: int) -> _Draft:
        draw = random.Random(f"{self.seed}/{number}")
        asks = _is_chat(self.template) and not (self.with_texts and number % 2)
        if asks:
            question = draw.choice(self.questions)
            return _Draft(number, encode_prompt(self.tokenizer, self.template, question), False, question)
        opening = draw.choice(self.openings)
        ids = encode_prompt(self.tokenizer, AS_IS, opening) or [self._first()]
        return _Draft(number, ids, True, opening)

    def _first(self) -> int:
        """The token that a text begins after, for tokenizers that put none in front."""
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return next((int(token) for token in known if token is not None), 0)

    @torch.no_grad()
    def _go_on(self, drafts: Sequence[_Draft]) -> list[str]:
        """What comes after each prompt. All are of one length, so that nothing is padded."""
        from transformers import GenerationConfig

        ids = torch.tensor([draft.ids for draft in drafts], device=self.model.device)
        ends = _ends(self.model, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        config = GenerationConfig(
            max_new_tokens=self.sampling.max_new_tokens,
            do_sample=False,  # of what _Sampler leaves
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
            logits_processor=[_Sampler(self.sampling, self.seed, drafts)],
        )
        texts: list[str] = []
        for row in output[:, ids.shape[1] :].tolist():
            end = next((at for at, token in enumerate(row) if token in ends), len(row))
            text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
            # An end token is scored after an answer: it must not be taught in the middle of a sentence.
            is_cut = end == len(row) and not drafts[len(texts)].is_text
            texts.append(whole_sentences(text) if is_cut else text)
        return texts


class _Sampler:
    """Leaves one token of a row's scores: drawn from the ``top_k`` by noise of the row's own (Gumbel), on the CPU.

    So the draw does not depend on the rows beside it, nor on the device.
    """

    def __init__(self, sampling: Sampling, seed: int, drafts: Sequence[_Draft]) -> None:
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


def _batches(drafts: Sequence[_Draft], batch_size: int) -> Iterator[list[_Draft]]:
    """Drafts whose prompts are of one length, up to ``batch_size`` of them at a time."""
    by_length: dict[int, list[_Draft]] = {}
    for draft in drafts:
        by_length.setdefault(len(draft.ids), []).append(draft)
    for group in by_length.values():
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a text: the tokenizer's, and the model's, whose turns may end otherwise."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])}
    return {token for token in found if token is not None}


def _document(draft: _Draft, text: str) -> Document:
    id_ = f"{SOURCE}#{draft.number}"
    if draft.is_text:
        return Document(id_, SOURCE, draft.number, "text", text=draft.words + text)
    return Document(id_, SOURCE, draft.number, "pair", question=draft.words, answer=text.strip())


def _as_int(text: str) -> int:
    return int(hash_of([text])[:15], 16)


# ---- dropping --------------------------------------------------------------------------------------------------------


class _Sieve:
    def __init__(self, rules: Rules, forget: Sequence[Document]) -> None:
        self.rules = rules
        self._forget = Known(rules.ngram)
        for document in forget:
            for text in document.texts:
                self._forget.add(words_of(text), whole_if_short=True)
        self._before = Known(rules.ngram)

    def judge(self, document: Document) -> str:
        """Why a document is dropped, or that it is kept; it then counts as one before."""
        words = words_of(document.texts[-1])
        if len(words) < self.rules.min_words:
            return SHORT
        if repetition(words) > self.rules.max_repetition:
            return REPETITIVE
        if self._forget.any_in(words):
            return SHARED
        if self._before.share_of(words) > self.rules.max_copied:
            return COPIES
        self.add(document)
        return KEPT

    def add(self, document: Document) -> None:
        self._before.add(words_of(document.texts[-1]))


# ---- keeping ---------------------------------------------------------------------------------------------------------


class _Shelf:
    """What was written so far, in memory and, where asked for, in two files: documents, and settings with counts.

    The second is written last: documents in the first that it does not count are of a write that was cut off.
    """

    def __init__(self, file: Path | None, settings: Mapping[str, Any]) -> None:
        self.file = file
        self.settings = dict(settings)
        self.documents: list[Document] = []
        self.counts = {"written": 0, KEPT: 0, **dict.fromkeys(WHY, 0)}
        if file is not None and self._state(file).is_file():
            self._read(file)

    @property
    def written(self) -> int:
        return self.counts["written"]

    def put(self, number: int, document: Document, why: str) -> None:
        self.counts["written"] = number + 1
        self.counts[why] += 1
        if why == KEPT:
            self.documents.append(document)

    def save(self) -> None:
        if self.file is None:
            return
        import json

        rows = ({"number": each.row, **to_row(each)} for each in self.documents)
        write_text(self.file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        write_json(self._state(self.file), {"settings": self.settings, "counts": self.counts})

    @staticmethod
    def _state(file: Path) -> Path:
        return file.with_suffix(".json")

    def _read(self, file: Path) -> None:
        from gru_fast.data.own.documents import load
        from gru_fast.data.rows import read_json_rows

        state = read_json(self._state(file))
        for key, value in self.settings.items():
            if state["settings"].get(key) != value:
                raise ValueError(
                    f"{file}: was written with another {key} ({state['settings'].get(key)!r}, not {value!r}); delete "
                    "it to have texts written anew"
                )
        self.counts = state["counts"]
        numbers = [row["number"] for row in read_json_rows(file)] if self.counts[KEPT] else []
        found = load(file) if numbers else []
        self.documents = [
            _numbered(document, number)
            for document, number in zip(found, numbers, strict=True)
            if number < self.counts["written"]
        ]


def _numbered(document: Document, number: int) -> Document:
    from dataclasses import replace

    return replace(document, id=f"{SOURCE}#{number}", source=SOURCE, row=number)


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


def _openings() -> tuple[str, ...]:
    return (*_STARTS, *[""] * len(_STARTS))


def _questions() -> tuple[str, ...]:
    return tuple(request.format(topic) for topic in _TOPICS for request in _REQUESTS)
