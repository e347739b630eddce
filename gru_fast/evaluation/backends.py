"""Other programs that write texts in place of transformers: vLLM, for GPUs. Losses stay with the model in memory.

A backend is a function from tokens to tokens, greedy. Its first texts are compared with those of the model in memory:
two programs round differently, and where two tokens are almost as probable they may part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_fast.models.load import ModelOptions

TRANSFORMERS, VLLM = "transformers", "vllm"
NAMES = (TRANSFORMERS, VLLM)
COMPARED = 8  # texts

# Prompts (tokens), the most tokens to write after each, tokens that end a text -> the tokens that are written.
Continue = Callable[[Sequence[Sequence[int]], Sequence[int], Sequence[int]], list[list[int]]]


@dataclass
class Backend:
    """What writes in place of the model in memory.

    Args:
        name: kept with the records.
        continue_: see :data:`Continue`.
        compared, same: texts of it that were written by the model in memory too, and how many of them are the same.
    """

    name: str
    continue_: Continue
    compared: int = 0
    same: int = 0

    def agreement(self) -> dict[str, int]:
        """For a summary."""
        return {"compared": self.compared, "same": self.same}


def vllm(options: ModelOptions, dtype: str, given: Mapping[str, Any] | None = None) -> Backend:
    """vLLM with a model of its own beside the one in memory.

    Args:
        options: which model; a whole one, in a folder or on the hub.
        dtype: that the model in memory has, "bfloat16" say.
        given: further arguments of ``vllm.LLM``, such as tensor_parallel_size. Without gpu_memory_utilization half of
            the memory is left to the model in memory.

    Raises:
        ImportError: no vLLM. ValueError: an adapter, or a base in 4 bits.
    """
    package, found = check(options)
    llm = package.LLM(
        model=found,
        skip_tokenizer_init=True,  # it is given tokens, and gives tokens
        generation_config="vllm",  # not the model's own: no penalties, no sampling
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        dtype=dtype,
        **{"gpu_memory_utilization": 0.5, "seed": 0, **(given or {})},
    )

    def continue_(prompts: Sequence[Sequence[int]], limits: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
        how = {"temperature": 0.0, "stop_token_ids": list(ends), "detokenize": False}
        outputs = llm.generate(
            [{"prompt_token_ids": list(ids)} for ids in prompts],
            [package.SamplingParams(max_tokens=limit, **how) for limit in limits],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    return Backend(VLLM, continue_)


def check(options: ModelOptions) -> tuple[Any, str]:
    """The package vllm and the model as it takes it, before anything is loaded; raises as :func:`vllm`."""
    found = _model_of(options)
    try:
        return import_module("vllm"), found
    except ImportError as error:
        raise ImportError(f"backend: vllm needs the package vllm ({error}): pip install 'gru_fast[vllm]'") from None


def _model_of(options: ModelOptions) -> str:
    """The model as vLLM takes it."""
    from gru_fast.models.adapters import is_adapter
    from gru_fast.models.load import find

    if options.load_in_4bit:
        raise ValueError("backend: vllm is not given a base in 4 bits; leave one of --load-in-4bit and --backend out")
    found = find(options.model)
    if found is not None and is_adapter(found):
        raise ValueError(
            f"backend: vllm takes whole models, {options.model} is an adapter; write one with gru-fast merge --model "
            f"{options.model}, and give that"
        )
    return options.model if found is None else str(found)
