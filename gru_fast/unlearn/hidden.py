"""Hidden states of a causal LM: what leaves one of its layers, without running those above."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from gru_fast.unlearn.engines.fsdp import sharded_modules


def num_layers(model: nn.Module) -> int:
    """How many layers (transformer blocks) a causal LM of transformers has, or a peft model around one."""
    return len(_layers(model)[2])


def hidden_states(
    model: nn.Module,
    part: Mapping[str, Tensor],
    layer: int,
    *,
    inside: nn.Module | None = None,
    params: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """(B, T, D) output of layer ``layer``, from 0, before any norm that follows it.

    Layers above it are taken out of the model meanwhile: neither time nor memory goes into them. A model sharded by
    FSDP2, which exchanges weights by the modules it has, runs them too, without gradients.

    Args:
        model: what to call; it may be wrapped for distributed training.
        part: ``input_ids`` and ``attention_mask``, (B, T).
        layer: see above.
        inside: the model itself, where ``model`` is a wrapper.
        params: tensors by name to use instead of the model's own parameters; those above the layer are not looked at.

    Raises:
        RuntimeError: the layer was not run once, as in a model that ``DataParallel`` spreads.
        ValueError: what leaves it has other dimensions, as in Gemma 3n, whose layers have several streams.
    """
    inside = model if inside is None else inside
    inputs: dict[str, Any] = {"input_ids": part["input_ids"], "attention_mask": part["attention_mask"]}
    inputs["use_cache"] = False
    if "logits_to_keep" in inspect.signature(type(_base(inside)).forward).parameters:
        inputs["logits_to_keep"] = 1  # nobody looks at them
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple | list) else output)

    ending = _gradients_up_to if sharded_modules(inside) else _only_layers_up_to
    with ending(inside, layer) as last:
        hook = last.register_forward_hook(keep)
        try:
            if params:
                there = {name for name, _ in inside.named_parameters()}
                functional_call(model, {n: p for n, p in params.items() if n in there}, args=(), kwargs=inputs)
            else:
                model(**inputs)
        finally:
            hook.remove()
    if len(found) != 1:
        raise RuntimeError(
            f"layer {layer}: expected to be run once, was run {len(found)} times; with several GPUs start one process "
            "for each (torchrun, accelerate launch)"
        )
    if found[0].ndim != 3:
        raise ValueError(
            f"layer {layer} of {type(_base(inside)).__name__}: expected hidden states (rows, tokens, width), got "
            f"{found[0].ndim} dimensions {tuple(found[0].shape)}; unlearn by a method on the model's output (npo_gd)"
        )
    return found[0]


@contextmanager
def _only_layers_up_to(model: nn.Module, layer: int) -> Iterator[nn.Module]:
    """Inside, the model ends with this layer (its final norm and head come right after). Gives the layer."""
    parent, name, layers = _layers(model)
    setattr(parent, name, nn.ModuleList(layers[: layer + 1]))
    try:
        yield layers[layer]
    finally:
        setattr(parent, name, layers)


@contextmanager
def _gradients_up_to(model: nn.Module, layer: int) -> Iterator[nn.Module]:
    """Inside, what is above this layer gets its output without the graph. Gives the layer."""
    layers = _layers(model)[2]

    def detach(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return tuple(map(_detached, args)), {name: _detached(value) for name, value in kwargs.items()}

    above = layers[layer + 1] if layer + 1 < len(layers) else None
    hook = None if above is None else above.register_forward_pre_hook(detach, with_kwargs=True, prepend=True)
    try:
        yield layers[layer]
    finally:
        if hook is not None:
            hook.remove()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _layers(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The list of a model's layers: the module that holds it, its name there, the list."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            parent, _, own = name.rpartition(".")
            return model.get_submodule(parent), own, module
    raise ValueError(
        f"{type(model).__name__}: expected a list of config.num_hidden_layers={count} layers in it, found none; hidden "
        "states are to be had from causal LMs of transformers"
    )


def _base(model: Any) -> Any:
    """The transformers model in a peft model, else the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
