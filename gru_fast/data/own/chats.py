"""Conversations as tokens, with what the assistant says scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gru_fast.data.chat import render_messages
from gru_fast.data.sequences import IGNORE_INDEX, Encoded
from gru_fast.data.templates import Template, encode_rows

Messages = Sequence[Mapping[str, Any]]


def encode_chat(tokenizer: Any, template: Template, messages: Messages) -> Encoded:
    """A whole conversation as the tokenizer's chat template writes it; labels on the turns that are ``scored``.

    A turn is scored from the first letter of what is said to the sign that ends it; the words around that name who
    speaks, and a line break behind the sign, are not. No system prompt is added but the one that the template itself
    has for a conversation without. What comes after the last scored turn is left out.

    With a template of prompts (``--template phi``), a conversation of one question and one answer is that pair.

    Raises:
        ValueError: no chat template and more than a question and an answer; a template that fails, or that writes the
            beginning of a conversation otherwise than the conversation.
    """
    if not template.chat:
        return _as_pair(tokenizer, template, messages)
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    how: dict[str, Any] = {"parts": template.parts, "variables": template.options}
    whole = render_messages(tokenizer, turns, **how)
    ids = _ids(tokenizer, whole)
    labels, end = [IGNORE_INDEX] * len(ids), 0
    for index, message in enumerate(messages):
        if not message["scored"]:
            continue
        start, stop = _span(tokenizer, turns, index, whole, how)
        first, last = len(_ids(tokenizer, whole[:start])), len(_ids(tokenizer, whole[:stop]))
        labels[first:last] = ids[first:last]
        end = last
    return {"input_ids": ids[:end], "labels": labels[:end]}


def _span(
    tokenizer: Any, turns: list[dict[str, Any]], index: int, whole: str, how: Mapping[str, Any]
) -> tuple[int, int]:
    """Where in the text the words of a turn begin, and where the turn ends."""
    before = render_messages(tokenizer, turns[:index], **how) if index else ""
    until = render_messages(tokenizer, turns[: index + 1], **how)
    if not (whole.startswith(until) and until.startswith(before)):
        raise ValueError(
            f"message {index}: the chat template writes the beginning of this conversation otherwise than the whole "
            "(it may take thoughts out of earlier turns), so that its turns cannot be told apart; give each question "
            "and answer as a row of its own"
        )
    # Templates take spaces off the ends of what is said.
    words = turns[index]["content"].strip()
    start = until.find(words, len(before))
    if start < 0:
        raise ValueError(f"message {index}: the chat template changes what is said; give the text as it writes it")
    return start, len(until.rstrip())


def _as_pair(tokenizer: Any, template: Template, messages: Messages) -> Encoded:
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"]:
        raise ValueError(
            f'template: "{template.name}" is for a question and its answer, got turns of {", ".join(roles)}; use a '
            "model whose tokenizer has a chat template (--template chat), or give rows of question and answer"
        )
    pair = (messages[0]["content"], messages[1]["content"])
    return encode_rows(tokenizer, template, [pair], 2**62)[0]


def _ids(tokenizer: Any, text: str) -> list[int]:
    found = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return list(found)
