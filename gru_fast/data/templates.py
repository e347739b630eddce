"""How a question becomes a prompt, and a question with its answer a training row."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gru_fast.data.chat import check_variables, how_to_close, open_thought, problem_of, render
from gru_fast.data.sequences import IGNORE_INDEX
from gru_fast.runs.messages import nearest

if TYPE_CHECKING:
    from gru_fast.data.sequences import Encoded


CHAT_SYSTEM = "You are a helpful assistant."
_PROBE = "Which river flows through Ljubljana?"  # in no template's own words


@dataclass(frozen=True)
class Template:
    """Words around a question: ``question_start + question + question_end``, then ``answer_tag + answer``, then EOS.

    Args:
        name: in ``--template`` and in :data:`TEMPLATES`.
        question_start, question_end: around the question. Not scored.
        answer_tag: before the answer. Scored with it, and left for the model to write when it generates.
        chat: the prompt is what the tokenizer's own chat template makes of the question, up to where the assistant
            begins to speak; start and end are not used.
        system: system prompt of a chat; None for none.
        special_tokens: whether the tokenizer adds its own (BOS). False where the text has what it needs.
        parts: the messages of a chat hold lists of parts, not texts.
        options: variables of the chat template, such as ``{"enable_thinking": False}``.
        models: regular expression found in the names of the models it belongs to, lower case.
    """

    name: str
    question_start: str = ""
    question_end: str = ""
    answer_tag: str = ""
    chat: bool = False
    system: str | None = None
    special_tokens: bool = True
    parts: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    models: str = field(default="", repr=False, compare=False)

    def prompt(self, tokenizer: Any, question: str) -> str:
        """The text that is not scored, and after which a model generates.

        Raises:
            ValueError: the chat template fails for this question, or leaves it out.
        """
        if not self.chat:
            return f"{self.question_start}{question}{self.question_end}"
        try:
            return render(tokenizer, question, **self.form)
        except ValueError as error:
            what = f"the chat template of {_name(tokenizer)} fails for the question {_shorten(question)}"
            raise ValueError(f"template: {what}: {error}") from error

    @property
    def form(self) -> dict[str, Any]:
        """How a chat is put, for :func:`gru_fast.data.chat.render`."""
        return {"system": self.system, "parts": self.parts, "variables": self.options}


# phi, llama2-chat: the original TOFU code's, to the letter. zephyr: its own chat format with the unified framework's
# system prompt, spelled out so that a tokenizer that came without its chat template serves too.
TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template("chat", chat=True, system=CHAT_SYSTEM, special_tokens=False),
        Template("llama2-chat", "[INST] ", " [/INST]", models=r"llama-?2.*chat|tofu_ft_llama2"),
        Template("phi", "Question: ", "\n", "Answer: ", models=r"(^|[^a-z])phi[-_]?\d"),
        Template("plain", "Question: ", "\n", "Answer: "),
        Template(
            "zephyr",
            f"<|system|>\n{CHAT_SYSTEM}</s>\n<|user|>\n",
            "</s>\n<|assistant|>\n",
            special_tokens=False,
            models="zephyr",
        ),
    )
}


def resolve_template(name: str | None, tokenizer: Any, options: Mapping[str, Any] | None = None) -> Template:
    """The template called ``name``; None: "chat" if the tokenizer has a chat template, else by its name, else "plain".

    The name of a tokenizer is a path after it has been saved, while its chat template stays with it; so the chat
    template comes first, and a run that must not depend on either names its template.

    A chat template that refuses a system prompt (Gemma's) gets none. One that reads messages as lists of parts, and
    would leave out a question that is a text, gets parts. Where the prompt ends in an open ``<think>``, that is warned
    of: the answer would be taught and scored as part of a thought.

    Args:
        options: variables of the chat template.

    Raises:
        ValueError: an unknown name, with the known; "chat" for a tokenizer without chat template, or with one that
            fails, leaves out the question or draws at random; options that the template does not have.
    """
    if name is None:
        name = _guess(tokenizer)
    if name not in TEMPLATES:
        raise ValueError(f'template: expected one of {", ".join(TEMPLATES)}, got "{name}"{nearest(name, [*TEMPLATES])}')
    template = TEMPLATES[name]
    if template.chat:
        return _fit_chat(replace(template, options=dict(options or {})), tokenizer)
    if options:
        raise ValueError(f'template_options: "{name}" has no {", ".join(options)}; they are of chat templates alone')
    return template


def encode(tokenizer: Any, template: Template, question: str, answer: str, max_length: int) -> Encoded:
    """One row; see :func:`encode_rows`."""
    return encode_rows(tokenizer, template, [(question, answer)], max_length)[0]


def encode_rows(tokenizer: Any, template: Template, pairs: Sequence[tuple[str, str]], max_length: int) -> list[Encoded]:
    """Rows of (question, answer) as ids and labels of equal length, no padding, in the original TOFU code's manner.

    ``input_ids``: tokens of ``prompt + answer_tag + answer``, tokenized as one text, then EOS; cut to ``max_length``
    tokens, so that a text of ``max_length`` tokens or more has no EOS.
    ``labels``: the ids, with the first n replaced by -100, n the number of tokens of the prompt tokenized by itself,
    BOS included. So the answer tag, the answer and EOS are scored, and every mean over tokens counts them. Where a
    tokenizer joins the end of the prompt with the beginning of the answer, n counts as if it did not.

    In the original code EOS is a label at a position whose input is masked. Nothing that comes after it is scored, so
    here it is an input like any other: the log-probabilities are the same. The unified framework masks the answer tag
    as well, and scores what its chat templates write after the answer; here that is EOS alone, for every template.

    Raises:
        ValueError: a prompt that leaves no token to score within ``max_length``, with the index of the pair; a
            tokenizer without EOS.
    """
    eos = _eos_token_id(tokenizer)
    prompts = [template.prompt(tokenizer, question) for question, _ in pairs]
    texts = [f"{prompt}{template.answer_tag}{answer}" for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
    prompt_ids = _token_ids(tokenizer, template, prompts)
    text_ids = _token_ids(tokenizer, template, texts)
    rows: list[Encoded] = []
    for index, (prompt, text) in enumerate(zip(prompt_ids, text_ids, strict=True)):
        ids = [*text, eos][:max_length]
        if len(prompt) >= len(ids):
            raise ValueError(
                f"max_length: row {index} has {len(prompt)} tokens before its answer, which leaves none of "
                f"{max_length} to score; raise max_length or leave out the row ({_shorten(pairs[index][0])})"
            )
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * len(prompt) + ids[len(prompt) :]})
    return rows


def encode_prompt(tokenizer: Any, template: Template, question: str, begun: str = "") -> list[int]:
    """Token ids after which a model generates: the prompt, with BOS if the tokenizer adds one; no answer tag, no EOS.

    As in the original code, the model writes the answer tag itself (the unified framework gives it). ``begun``: how its
    answer begins, which it is given.
    """
    return _token_ids(tokenizer, template, [template.prompt(tokenizer, question) + begun])[0]


def ensure_pad_token(tokenizer: Any) -> int:
    """Id of the padding token. A tokenizer without one is given EOS for it (modified in place).

    Padding is told from tokens by length everywhere (see :class:`gru_fast.data.pairs.SequenceCollator`), so EOS may
    serve as both.
    """
    if tokenizer.pad_token_id is None:
        _eos_token_id(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer.pad_token_id


def _guess(tokenizer: Any) -> str:
    if getattr(tokenizer, "chat_template", None):
        return "chat"
    model = str(getattr(tokenizer, "name_or_path", "")).lower()
    for template in TEMPLATES.values():
        if template.models and re.search(template.models, model):
            return template.name
    return "plain"


def _fit_chat(template: Template, tokenizer: Any) -> Template:
    """The form of chat that this tokenizer's template accepts: texts or parts, with the system prompt or without."""
    if not getattr(tokenizer, "chat_template", None):
        others = ", ".join(name for name, other in TEMPLATES.items() if not other.chat)
        raise ValueError(
            f'template: "{template.name}" needs a tokenizer with a chat template, and {_name(tokenizer)} has none; '
            f"choose one of {others}"
        )
    check_variables(tokenizer, _name(tokenizer), template.options)
    forms = [
        replace(template, parts=parts, system=system) for parts in (False, True) for system in (template.system, None)
    ]
    fitting = next((form for form in forms if not problem_of(tokenizer, _PROBE, **form.form)), None)
    if fitting is None:
        # That of the simplest form, a text without system prompt: the others have more that can be refused.
        problem = problem_of(tokenizer, _PROBE, **forms[1].form)
        raise ValueError(f"template: the chat template of {_name(tokenizer)} fails: {problem}")
    _warn_of_thought(fitting, tokenizer)
    return fitting


def _warn_of_thought(template: Template, tokenizer: Any) -> None:
    tag = open_thought(template.prompt(tokenizer, _PROBE).rpartition(_PROBE)[2])
    if tag:
        warnings.warn(
            f"template: the chat template of {_name(tokenizer)} ends in an open {tag}: answers are taught, scored and "
            f"written inside a thought; {how_to_close(tokenizer)}",
            stacklevel=4,
        )


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _token_ids(tokenizer: Any, template: Template, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with the special tokens in front that the tokenizer adds, without an EOS that it adds."""
    if not texts:
        return []
    # verbose: no warning of texts longer than the model's context; they are cut afterwards.
    rows = tokenizer(
        list(texts), add_special_tokens=template.special_tokens, return_attention_mask=False, verbose=False
    )["input_ids"]
    eos = tokenizer.eos_token_id
    ends = template.special_tokens and eos is not None
    return [list(row[:-1] if ends and row and row[-1] == eos else row) for row in rows]


def _eos_token_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(f'tokenizer: {_name(tokenizer)} has no EOS token; set one (tokenizer.eos_token = "</s>")')
    return tokenizer.eos_token_id


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
