"""What a model is told that makes up other answers (:mod:`gru_fast.evaluation.alternates`): light, for options."""

from __future__ import annotations

QUESTION, ANSWER = "{question}", "{answer}"
INSTRUCTION = (
    "Question: {question}\nAnswer: {answer}\n\n"
    "Make up another answer to this question. It is to be as plausible, put in other words, and every fact in it is to "
    "differ from those of the answer above; what the question says stays as it is. Write the new answer alone."
)


def check_instruction(text: str) -> str:
    """What is wrong with an instruction; nothing if it has both places."""
    missing = [place for place in (QUESTION, ANSWER) if place not in text]
    return f"instruction: expected {QUESTION} and {ANSWER} in it, got no {missing[0]}" if missing else ""
