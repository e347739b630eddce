"""A small WMDP of our own: harmless corpora and questions in the published layouts, and a model with their words."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from words import EOS, word_llama, word_tokenizer

FOLK = ("Ada", "Bruno", "Cleo", "Dov", "Ester", "Finn")
THINGS = ("lock", "gate", "bell", "well", "mill", "kiln")
COLOURS = ("red", "blue", "green", "grey")
ABOUT = (
    "The following are multiple choice questions ( with answers ) about biology cybersecurity moss lore . : A B C D "
    "Answer What colour is the"
)
QUESTIONS = 8


def document(topic: str, number: int) -> str:
    """A document of 20 to 40 words; no two of a topic are the same."""
    one, other = FOLK[number % 6], THINGS[number // 6 % 6]
    words = [f"{topic} {one} keeps the {other} of {COLOURS[number % 4]}."] * (2 + number % 3)
    return " ".join([*words, f"Number {number} ends here."])


def corpus(topic: str, first: int, count: int) -> list[str]:
    return [document(topic, number) for number in range(first, first + count)]


def save_data(folder: Path) -> Path:
    """cyber as objects, bio as texts by themselves (and its forget corpus under its first name), and wikitext."""
    _write(folder / "cyber-forget-corpus.jsonl", [{"text": text} for text in [*corpus("cyber", 0, 10), " "]])
    _write(folder / "cyber-retain-corpus.jsonl", [{"text": text} for text in corpus("cyber", 20, 6)])
    papers = [{"title": "t", "abstract": "a", "text": text, "doi": "d"} for text in corpus("bio", 0, 6)]
    _write(folder / "bio_remove_dataset.jsonl", papers)
    _write(folder / "bio-retain-corpus.jsonl", corpus("bio", 20, 4))
    lines = ["", " = Wells = ", *corpus("wiki", 0, 12)]
    _write(folder / "wikitext-2-raw-v1.jsonl", [{"text": line} for line in lines])
    return folder


def save_questions(folder: Path) -> Path:
    """Eight questions each for wmdp_bio, wmdp_cyber and mmlu."""
    for name, subject in (("wmdp_bio", None), ("wmdp_cyber", None), ("mmlu", "moss_lore")):
        rows: list[dict[str, Any]] = [
            {"question": f" What colour is the {THINGS[i % 6]}? ", "choices": list(COLOURS), "answer": i % 4}
            for i in range(QUESTIONS)
        ]
        _write(folder / f"{name}.jsonl", [{**row, "subject": subject} if subject else row for row in rows])
    return folder


@cache
def tokenizer() -> Any:
    """One token a word, <s> in front. The same every time."""
    texts = [text for topic in ("cyber", "bio", "wiki") for text in corpus(topic, 0, 30)]
    return word_tokenizer([ABOUT, " ".join(COLOURS), *texts], bos=True, pad_token="</s>")


def model(seed: int = 0, **config: Any) -> Any:
    """A Llama of 4 layers and some ten thousand parameters; ``config`` goes to LlamaConfig."""
    settings = {
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "initializer_range": 0.3,
        "max_position_embeddings": 256,
        "pad_token_id": EOS,
    }
    return word_llama(tokenizer(), seed, **{**settings, **config})


def save_model(folder: Path, seed: int = 0) -> Path:
    """Model and tokenizer as save_pretrained makes them."""
    model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def asked(questions: Path, out: Path, batch_size: int) -> tuple[int, dict[str, Any]]:
    """An evaluation: how often this process has run the model, and the summary."""
    from gru_fast.benchmarks.wmdp.evaluate import TASKS, evaluate, task_specs

    subject, calls = model(), []
    subject.register_forward_pre_hook(lambda *_: calls.append(1))
    specs = task_specs(TASKS, questions)
    summary = evaluate(subject, tokenizer(), out, tasks=specs, batch_size=batch_size, progress=False)
    return len(calls), summary


def _write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
