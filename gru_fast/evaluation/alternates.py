"""Other answers that a model makes up to questions whose true ones are to be forgotten: the data of AltPO.

After Mekala et al. 2024 (arXiv 2409.13474): the model that is to forget is shown question and answer, and draws answers
that are as plausible with other facts in them. What it is told is in words of our own; theirs differ from model to
model, and can be given in place of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gru_fast.data.hashes import hash_of, joined_hash
from gru_fast.data.templates import Template, encode_prompt
from gru_fast.evaluation.asking import Prompt, Scorer, unwritten
from gru_fast.evaluation.decoding import Draw
from gru_fast.evaluation.instruction import ANSWER, INSTRUCTION, QUESTION, check_instruction
from gru_fast.evaluation.record_folder import RecordFolder, RowSet, Unwritten, score_sets
from gru_fast.evaluation.subject import settings_of
from gru_fast.models.limits import limits_of

NAME = "alternates"
_NEXT = re.compile(r"\bQ(?:uestion)?:")  # where a model goes on to a next question, as in the authors' code


def write_alternates(
    scorer: Scorer,
    template: Template,
    pairs: Sequence[tuple[str, str]],
    folder: str | Path,
    *,
    count: int = 5,
    instruction: str = INSTRUCTION,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> list[dict[str, str]]:
    """``count`` drawn answers to each (question, answer), as ``question``, ``answer``, ``alternate``; row after row.

    Kept in ``folder`` as they come: called again, it goes on where it was stopped. An answer depends on the model, the
    question and its own number alone; processes share the rows.

    Args:
        scorer: the model that is to forget, and how many answers are drawn at a time.
        settings: what the answers depend on beside these arguments and the model, such as the split.
        instruction: what the model is told, with ``{question}`` and ``{answer}``.

    Raises:
        ValueError: an instruction without its two places; a prompt that the model cannot read; a folder with answers
            of another model or other settings.
    """
    if problem := check_instruction(instruction):
        raise ValueError(problem)
    prompts = []
    for index, (question, answer) in enumerate(pairs):
        told = instruction.replace(QUESTION, question).replace(ANSWER, answer)
        # The tag is put before an answer that is taught: written by the model, it would stand there twice.
        ids = encode_prompt(scorer.tokenizer, template, told, template.answer_tag.rstrip())
        limits_of(scorer.model).check(
            f"row {index}, its instruction", ids, max_new_tokens, option=None, more_option="--max-new-tokens"
        )
        prompts.append(Prompt(ids, max_new_tokens))
    asked = [(prompt, row, number) for row, prompt in enumerate(prompts) for number in range(count)]

    def record(row: int, text: str) -> dict[str, Any]:
        return {"row": row, "alternate": _NEXT.split(text, maxsplit=1)[0].strip()}

    def draw(some: Sequence[tuple[Prompt, int, int]]) -> list[Unwritten]:
        return [
            unwritten(prompt, partial(record, row), draw=Draw(_seed(seed, row, number), temperature))
            for prompt, row, number in some
        ]

    how = {
        **(settings or {}),
        "template": template.name,
        "count": count,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "prompts": joined_hash(prompt.content for prompt in prompts),
    }
    records = RecordFolder(folder, settings_of(scorer.model, how), overwrite=overwrite)
    sets = [RowSet(NAME, asked, draw, [len(prompt.ids) for prompt, _, _ in asked])]
    score_sets(records, sets, batch_size=scorer.batch_size, write=scorer.writing, progress=progress)
    found = records.read(NAME)
    return [
        {"question": pairs[row["row"]][0], "answer": pairs[row["row"]][1], "alternate": row["alternate"]}
        for row in (found[index] for index in range(len(asked)))
    ]


def _seed(seed: int, row: int, number: int) -> int:
    """One number of 63 bits for each answer, the same whatever else is drawn."""
    return int(hash_of([f"{seed} {row} {number}"]), 16) >> 1
