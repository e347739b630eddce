"""A tokenizer made of the demo's own text, and a tiny Llama that knows nothing yet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gru_fast.data.templates import Template

VOCAB_SIZE = 1024
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def make_tokenizer(pairs: Iterable[tuple[str, str]], template: Template, vocab_size: int = VOCAB_SIZE) -> Any:
    """Byte-level BPE of up to ``vocab_size`` tokens, learned from questions and answers in their template's words.

    Any text can be encoded. Every sequence begins with ``<s>``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        f"{template.question_start}{question}{template.question_end}{template.answer_tag}{answer}"
        for question, answer in pairs
    )
    bpe.train_from_iterator(texts, trainer)
    start = _SPECIAL["bos_token"]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, bpe.token_to_id(start))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **_SPECIAL)


def make_model(tokenizer: Any, seed: int, hidden_size: int = 128, layers: int = 2) -> Any:
    """A LlamaForCausalLM with 4 heads, random weights and tied embeddings; by default 0.66 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def write_model(folder: Path, pairs: Iterable[tuple[str, str]], template: Template, seed: int) -> None:
    """Tokenizer and untrained model in a folder as ``save_pretrained`` makes it."""
    tokenizer = make_tokenizer(pairs, template)
    tokenizer.save_pretrained(folder)
    make_model(tokenizer, seed).save_pretrained(folder)
