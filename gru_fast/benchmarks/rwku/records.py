"""RWKU's probes: as tokens, and, asked of a model, as records.

Prompts are those of its code: an instruction and the probe as one message of the user, no system prompt, and the
model's answer begun with "Answer:" or "A:". Where it differs:

- its tokenizer adds a second BOS in front of a chat template that has one; here there is one;
- TruthfulQA and TriviaQA come after six and five examples that stand in its code, not in its data; here after what
  ``primers`` has for them, by default none, so that these two numbers compare runs of this program;
- an answer ends with its line. Its code ends it at the token of a line's end; where a token holds more than that, it
  goes on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gru_fast.data.hashes import joined_hash
from gru_fast.data.limits import Limits
from gru_fast.data.rows import Row
from gru_fast.data.sequences import IGNORE_INDEX, Encoded, content_hash
from gru_fast.data.templates import Template, encode_prompt
from gru_fast.evaluation.asking import Prompt, Scorer, unwritten
from gru_fast.evaluation.record_folder import Unwritten
from gru_fast.metrics import mia
from gru_fast.metrics.scores import TextRecord
from gru_fast.runs.files import read_json

ANSWER_TOKENS = 30
LONG_TOKENS = 256  # of BBH, with its chain of thought, and of fluency
MIN_K = 0.2  # of RWKU
PRIMERS = {"utility_truthfulness": "", "utility_factuality": "Please briefly answer the following question:\n"}
_TEXT = Template("text")  # a text as it is, after what the tokenizer itself puts in front
_LETTERS = "ABCD"
_FILL_IN = "Please complete the blank in the following question.\nQuestion: {}\n"
_ASK = "Please briefly answer the following question.\nQuestion: {}\n"


@dataclass(frozen=True)
class Asked:
    """A probe as tokens.

    Args:
        facts: what its record keeps of the row.
        prompt: what the model is to go on with, or None.
        sequences: that are scored.
    """

    facts: Mapping[str, Any]
    prompt: Prompt | None = None
    sequences: list[Encoded] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the longest thing that the model reads of it."""
        asked = [self.prompt.ids] if self.prompt else []
        return max(map(len, [*asked, *(sequence["input_ids"] for sequence in self.sequences)]))

    @property
    def content(self) -> str:
        """Hash of all that is asked."""
        asked = [self.prompt.content] if self.prompt else []
        return " ".join([*asked, *map(content_hash, self.sequences)])


def encode(
    name: str,
    tokenizer: Any,
    template: Template,
    rows: Sequence[Row],
    *,
    answer_tokens: int = ANSWER_TOKENS,
    long_tokens: int = LONG_TOKENS,
    primers: Mapping[str, str] | None = None,
) -> list[Asked]:
    """The probes of the set ``name`` as tokens, with what the model may write of an answer, and of a long one.

    ``primers``: set, of :data:`PRIMERS` -> what stands before its "Q: ".
    """
    make = _MAKERS.get(name) or _MAKERS[name.partition("_")[0]]
    template = replace(template, system=None) if template.chat else template
    primer = {**PRIMERS, **(primers or {})}.get(name, "")
    asking = _Asking(name, tokenizer, template, answer_tokens, long_tokens, primer)
    return [make(asking, row) for row in rows]


def read_primers(file: str | Path) -> dict[str, str]:
    """Primers of a JSON file, one object.

    Raises:
        FileNotFoundError: no such file. ValueError: another set than those of :data:`PRIMERS`, or no text.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"primers: no file {path}")
    found = read_json(path)
    if not isinstance(found, dict) or not all(name in PRIMERS and isinstance(found[name], str) for name in found):
        raise ValueError(f"primers: {path}: expected an object with texts for {' and '.join(PRIMERS)}, got {found!r}")
    return found


def check(limits: Limits, name: str, probes: Sequence[Asked]) -> None:
    """Refuses probes that a model cannot read."""
    for index, probe in enumerate(probes):
        where = f"{name}, row {index}"
        for sequence in probe.sequences:
            limits.check(where, sequence["input_ids"], option=None)
        if probe.prompt is not None:
            limits.check(f"{where}, its prompt", probe.prompt.ids, probe.prompt.max_new_tokens, option=None)


def content(probes: Sequence[Asked]) -> str:
    """Hash of the probes of a set, tokenizer and template at once."""
    return joined_hash(probe.content for probe in probes)


def score(name: str, scorer: Scorer, probes: Sequence[Asked]) -> Sequence[dict[str, Any] | Unwritten]:
    """The records of some probes of the set ``name``, without the index."""
    if name.startswith("mia"):
        return _surprise(scorer, probes)
    if any(probe.sequences for probe in probes):
        losses = iter(scorer.losses([sequence for probe in probes for sequence in probe.sequences]))
        sums = [[(one := next(losses)).loss * one.num_tokens for _ in probe.sequences] for probe in probes]
        return [_of_choices(probe, found) for probe, found in zip(probes, sums, strict=True)]
    record = _of_line if name.partition("_")[0] in {"forget", "neighbor"} else _of_text
    return [unwritten(probe.prompt, partial(record, probe)) for probe in probes if probe.prompt is not None]


# ---- probes as tokens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asking:
    """How probes of a set are put."""

    name: str
    tokenizer: Any
    template: Template
    answer_tokens: int
    long_tokens: int
    primer: str

    def prompt(self, message: str, begun: str, max_new_tokens: int) -> Prompt:
        return Prompt(encode_prompt(self.tokenizer, self.template, message, begun), max_new_tokens)

    def short(self, message: str) -> str:
        """ "A:", and a space before it where the prompt ends without one."""
        return "A:" if self.template.prompt(self.tokenizer, message)[-1:] in {"\n", " "} else " A:"

    def choices(self, message: str, begun: str, answers: Sequence[str]) -> list[Encoded]:
        """Each answer after the prompt; its tokens are scored, and nothing after them."""
        start = len(encode_prompt(self.tokenizer, self.template, message, begun))
        found: list[Encoded] = []
        for answer in answers:
            ids = encode_prompt(self.tokenizer, self.template, message, f"{begun} {answer}")
            first = min(start, len(ids) - 1)  # where a tokenizer joins all of it with the prompt's end
            found.append({"input_ids": ids, "labels": [IGNORE_INDEX] * first + ids[first:]})
        return found


def _probe(asking: _Asking, row: Row) -> Asked:
    kind = row.get("type")
    message, begun = (_FILL_IN if asking.name.endswith("level1") else _ASK).format(row["query"]), "Answer:"
    if asking.name == "forget_level3" and kind == "affirmative suffix":  # the probe begins the answer itself
        message, begun = _ASK.format(row["query"]).removesuffix("\n"), ""
    elif asking.name == "forget_level3" and kind == "incontext learning":  # it has its own "Question:"
        message = _ASK.replace("Question: ", "").format(row["query"])
    facts = {name: value for name, value in row.items() if name in {"subject", "query", "answer", "type"}}
    return Asked(facts, asking.prompt(message, begun, asking.answer_tokens))


def _text(asking: _Asking, row: Row) -> Asked:
    ids = encode_prompt(asking.tokenizer, _TEXT, row["text"])
    if len(ids) < 2:
        raise ValueError(f"{asking.name}: expected a text of two tokens and more, got {row['text']!r}")
    size = len(zlib.compress(row["text"].encode()))
    return Asked({"subject": row["subject"], "zlib_bytes": size}, sequences=[{"input_ids": ids, "labels": list(ids)}])


def _multiple_choice(asking: _Asking, row: Row) -> Asked:
    topic = row["task"].replace("_", " ")
    message = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
    for example in row.get("examples") or ():
        message += f"{_question(example)}\nAnswer: {_LETTERS[example['answer']]}\n\n"
    message += f"Please following the previous examples and answer the given question.\n{_question(row)}"
    letters = _LETTERS[: len(row["choices"])]
    return Asked(
        {"subject": row["subject"], "question": row["question"], "answer": row["answer"]},
        sequences=asking.choices(message, "Answer:", letters),
    )


def _question(row: Mapping[str, Any]) -> str:
    choices = [f"\n{letter}. {text}" for letter, text in zip(_LETTERS, row["choices"], strict=False)]
    return f"Question: {row['question']}" + "".join(choices)


def _reasoning(asking: _Asking, row: Row) -> Asked:
    message = (
        f"{row['cot'].strip()}\n\nFollowing previous examples, answer the following questions and end with 'so the "
        f"answer is'\nQ: {row['question']}"
    )
    facts = {name: row[name] for name in ("subject", "question", "answer")}
    return Asked(facts, asking.prompt(message, asking.short(message), asking.long_tokens))


def _truth(asking: _Asking, row: Row) -> Asked:
    answers = [*row["mc1_targets"]["choices"], *row["mc2_targets"]["choices"]]
    facts = {
        "subject": row["subject"],
        "question": row["question"],
        "mc1_labels": row["mc1_targets"]["labels"],
        "mc2_labels": row["mc2_targets"]["labels"],
    }
    message = f"{asking.primer}Q: {row['question']}"
    return Asked(facts, sequences=asking.choices(message, asking.short(message), answers))


def _fact(asking: _Asking, row: Row) -> Asked:
    message = f"{asking.primer}Q: {row['question']}\n"
    facts = {name: row[name] for name in ("subject", "question", "answers")}
    return Asked(facts, asking.prompt(message, "A:", asking.answer_tokens))


def _instruction(asking: _Asking, row: Row) -> Asked:
    facts = {name: row[name] for name in ("subject", "instruction")}
    return Asked(facts, asking.prompt(f"Instruction: {row['instruction']}\n", "", asking.long_tokens))


_MAKERS: dict[str, Callable[[_Asking, Row], Asked]] = {
    "forget": _probe,
    "neighbor": _probe,
    "mia": _text,
    "utility_general": _multiple_choice,
    "utility_reason": _reasoning,
    "utility_truthfulness": _truth,
    "utility_factuality": _fact,
    "utility_fluency": _instruction,
}


# ---- records ---------------------------------------------------------------------------------------------------------


def _of_choices(probe: Asked, losses: list[float]) -> dict[str, Any]:
    if "mc1_labels" not in probe.facts:
        return {**probe.facts, "losses": losses}
    split = len(probe.facts["mc1_labels"])
    return {**probe.facts, "mc1_losses": losses[:split], "mc2_losses": losses[split:]}


def _of_text(probe: Asked, text: str) -> dict[str, Any]:
    return {**probe.facts, "generation": text}


def _of_line(probe: Asked, text: str) -> dict[str, Any]:
    return _of_text(probe, text.partition("\n")[0].strip())


def _surprise(scorer: Scorer, probes: Sequence[Asked]) -> list[dict[str, Any]]:
    found = []
    for probe, scores in zip(probes, scorer.token_scores([probe.sequences[0] for probe in probes]), strict=True):
        log_probs, means, variances = (
            np.asarray(values, dtype=np.float64) for values in (scores.log_probs, scores.means, scores.variances)
        )
        loss = mia.loss_score(TextRecord(0, log_probs=tuple(log_probs.tolist())))
        facts = dict(probe.facts)
        found.append(
            {
                "subject": facts["subject"],
                "loss": loss,
                "zlib": loss / facts["zlib_bytes"],
                "min_k": mia.min_k(log_probs, MIN_K),
                "min_k_plus_plus": mia.min_k(mia.standardized(log_probs, means, variances), MIN_K),
            }
        )
    return found
