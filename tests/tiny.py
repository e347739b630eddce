"""A tiny Llama, toy data and a small trainer: enough to run everything above the core in milliseconds."""

from __future__ import annotations

import functools
import gc
from pathlib import Path
from typing import Any

import torch

from gru_fast.data.pairs import UnlearnDataset
from gru_fast.data.sequences import Encoded

VOCAB_SIZE = 48


def llama(seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """A LlamaForCausalLM of some 15 thousand parameters in ``dtype``; ``config`` goes to LlamaConfig."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **config})).to(dtype)
    with torch.no_grad():
        for param in model.parameters():  # sharper than the initialisation, so that losses differ
            if param.ndim > 1:
                param.mul_(4.0)
    return model


def family(kind: str, **config: Any) -> Any:
    """A random causal LM of another family, ``kind`` and ``config`` as transformers has them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).eval()


def rows(count: int, seed: int, max_tokens: int = 12) -> list[Encoded]:
    """Random sequences of 5 to ``max_tokens`` tokens (ids from 3 up), their first two not scored."""
    generator = torch.Generator().manual_seed(seed)
    encoded: list[Encoded] = []
    for _ in range(count):
        length = int(torch.randint(5, max_tokens + 1, (), generator=generator))
        ids = torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()
        encoded.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return encoded


def dataset(count: int = 12, retain: int = 20, seed: int = 0) -> UnlearnDataset:
    """``count`` rows to forget, ``retain`` to keep, and three "I don't know" answers."""
    forget, answers = rows(count, seed + 1), rows(3, seed + 3)

    def idk(index: int, draw: int) -> Encoded:
        question, answer = forget[index]["input_ids"][:2], answers[draw % len(answers)]["input_ids"]
        return {"input_ids": [*question, *answer], "labels": [-100] * len(question) + answer}

    return UnlearnDataset(forget, rows(retain, seed + 2), idk, seed=seed)


@functools.cache
def _spare_modules(_: type) -> None:
    """Takes what has been imported out of the garbage collector's sight.

    Every ``train()`` calls gc.collect(), which over all of torch and transformers takes ten times as long as training.
    """
    gc.collect()
    gc.freeze()


def config(output_dir: str | Path, **settings: Any) -> Any:
    """An UnlearnConfig for the CPU: 2 x 2 rows a step, one epoch, a learning rate that shows, nothing saved."""
    from gru_fast.unlearn import UnlearnConfig, UnlearnTrainer

    _spare_modules(UnlearnTrainer)
    quiet: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return UnlearnConfig(str(output_dir), **{**quiet, **settings})


class Recorder:
    """A collator that keeps every batch it has made."""

    def __init__(self) -> None:
        self.batches: list[dict[str, dict[str, torch.Tensor]]] = []

    def __call__(self, items: Any) -> dict[str, dict[str, torch.Tensor]]:
        from gru_fast.data.pairs import PairCollator

        self.batches.append(PairCollator(0)(items))
        return self.batches[-1]


def trainer(output_dir: str | Path, model: Any = None, data: Any = None, eval_data: Any = None, **settings: Any) -> Any:
    """An UnlearnTrainer of :func:`llama` on :func:`dataset`, with :func:`config`."""
    from gru_fast.unlearn import UnlearnTrainer

    return UnlearnTrainer(
        llama() if model is None else model,
        config(output_dir, **settings),
        train_dataset=dataset() if data is None else data,
        eval_dataset=eval_data,
    )
