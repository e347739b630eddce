"""LoRA adapters of peft: new ones to train, and what there is to know of those in a folder."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gru_fast.models.partitioned import shape_of
from gru_fast.runs.files import read_json
from gru_fast.runs.messages import in_short

ADAPTER = "adapter_config.json"
_FEW = 0.5  # share of the weights below which it is said that the rest has no adapter
_NO_WEIGHTS = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CARTRIDGE"}  # of peft
# What peft 0.21 refuses of its default, all linear modules, and what it then takes.
_WAYS = (
    (
        re.compile("lora_dropout"),
        {"lora_dropout": 0.0},
        "without dropout, which peft has not for experts in one tensor",
    ),
    (re.compile("Mamba", re.IGNORECASE), {"exclude_modules": ["out_proj", "conv1d"]}, "without Mamba's out_proj"),
)


def is_adapter(folder: Path) -> bool:
    """Whether an adapter is in a folder."""
    return (folder / ADAPTER).is_file()


def base_of(folder: Path, base_model: str | None = None) -> str:
    """The model that an adapter in ``folder`` is for: ``base_model``, or else what it says itself.

    Raises:
        ValueError: it names none, or itself; it adds no weights that could be merged.
    """
    file = folder / ADAPTER
    config = read_json(file)
    kind = config.get("peft_type")
    if kind in _NO_WEIGHTS:
        raise ValueError(
            f"model: {file} is of {kind}, which puts tokens before the prompt and changes no weights; expected LoRA or "
            "another adapter that can be merged into its base model"
        )
    base = base_model or config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"model: {file} names no base model; say which with --base-model")
    path = Path(base).expanduser()
    if path.is_dir() and path.resolve() == folder.resolve():
        raise ValueError(f"model: {file} names its own folder as base model; say which it is with --base-model")
    return str(base)


def is_zero_factor(name: str) -> bool:
    """Whether a parameter of this name is the factor of LoRA that peft starts at zero: B, in embeddings A."""
    return "lora_B." in name or "lora_embedding_A." in name


def is_drawn_factor(name: str) -> bool:
    """Whether it is the other one, which is drawn at random."""
    return "lora_A." in name or "lora_embedding_B." in name


def with_lora(model: Any, *, r: int, alpha: int, dropout: float, targets: list[str] | None) -> Any:
    """The model with a new adapter on it, drawn with torch's generator.

    Args:
        r, alpha, dropout: as in peft's ``LoraConfig``.
        targets: names of modules; None: all linear ones but the head, and experts that are one tensor, as far as peft
            can. Where that is not far, a warning says so.

    Raises:
        ValueError: modules that are not there, or that peft cannot adapt.
    """
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": targets or "all-linear",
    }
    if targets is None:
        settings["exclude_modules"] = sorted({name.rpartition(".")[2] for name in _routers(model)})
        settings |= _what_works(model, settings)
    try:
        found = _adapted(model, settings)
    except ValueError as error:
        raise ValueError(f"lora_target_modules: {in_short(error)}") from error
    routers = _routers(found)
    if routers:
        raise ValueError(
            f"lora_target_modules: {routers[0]} is a router of experts, which gives more than one tensor; peft adapts "
            "linear modules that give one, leave it out"
        )
    if targets is None:
        _say_what_has_none(found)
    return found


def _routers(model: Any) -> list[str]:
    """Linear modules that choose experts and give the choice beside the scores (Llama 4's, PhiMoE's); of an adapted
    model those that have an adapter, which then fails in the first forward pass.
    """
    from torch import nn

    adapted = {id(layer.get_base_layer()) for layer in _layers(model)}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and type(module).__name__.endswith("Router")
        and type(module).forward is not nn.Linear.forward
        and (not adapted or id(module) in adapted)
    ]


def _adapted(model: Any, settings: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    with quiet_peft():
        return get_peft_model(model, LoraConfig(**settings))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without what peft 0.21 says of patterns it adds itself for experts in one tensor, and of tied weights, whose
    adapters :func:`untie` makes good.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys", RuntimeWarning)
        warnings.filterwarnings("ignore", r"Model has `tie_word_embeddings=True`", UserWarning)
        yield


def _what_works(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What the settings have to be for peft to take the default targets.

    Tried on a copy without weights: a model that peft has refused is changed.
    """
    import torch

    changed: dict[str, Any] = {}
    for _ in _WAYS:
        with torch.device("meta"):
            skeleton = type(model)(copy.deepcopy(model.config))
        try:
            _adapted(skeleton, {**settings, **changed})
        except ValueError as error:
            way = next(
                (way for way in _WAYS if way[0].search(str(error)) and not way[1].keys() <= changed.keys()), None
            )
            if way is None:
                break
            changed |= {name: _both(settings.get(name), value) for name, value in way[1].items()}
            warnings.warn(f"LoRA: {way[2]}; name modules with --lora-target-modules for others", stacklevel=4)
        else:
            break
    return changed


def _both(there: Any, more: Any) -> Any:
    return [*there, *more] if isinstance(more, list) and there else more


def _say_what_has_none(model: Any) -> None:
    """Warns where most weights have no adapter, such as experts that peft has no way to adapt."""
    adapted = {id(layer.get_base_layer()) for layer in _layers(model)}
    weights = {
        name: (math.prod(shape_of(param)), id(module) in adapted)
        for prefix, module in model.get_base_model().named_modules()
        for name, param in ((f"{prefix}.{n}", p) for n, p in module.named_parameters(recurse=False))
        if len(shape_of(param)) > 1 and "lora_" not in name
    }
    counted = {name: found for name, found in weights.items() if not _is_embedding(name, model)}
    total = sum(size for size, _ in counted.values())
    share = sum(size for size, has in counted.values() if has) / max(1, total)
    if share < _FEW:
        largest = max((size, name) for name, (size, has) in counted.items() if not has)[1]
        warnings.warn(
            f"LoRA: {share:.0%} of the weights in the layers have an adapter; not, for one, "
            f"{largest.replace('base_layer.', '')}. The others stay as they are",
            stacklevel=4,
        )


def _is_embedding(name: str, model: Any) -> bool:
    ends = {id(end) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    owner = model.get_base_model().get_submodule(name.rpartition(".")[0])
    return id(owner) in ends


def _layers(model: Any) -> list[Any]:
    """The modules that carry adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def untie(model: Any) -> None:
    """Gives each adapted module a weight of its own, so that merging changes no other: the head's adapter would change
    a tied embedding too, which in training it did not.
    """
    from torch import nn

    adapted = [layer.get_base_layer() for layer in _layers(model)]
    owners: dict[int, int] = {}
    for module in model.modules():
        for param in module.parameters(recurse=False):
            owners[id(param)] = owners.get(id(param), 0) + 1
    for layer in adapted:
        weight = getattr(layer, "weight", None)
        if weight is not None and owners.get(id(weight), 0) > 1:
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            model.config.tie_word_embeddings = False
            owners[id(weight)] -= 1
