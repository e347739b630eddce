"""A tokenizer that a test can count by hand: one token a word, a sign or a line break; and a model for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

BOS, EOS, UNKNOWN = 0, 1, 2
_PIECE = r"\n|\w+|[^\w\s]"


def word_tokenizer(
    texts: Iterable[str] = (), *, bos: bool = False, adds_eos: bool = False, eos: str | None = "</s>", **kwargs: Any
) -> Any:
    """Ids 0 <s>, 1 </s>, 2 <unk>, then the words of ``texts`` from 3 on, in the order they occur.

    Args:
        bos: whether it puts <s> in front of a text.
        adds_eos: whether it puts </s> behind a text.
        eos: what it calls its EOS; None for a tokenizer that has none.
        kwargs: for the tokenizer, such as ``chat_template``.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(_PIECE), behavior="removed", invert=True)
    vocabulary = {"<s>": BOS, "</s>": EOS, "<unk>": UNKNOWN}
    for text in texts:
        for word, _ in split.pre_tokenize_str(text):
            vocabulary.setdefault(word, len(vocabulary))
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = split
    if bos or adds_eos:
        single = ["<s>"] * bos + ["$A"] + ["</s>"] * adds_eos
        words.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>" if bos else None, eos_token=eos, unk_token="<unk>", **kwargs
    )


def word_llama(tokenizer: Any, seed: int = 0, **config: Any) -> Any:
    """A Llama of a layer and some thousand parameters for such a tokenizer; ``config`` goes to LlamaConfig."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **config})).eval()
