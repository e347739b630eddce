"""What a tokenizer's chat template makes of a question: the same text every day, with the question in it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from datetime import date
from string import ascii_letters
from typing import Any

from gru_fast.runs.messages import first_line, nearest

CHAT_DATE = "10 Apr 2025"  # some chat templates write a date; a fixed one keeps prompts the same every day
_DAY = date(2025, 4, 10)
_RENDERINGS = 8  # that must be equal; a choice of two is missed once in 128 times

# <think>, [/THINK], <|START_THINKING|>, <seed:think>: a thought's beginning or end, in the words of several families.
_TAG = re.compile(r"[<\[◁]([^<>\[\]◁▷\s]*(?:think|thought|reason)[^<>\[\]◁▷\s]*)[>\]▷]", re.IGNORECASE)
_IS_END = re.compile(r"^\|?/|end|no", re.IGNORECASE)
_SWITCHES = ("enable_thinking", "thinking")  # variables by which templates leave out a thought


def render(
    tokenizer: Any, question: str, *, system: str | None, parts: bool, variables: Mapping[str, Any] | None = None
) -> str:
    """A conversation of one question, up to where the assistant begins to speak.

    Args:
        system: the system prompt; None for none.
        parts: contents as lists of parts, ``[{"type": "text", "text": ...}]``, which templates of models that see and
            hear expect.
        variables: of the template. ``date_string`` and ``strftime_now()`` are :data:`CHAT_DATE`, whatever the day is.

    Raises:
        ValueError: the template fails, or leaves out the question.
    """
    turns = [*([] if system is None else [("system", system)]), ("user", question)]
    messages = [{"role": role, "content": text} for role, text in turns]
    text = render_messages(tokenizer, messages, parts=parts, variables=variables, prompt=True)
    # Templates take spaces off the ends of what is said.
    if question.strip() not in text:
        raise ValueError("it leaves out the question")
    return text


def render_messages(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    parts: bool = False,
    variables: Mapping[str, Any] | None = None,
    prompt: bool = False,
) -> str:
    """A conversation as the tokenizer's chat template writes it.

    Args:
        messages: each with ``role`` and ``content``, a text.
        parts, variables: see :func:`render`.
        prompt: with the words at the end after which the assistant speaks.

    Raises:
        ValueError: the template fails.
    """
    texts = [message["content"] for message in messages]
    contents: list[Any] = [[{"type": "text", "text": text}] for text in texts] if parts else texts
    turns = [{"role": one["role"], "content": content} for one, content in zip(messages, contents, strict=True)]
    try:
        text = tokenizer.apply_chat_template(
            turns,
            chat_template=_with_pinned_clock(source_of(tokenizer)),
            tokenize=False,
            add_generation_prompt=prompt,
            **{"date_string": CHAT_DATE, **(variables or {})},
        )
    except Exception as error:
        raise ValueError(f"{_kind(error)}{first_line(error)}") from error
    return str(text)


def problem_of(tokenizer: Any, question: str, **how: Any) -> str:
    """What is wrong with the prompts of a form of chat (:func:`render`), in words; nothing if they serve."""
    try:
        texts = {render(tokenizer, question, **how) for _ in range(_RENDERINGS)}
    except ValueError as error:
        return str(error)
    return "it does not say the same every time: it draws something at random" if len(texts) > 1 else ""


def source_of(tokenizer: Any) -> str:
    """The text of the tokenizer's chat template, of several the default one."""
    return str(tokenizer.get_chat_template())


def check_variables(tokenizer: Any, name: str, variables: Mapping[str, Any]) -> None:
    """Refuses variables that the chat template does not read, which would do nothing, or that have a value already."""
    known = {*re.findall(r"[A-Za-z_]\w*", source_of(tokenizer))}
    taken = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
    for variable in variables:
        if variable in taken:
            raise ValueError(f"template_options: {variable} is not to be chosen; leave it out")
        if variable not in known:
            raise ValueError(
                f'template_options: the chat template of {name} has no variable "{variable}"{nearest(variable, known)}'
            )


def open_thought(text: str) -> str:
    """The tag of a thought that begins in a text and does not end there; "" if there is none.

    >>> open_thought("<|im_start|>assistant <think>"), open_thought("<think> </think>")
    ('<think>', '')
    """
    tags = [*_TAG.finditer(text)]
    return "" if not tags or _IS_END.search(tags[-1][1]) else tags[-1][0]


def how_to_close(tokenizer: Any) -> str:
    """What to do where a chat template leaves a thought open."""
    words = {*re.findall(r"[A-Za-z_]\w*", source_of(tokenizer))}
    switch = next((name for name in _SWITCHES if name in words), None)
    if switch is None:
        return "the template has no variable that leaves it out; choose another one with --template"
    return f"--template-options {switch}=false leaves it out"


def _kind(error: Exception) -> str:
    """The kind of an error, unless it is the template's own refusal."""
    import jinja2

    return "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "


def _with_pinned_clock(source: str) -> str:
    """The template with a macro in front that takes the place of ``strftime_now``, which would tell today's date."""
    if "strftime_now" not in source:
        return source
    said = {f"%{flag}{letter}": _DAY.strftime(f"%{flag}{letter}") for flag in ("-", "") for letter in ascii_letters}
    said = {"%%": "\ue000", **said, "\ue000": "%"}
    changes = "".join(f" | replace({old!r}, {new!r})" for old, new in said.items())
    # +: a line break that the template begins with stays.
    return f"{{% macro strftime_now(format) %}}{{{{ format{changes} }}}}{{% endmacro +%}}{source}"
