"""What of a DeepSpeed configuration goes with an objective of several losses, and with GRU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

# Of zero_optimization: each keeps gradients in yet another place, or changes them on the way there.
_ELSEWHERE = {
    "zero_hpz_partition_size": 1,
    "mics_shard_size": -1,
    "zero_quantized_gradients": False,
    "zenflow": None,
}
_OF_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
_OFFLOADS = {
    "offload_optimizer": "where each look at a gradient reads the weights and moments of a whole sub-group, and each "
    "change writes them back",
    "offload_param": "which was not tried",
}


def settle(config: dict[str, Any], max_grad_norm: float, batch_size: int, accumulation: int) -> None:
    """Has the configuration say what it leaves out, where the defaults of accelerate and DeepSpeed are not ours.

    Rows of a micro-batch, and micro-batches of a step: as the Trainer's, in place of an assertion. Clipping: as the
    Trainer's, in place of 1. ZeRO-3: the model itself is saved, in place of its pieces.

    Raises:
        ValueError: it has other clipping.
    """
    if not {"train_batch_size", "train_micro_batch_size_per_gpu"} & config.keys():
        config["train_micro_batch_size_per_gpu"] = batch_size
        config.setdefault("gradient_accumulation_steps", accumulation)
    if stage_of(config) == 3:
        config["zero_optimization"].setdefault("stage3_gather_16bit_weights_on_model_save", True)
    given = config.get("gradient_clipping")
    if given in (None, "auto"):
        config["gradient_clipping"] = float(max_grad_norm)
    elif float(given) != max_grad_norm:
        raise ValueError(
            f'gradient_clipping: expected "auto" in the DeepSpeed configuration, or max_grad_norm={max_grad_norm:g} as '
            f"in the trainer's, got {given}; with GRU leave both at 0 and clip with tau"
        )


def errors_of_objective(config: Mapping[str, Any]) -> list[str]:
    """What cannot run several losses in a step."""
    said = "zero_optimization.stage: expected 1, 2 or 3 in the DeepSpeed configuration, got 0; DDP is the same"
    return [said] if stage_of(config) == 0 else []


def errors_of_launch(environment: Mapping[str, str]) -> list[str]:
    """Where nobody has said which process this is, DeepSpeed would ask MPI."""
    missing = [name for name in _OF_LAUNCHER if name not in environment]
    if not missing or importlib.util.find_spec("mpi4py"):
        return []
    said = f"deepspeed: expected a launcher, since {', '.join(missing)} is not set"
    return [f"{said}; start a single process too with torchrun, accelerate launch or deepspeed --no_local_rank"]


def errors_of_gru(config: Mapping[str, Any]) -> list[str]:
    """What keeps gradients out of reach between backward and step."""
    stage, zero = stage_of(config), config.get("zero_optimization") or {}
    errors = []
    if _is_on(config, "fp16"):
        errors.append("fp16: not with DeepSpeed, whose loss scale is its own; use bf16")
    if stage == 1 and _is_on(config, "bf16") and not _offload_of(zero, "offload_optimizer"):
        accumulated = (config.get("data_types") or {}).get("grad_accum_dtype")
        if accumulated == "fp32":
            errors.append(
                "data_types.grad_accum_dtype: not fp32 with bf16 and ZeRO-1, which then has another optimizer; take "
                "ZeRO-2, or leave it out"
            )
    errors += [
        f"zero_optimization.{name}: not with GRU, which would not find the gradients; leave it out"
        for name, usual in _ELSEWHERE.items()
        if zero.get(name, usual) not in (usual, 0, None, False)
    ]
    errors += [
        f"zero_optimization.{name}: expected the device cpu or none, got {_offload_of(zero, name)}, {why}"
        for name, why in _OFFLOADS.items()
        if _offload_of(zero, name) not in ("", "cpu")
    ]
    if (zero.get("offload_optimizer") or {}).get("super_offload"):
        errors.append("zero_optimization.offload_optimizer.super_offload: not with GRU; leave it out")
    if str((config.get("optimizer") or {}).get("type", "")).lower() == "muon":
        errors.append("optimizer.type: not Muon, which makes its step of the gradients while they are averaged")
    if (config.get("tensor_parallel") or {}).get("autotp_size", 1) > 1:
        errors.append("tensor_parallel.autotp_size: expected 1; DeepSpeed's tensor parallelism is not supported")
    return errors


def stage_of(config: Mapping[str, Any]) -> int:
    """ZeRO's stage."""
    return int((config.get("zero_optimization") or {}).get("stage", 0))


def _is_on(config: Mapping[str, Any], name: str) -> bool:
    return (config.get(name) or {}).get("enabled") is True


def _offload_of(zero: Mapping[str, Any], name: str) -> str:
    device = (zero.get(name) or {}).get("device") or "none"
    return "" if device == "none" else str(device)
