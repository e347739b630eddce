"""What engines hold and what their processes exchange in a step: for scaling_model.py; wire.py counts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """What processes exchange, bytes a parameter."""

    gathered: float = 0.0
    scattered: float = 0.0  # reduced and scattered
    all_reduced: float = 0.0

    def sent(self, gpus: int) -> float:
        """By each, in rings: (n - 1) / n of what is gathered or scattered, twice that of what is reduced in all."""
        return (self.gathered + self.scattered + 2 * self.all_reduced) * (gpus - 1) / gpus


@dataclass(frozen=True)
class Engine:
    """Who holds what, and when it is exchanged. Bytes a parameter; weights and gradients in bf16 have 2.

    Attributes:
        pass_gathers: how often a forward and backward pass gathers all weights, layer by layer.
        reduction: of gradients, in each backward pass: the field of :class:`Exchange`.
        reduces_in_float32: else in what is computed in.
        gathers_once: whether all weights are gathered after the optimizer's step.
        whole: of a state that every process has; ``sharded``: of one whose n-th part it has.
        gru_is_sharded: whether e and retain gradients are.
        copies: accesses of float32 to take gradients out of the engine's memory, of r and g together.
    """

    pass_gathers: int
    reduction: str
    reduces_in_float32: bool
    gathers_once: bool
    whole: float
    sharded: float
    gru_is_sharded: bool = True
    copies: int = 0


# Mixed precision: float32 weights 4, two moments 8.
ENGINES = {
    # gradients 4, DDP's buckets 4
    "ddp": Engine(0, "all_reduced", True, False, whole=20, sharded=0, gru_is_sharded=False),
    # gradients 4
    "fsdp2": Engine(2, "scattered", True, False, whole=0, sharded=16),
    # bf16 weights 2 and, until a backward pass ends, gradients 2; the averaged part 2. Each bucket is reduced in all.
    "zero1": Engine(0, "all_reduced", False, True, whole=4, sharded=14, copies=6),
    # bf16 weights 2, gradients bucket by bucket; the averaged part in float32
    "zero2": Engine(0, "all_reduced", False, True, whole=2, sharded=16, copies=6),
    # bf16 weights 2, the averaged part in float32
    "zero3": Engine(2, "scattered", False, False, whole=0, sharded=18, copies=2),
}


def exchange_of(engine: str, losses: int, compute_bytes: int = 2) -> Exchange:
    """Of a step with so many losses, each run forward and backward once."""
    its = ENGINES[engine]
    reduced = losses * (4 if its.reduces_in_float32 else compute_bytes)
    gathers = losses * its.pass_gathers + its.gathers_once
    return Exchange(**{"gathered": gathers * compute_bytes, its.reduction: reduced})
