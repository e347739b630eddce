"""Whether a tokenizer cuts text up as its own file, tokenizer.json, says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

# Where rules differ: numbers, capitals, apostrophes, runs of spaces and of lines, signs, accents, other scripts.
_TRIED = ("In 1984", "1234567", "SHE said", "isn't", "I'LL", "a  b", "a\n\n\tb", "x_1 != (y+2);", "naïve", "東京 2024")


def file_of(name: str, folder: Path | None, revision: str = "main") -> Path | None:
    """tokenizer.json of a folder, or of a name on the hub as it lies in the cache; None where there is none."""
    if folder is not None:
        file = folder / "tokenizer.json"
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def warn_if_otherwise(tokenizer: Any, file: Path | None) -> None:
    """Warns where the tokens of some short texts are not those of ``file``.

    From transformers 5 on a tokenizer of some classes (GPT2Tokenizer, Qwen2Tokenizer, GPTNeoXTokenizer) has vocabulary
    and merges from the file, but normalizer and pre-tokenizer from the class, and config.json has a say in which class
    it is (findings/transformers_tokenizer_json_is_not_all.sh). Special tokens around a text are not looked at: those
    are the class's to add.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, __version__

    if file is None or not isinstance(tokenizer, PreTrainedTokenizerFast):
        return
    by_file = Tokenizer.from_file(str(file))
    by_file.no_truncation()
    by_file.no_padding()
    for text in _TRIED:
        ids, wanted = (
            tokenizer(text, add_special_tokens=False)["input_ids"],
            by_file.encode(text, add_special_tokens=False),
        )
        if ids == wanted.ids:
            continue
        ours = tokenizer.convert_ids_to_tokens(ids)
        warnings.warn(
            f"tokenizer: {type(tokenizer).__name__} of transformers {__version__} does not cut text up as {file} says: "
            f"{text!r} is {ours}, by the file {wanted.tokens}. If the model has learned from the file's, "
            f'transformers.PreTrainedTokenizerFast.from_pretrained("{file.parent}") keeps to it; give --tokenizer a '
            "folder that its save_pretrained has made",
            stacklevel=3,
        )
        return
