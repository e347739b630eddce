"""Generations: greedy, row by row, whatever the batch and the model's own generation config."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sharp
import torch
from sharp import END, Words, sequences
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from gru_fast.evaluation import generation
from gru_fast.evaluation.decoding import Draw
from gru_fast.evaluation.generation import Asked, Change, generate, written


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return sharp.model()


@torch.no_grad()
def greedy_by_hand(model: LlamaForCausalLM, prompt: list[int], most: int) -> list[int]:
    ids = list(prompt)
    for _ in range(most):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == END:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_generation_is_greedy_row_by_row_each_with_its_limit(model: LlamaForCausalLM, batch_size: int) -> None:
    prompts = [row["input_ids"][:-1] for row in sequences()]
    limits = [4, 12, 0, 7, 1, 3]
    found = generate(model, Words(), prompts, limits, batch_size=batch_size)
    for prompt, limit, text in zip(prompts, limits, found, strict=True):
        assert text == " ".join(map(str, greedy_by_hand(model, prompt, limit)))


def test_one_limit_for_all_and_no_prompts(model: LlamaForCausalLM) -> None:
    prompts = [[3, 4], [5]]
    assert generate(model, Words(), prompts, 5, batch_size=2) == generate(model, Words(), prompts, [5, 5], batch_size=2)
    assert generate(model, Words(), prompts, 0, batch_size=2) == ["", ""]
    assert generate(model, Words(), [], 5, batch_size=2) == []


def test_the_end_tokens_of_the_model_end_a_text_too(model: LlamaForCausalLM) -> None:
    prompt = [3, 4, 5]
    free = greedy_by_hand(model, prompt, 6)
    assert len(free) > 2
    held, stop = model.generation_config, free[2]
    model.generation_config = GenerationConfig(eos_token_id=[END, stop])
    try:
        expected = free[: free.index(stop)]
        assert generate(model, Words(), [prompt], 6, batch_size=1) == [" ".join(map(str, expected))]
    finally:
        model.generation_config = held


def test_penalties_and_sampling_of_the_models_config_do_not_count(model: LlamaForCausalLM) -> None:
    prompts = [[3, 4], [5, 6, 7, 8]]
    expected = generate(model, Words(), prompts, 8, batch_size=2)
    held = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, top_p=0.9, repetition_penalty=9.0, no_repeat_ngram_size=1, max_length=3
    )
    try:
        assert generate(model, Words(), prompts, 8, batch_size=2) == expected
    finally:
        model.generation_config = held


def test_a_tokenizer_without_padding_or_end(model: LlamaForCausalLM) -> None:
    words = Words()
    words.pad_token_id = None
    assert generate(model, words, [[3], [4, 5]], 3, batch_size=2) == generate(
        model, Words(), [[3], [4, 5]], 3, batch_size=2
    )


def test_wrong_prompts_are_named(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\]: expected at least one token"):
        generate(model, Words(), [[3], []], 3, batch_size=2)
    with pytest.raises(ValueError, match="max_new_tokens: expected one number or 2, got 1"):
        generate(model, Words(), [[3], [4]], [3], batch_size=2)


# ---- families --------------------------------------------------------------------------------------------------------

_SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 0, "eos_token_id": END,
}  # fmt: skip
# Model type -> its settings, and what is said of a batch; None: any rows can share one.
FAMILIES: dict[str, tuple[dict[str, Any], str | None]] = {
    "rwkv": ({"attention_hidden_size": 32, "context_length": 64}, "one at a time"),  # its cache mixes the rows
    "minimax": (
        {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 2, "head_dim": 8},
        "only rows of equal length",
    ),
    "xlstm": ({"hidden_size": 128, "num_heads": 4}, "only rows of equal length"),
    "mamba": ({}, None),
    "qwen3_next": (
        {
            "layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 2, "head_dim": 8,
            "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        },
        None,
    ),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, None),
    "opt": ({"ffn_dim": 32, "word_embed_proj_dim": 32}, None),
}  # fmt: skip


def family(name: str) -> Any:
    """A tiny model of it, with weights that make its answers depend on all of the prompt."""
    kind = CONFIG_MAPPING[name]
    known = kind().to_dict()
    torch.manual_seed(0)
    config = kind(**{key: value for key, value in _SIZES.items() if key in known} | FAMILIES[name][0])
    model = AutoModelForCausalLM.from_config(config)
    for param in model.parameters():
        if param.ndim > 1:
            param.data.mul_(10.0)
    return model.float()


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_do_not_depend_on_the_batch(name: str) -> None:
    """Held against the model without its cache, one prompt at a time."""
    model, expected = family(name), FAMILIES[name][1]
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 40, (n,), generator=draw).tolist() for n in (5, 21, 9, 5, 14, 9, 12, 5)]
    model.eval()
    by_hand = [" ".join(map(str, greedy_by_hand(model, prompt, 8))) for prompt in prompts]
    assert len(set(by_hand)) > 4
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for batch_size in (1, 3, 8):
            assert generate(model, Words(), prompts, 8, batch_size=batch_size) == by_hand, batch_size
    # rwkv is run row by row; what is kept of a recurrent model does not say how much it has read.
    of_others = {
        "rwkv": None,
        "qwen3_next": Change.LEAVE,
        **dict.fromkeys(("minimax", "xlstm", "mamba"), Change.NOTHING),
    }
    assert generation._changes.get(model) == of_others.get(name, Change.JOIN)
    messages = [str(each.message) for each in said if "in one batch" in str(each.message)]
    assert len(messages) == (expected is not None)
    for message in messages:
        assert f"{type(model).__name__}: rows of up to 21 tokens that are continued" in message
        assert str(expected) in message


@contextmanager
def sizes_of(model: LlamaForCausalLM) -> Iterator[list[int]]:
    """How many rows each forward pass of the model has."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, inputs: sizes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    try:
        yield sizes
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("change", "expected"),
    [(Change.NOTHING, [8] * 12), (Change.LEAVE, [8] * 3 + [6] * 4 + [4] * 5), (Change.JOIN, [8] + [7] * 4 + [5] * 7)],
)
def test_rows_that_have_ended_leave_the_batch(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, change: Change, expected: list[int]
) -> None:
    """By hand: of 8 rows two are done after 3 tokens, of 6 two after 7, and four go on to their limit of 12.

    Where rows may join, all are stopped after the first token: one is done, and of 7 two after 5 tokens.
    """
    prompts = [[3, 4], [5, 6, 7], [8], [9, 10], [11], [12, 13], [14], [15, 16, 17]]
    limits = [1, 12, 3, 12, 5, 12, 12, 7]
    generate(model, Words(), prompts, limits, batch_size=8)  # the trials
    monkeypatch.setitem(generation._changes, model, change)
    with sizes_of(model) as sizes:
        found = generate(model, Words(), prompts, limits, batch_size=8)
    assert found == [" ".join(map(str, greedy_by_hand(model, *one))) for one in zip(prompts, limits, strict=True)]
    assert sizes == expected


def test_rows_that_wait_take_the_places_of_those_that_have_ended(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: four begin, the first ends after 2 tokens; the fifth, which joins, and the third end together; the sixth
    joins two that go on, and ends before them.
    """
    monkeypatch.setattr(generation, "_ON_CPU", 1)
    prompts = [[3, 4], [5, 6], [8, 3], [9, 10], [11, 5, 4, 3], [12, 13]]
    limits = [2, 9, 4, 9, 3, 5]
    expected = [greedy_by_hand(model, *one) for one in zip(prompts, limits, strict=True)]
    assert [len(ids) for ids in expected] == limits  # none ends before
    generate(model, Words(), prompts, limits, batch_size=4)  # the trials
    asked = [Asked(*one) for one in zip(prompts, limits, strict=True)]
    with sizes_of(model) as sizes:
        groups = []

        def of_two() -> Iterator[list[Asked]]:
            for start in (0, 2, 4):
                groups.append(len(sizes))
                yield asked[start : start + 2]

        found = list(written(model, Words(), of_two(), batch_size=4))
    assert sizes == [4, 4, 1, 4, 4, 1, 3, 3, 3, 3, 2]
    assert groups == [0, 0, 2]  # the last are asked for when there is room
    assert [number for number, _ in found] == [0, 2, 4, 5, 1, 3]
    assert dict(found) == {i: " ".join(map(str, ids)) for i, ids in enumerate(expected)}


@pytest.mark.parametrize(("batch_size", "most"), [(1, 1), (2, 8)])
def test_a_cpu_writes_four_times_as_many_rows_at_a_time(model: LlamaForCausalLM, batch_size: int, most: int) -> None:
    prompts = [[3 + i, 4] for i in range(9)]
    expected = [" ".join(map(str, greedy_by_hand(model, prompt, 3))) for prompt in prompts]
    generate(model, Words(), prompts, 3, batch_size=batch_size)  # the trials
    with sizes_of(model) as sizes:
        assert generate(model, Words(), prompts, 3, batch_size=batch_size) == expected
    assert max(sizes) == most


def test_what_is_known_to_be_written_is_not_written_again(model: LlamaForCausalLM) -> None:
    prompts = [[3, 4], [5, 6, 7], [8], [9, 10]]
    limits = [6, 7, 3, 9]
    whole = [greedy_by_hand(model, one, most) for one, most in zip(prompts, limits, strict=True)]
    assert [len(ids) for ids in whole] == limits  # none has ended before
    expected = [" ".join(map(str, ids)) for ids in whole]
    counted: list[int] = []
    generate(model, Words(), prompts, limits, batch_size=4)  # the trials
    hook = model.register_forward_pre_hook(lambda *_: counted.append(1))
    try:
        for begun in ([2, 0, 1, 3], [0, 7, 2, 1], [99] * 4):
            counted.clear()
            known = [ids[:count] for ids, count in zip(whole, begun, strict=True)]
            assert generate(model, Words(), prompts, limits, batch_size=4, begun=known) == expected
        assert counted == []  # all of it was known
        counted.clear()
        ended = [[3, END, 5], [4] * 9, [], [END]]  # an end, and more than the limit
        found = generate(model, Words(), prompts, [6, 7, 0, 9], batch_size=4, begun=ended)
        assert (found, counted) == (["3", "4 4 4 4 4 4 4", "", ""], [])
    finally:
        hook.remove()
    with pytest.raises(ValueError, match="begun: expected none with draws"):
        generate(model, Words(), [[3]], 2, batch_size=1, begun=[[4]], draws=draws_of(1))


def test_a_prompt_may_fill_all_positions_where_one_token_is_to_be_written() -> None:
    model = family("gpt2")
    most = model.config.n_positions
    texts = generate(model, Words(), [[3] * most, [4] * 3], 1, batch_size=2)
    assert [len(text.split()) for text in texts] == [1, 1]


# ---- drawn -----------------------------------------------------------------------------------------------------------


def draws_of(count: int, **how: float) -> list[Draw]:
    return [Draw(seed, **how) for seed in range(count)]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_draws_do_not_depend_on_the_batch_or_on_how_many_there_are(model: LlamaForCausalLM, batch_size: int) -> None:
    prompts = [row["input_ids"][:-1] for row in sequences()]
    draws = draws_of(len(prompts), temperature=1.3)
    alone = [
        generate(model, Words(), [prompt], 9, batch_size=1, draws=[draw])[0]
        for prompt, draw in zip(prompts, draws, strict=True)
    ]
    assert generate(model, Words(), prompts, 9, batch_size=batch_size, draws=draws) == alone
    short = generate(model, Words(), prompts, [3] * len(prompts), batch_size=batch_size, draws=draws)
    assert all(long.startswith(text) for long, text in zip(alone, short, strict=True))
    assert len({*generate(model, Words(), prompts[:1] * 12, 9, batch_size=5, draws=draws_of(12))}) > 3


@torch.no_grad()
def test_what_is_drawn_has_the_models_probabilities(model: LlamaForCausalLM) -> None:
    prompt, count = [3, 4, 5], 3000
    for temperature in (0.7, 2.0):
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
        expected = (logits / temperature).softmax(0)
        draws = draws_of(count, temperature=temperature)
        found = generate(model, Words(), [prompt] * count, 1, batch_size=500, draws=draws)
        for token in expected.topk(4).indices.tolist():
            share = (found.count(str(token)) if token != END else found.count("")) / count
            p = float(expected[token])
            assert abs(share - p) < 4.5 * (p * (1 - p) / count) ** 0.5


@torch.no_grad()
def test_top_p_takes_the_tokens_up_to_its_share(model: LlamaForCausalLM) -> None:
    prompt = [3, 4, 5]
    probs, tokens = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(0).sort(descending=True)
    share = float(probs[:2].sum()) + 1e-6  # two are not enough
    found = generate(model, Words(), [prompt] * 300, 1, batch_size=300, draws=draws_of(300, top_p=share))
    assert {*found} == {"" if token == END else str(token) for token in tokens[:3].tolist()}
    greedy = generate(model, Words(), [prompt] * 5, 6, batch_size=5, draws=draws_of(5, top_p=1e-9))
    assert {*greedy} == {" ".join(map(str, greedy_by_hand(model, prompt, 6)))}


def test_one_draw_a_prompt(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="draws: expected 2, one a prompt, got 1"):
        generate(model, Words(), [[3], [4]], 1, batch_size=1, draws=draws_of(1))
