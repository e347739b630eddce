"""A model whose linear layers are held in 4 bits (bitsandbytes), an adapter in full beside them: QLoRA (2305.14314)."""

from __future__ import annotations

import importlib.util
from typing import Any

QUANT_TYPES = ("nf4", "fp4")


def quantization(quant_type: str, double_quant: bool, compute_dtype: Any) -> Any:
    """What ``from_pretrained(quantization_config=)`` takes; the arguments are those of ``BitsAndBytesConfig``.

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("load_in_4bit: needs bitsandbytes: pip install 'gru_fast[4bit]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def is_four_bit(model: Any) -> bool:
    """Whether bitsandbytes holds its linear layers in 4 bits; so it may have been saved."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def keep_differentiable(model: Any) -> None:
    """Has the layers stay in the layout that gradients flow through. No other model is touched.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 packs a weight anew in the first forward pass in eval mode, with its
    scales in bfloat16. From then on the layer has other values and passes no gradient back, in training mode either:
    after reference log-probabilities most of an adapter would stay at zero, without a word. (The pass says with
    torch's own warning that ``gemv_4bit`` has no derivative.)
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


NOT_ZERO_3 = (
    "load_in_4bit: not with ZeRO-3, for which transformers loads no model in 4 bits; use ZeRO-2, where each process "
    "has all of the base, or leave it out"
)


def check_trainable(model: Any, *, refused: str = "") -> None:
    """Makes sure that a model in 4 bits can be trained as it is, if it is one: by an adapter, gradients flowing.

    Args:
        refused: what it is to be trained with, and why that does not go; nothing where it does.

    Raises:
        ValueError: it has no adapter, has been packed for inference, or ``refused`` says something.
    """
    if not is_four_bit(model):
        return
    if refused:
        instead = "use DDP or ZeRO-2, where each process has all of the base, or leave it out"
        raise ValueError(f"load_in_4bit: not with {refused}; {instead}")
    if not hasattr(model, "peft_config"):
        raise ValueError(NO_ADAPTER)
    packed = [
        name
        for name, param in model.named_parameters()
        if getattr(getattr(param, "quant_state", None), "packing_format_for_cpu", False)
    ]
    if packed:
        raise ValueError(
            f"model: bitsandbytes has packed {len(packed)} of its weights for inference on this CPU ({packed[0]}, ...) "
            "and no gradient would flow through them; load it anew, and do not run it in eval mode before this"
        )
    keep_differentiable(model)


NO_ADAPTER = (
    "load_in_4bit: weights in 4 bits cannot be trained, an adapter beside them can; add --use-peft, or leave it out "
    "(in Python: get_peft_model of peft)"
)


def dequantized(model: Any) -> Any:
    """The model with what its 4 bits stand for, as ordinary linear layers in its dtype, which can be merged into."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of what this is for
    try:
        model = model.dequantize(model.dtype)
    finally:
        logging.set_verbosity(verbosity)
    model.is_loaded_in_4bit = False
    return model
