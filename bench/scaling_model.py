"""What a rectified step costs on many GPUs: memory per device, bytes, collectives, time, beside plain training.

    python bench/scaling_model.py                                   # 7B, 70B, 405B on 8 to 1024 GPUs with FSDP2
    python bench/scaling_model.py --models 7b --gpus 8 --engines ddp fsdp2 zero1 zero2 zero3
    python bench/scaling_model.py --models 7b --gpus 8 64 --ema-dtype float32 --json out.json
    python bench/scaling_model.py --measure   # holds it against 1, 2, 4 processes here, and the bytes that they send

A model and no measurement: nothing here was run on a GPU. It is arithmetic on stated speeds, printed with every table,
and on one measured figure, how close the passes come to the memory's own speed (from a result of step_time.py).

    plain      one forward and backward pass over the batch, bf16 compute, activations recomputed
    rectified  two of them (retain, forget), the passes over the local shards, the all-reduce of their sums
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import report
from exchange import ENGINES, Exchange, exchange_of
from shapes import Llama, count

_GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}
_SUMS = 14 * 8  # bytes of the statistics of a step, float64
_COLLECTIVES_OF_SUMS = 2  # after the reduce pass, and after the written |g| where clipping or 16 bits ask for it


@dataclass(frozen=True)
class Model:
    """A transformer of the Llama family, by its public configuration."""

    name: str
    layout: Llama

    @property
    def numel(self) -> int:
        return count(self.layout.shapes())

    @property
    def numel_of_layer(self) -> int:
        """Of the largest group of parameters that FSDP2 gathers at a time: a layer, or the head."""
        shapes = self.layout.shapes()
        per_layer = (len(shapes) - 3) // self.layout.layers
        return max(count(shapes[1 : 1 + per_layer]), self.layout.vocab * self.layout.hidden)


MODELS = {
    model.name: model
    for model in (
        Model("7b", Llama(32000, 4096, 32, 32, 32, 11008, tied=False)),
        Model("70b", Llama(32000, 8192, 80, 64, 8, 28672, tied=False)),
        Model("405b", Llama(128256, 16384, 126, 128, 8, 53248, tied=False)),
    )
}


@dataclass(frozen=True)
class Speeds:
    """Of one device and its links; the defaults are an H100 SXM node's data sheet, but for what is said otherwise."""

    tflops: float = field(default=989.0, metadata={"help": "dense bf16 peak"})
    mfu: float = field(default=0.4, metadata={"help": "share of it that training reaches (assumed)"})
    memory_gb_s: float = field(default=3000.0, metadata={"help": "copy, read + write (estimated, 3350 is the peak)"})
    node_gb_s: float = field(default=450.0, metadata={"help": "a GPU's link inside a node, each way (NVLink)"})
    network_gb_s: float = field(default=50.0, metadata={"help": "a GPU's link between nodes, each way (400 Gb/s)"})
    link_share: float = field(default=0.8, metadata={"help": "share of a link that collectives reach (assumed)"})
    node_us: float = field(default=5.0, metadata={"help": "latency of a hop inside a node (assumed)"})
    network_us: float = field(default=15.0, metadata={"help": "latency of a hop between nodes (assumed)"})
    gpus_per_node: int = field(default=8, metadata={"help": "GPUs of a node"})
    device_gib: float = field(default=80.0, metadata={"help": "memory of a device; what does not fit is marked !"})
    passes: float = field(default=1.13, metadata={"help": "time of the passes over the memory floor"})


@dataclass(frozen=True)
class Setup:
    """What is trained, and how."""

    tokens_per_gpu: int = field(default=4096, metadata={"help": "of a batch, for each of the two losses"})
    param_dtype: str = field(default="float32", metadata={"help": "of parameters, gradients and optimizer"})
    ema_dtype: str = field(default="bfloat16", metadata={"help": "of the moving average"})
    stream: bool = field(default=False, metadata={"help": "fold retain gradients in as they come"})
    reduce_bucket: int = field(default=500_000_000, metadata={"help": "elements that DeepSpeed reduces at a time"})

    def __post_init__(self) -> None:
        for name in ("param_dtype", "ema_dtype"):
            if getattr(self, name) not in _BYTES:
                raise ValueError(f"{name}: expected float32 or bfloat16, got {getattr(self, name)}")
        if self.ema_dtype == "bfloat16" and self.param_dtype == "float32":
            # RetainEMA takes float32 or the parameter's own dtype.
            object.__setattr__(self, "ema_dtype", "float32")


@dataclass(frozen=True)
class Prediction:
    """For one model on so many GPUs by one engine. Seconds of a step, bytes of a device."""

    model: str
    engine: str
    gpus: int
    unrectified: float  # two forward and backward passes, what any method with a retain term takes
    compute: float
    communication: float
    plain: float
    passes: float
    sums: float
    rectified: float
    network_bytes: int
    plain_memory: int
    rectified_memory: int

    @property
    def overhead(self) -> float:
        """What GRU adds to a step of two losses."""
        return (self.passes + self.sums) / self.unrectified


# ---- the arithmetic --------------------------------------------------------------------------------------------------


def hops(gpus: int, per_node: int) -> tuple[int, int]:
    """Steps of a tree inside a node, and between nodes: rounds of doubling."""
    inside = min(gpus, per_node)
    return math.ceil(math.log2(inside)), math.ceil(math.log2(math.ceil(gpus / per_node)))


def ring_seconds(size: float, gpus: int, speeds: Speeds) -> float:
    """An all-gather to, or a reduce-scatter of, ``size`` bytes.

    Each GPU takes in (n - 1) / n of them over its link inside the node; each of m nodes (m - 1) / m over the network
    links of all its GPUs. The slower counts. Every hop adds its latency once: rings are pipelined.
    """
    nodes = math.ceil(gpus / speeds.gpus_per_node)
    inside = size * (gpus - 1) / gpus / speeds.node_gb_s
    between = size * (nodes - 1) / nodes / (speeds.network_gb_s * speeds.gpus_per_node)
    return max(inside, between) / (1e9 * speeds.link_share) + latency(gpus, speeds)


def latency(gpus: int, speeds: Speeds) -> float:
    """Of a small message from one to all, seconds."""
    inside, between = hops(gpus, speeds.gpus_per_node)
    return (inside * speeds.node_us + between * speeds.network_us) * 1e-6


def all_reduce_of_sums(gpus: int, speeds: Speeds) -> float:
    """Up the tree and down again; 112 bytes have no bandwidth to speak of."""
    return 2 * latency(gpus, speeds)


def pass_bytes(numel: int, setup: Setup) -> int:
    """What the passes move over ``numel`` local elements: read g, r, e, write e; read g, e, write g."""
    grad, ema = _BYTES[setup.param_dtype], _BYTES[setup.ema_dtype]
    if setup.stream:  # r is folded in as it comes (read r, e, write e); then g, e are read twice and g is written
        return numel * (grad + 2 * ema + 2 * (grad + ema) + grad)
    return numel * (2 * grad + 2 * ema + 2 * grad + ema)


def predict(model: Model, gpus: int, setup: Setup, speeds: Speeds, engine: str = "fsdp2") -> Prediction:
    """One optimizer step, plain and rectified."""
    numel, its, setup = model.numel, ENGINES[engine], _as_kept(setup, engine)
    # 2 flops per parameter and token forward, 4 backward, 2 to compute the activations again.
    compute = 8 * numel * setup.tokens_per_gpu / (speeds.tflops * 1e12 * speeds.mfu)
    each = exchange_of(engine, 1)
    after = each.gathered if its.gathers_once else 0.0  # behind nothing
    communication = seconds_of(replace(each, gathered=each.gathered - after), numel, gpus, speeds)
    once = seconds_of(Exchange(gathered=after), numel, gpus, speeds)
    behind = max(compute, communication)  # layers are gathered, and gradients reduced, while others are computed
    local = math.ceil(numel / gpus) if its.gru_is_sharded else numel
    moved = pass_bytes(local, setup) + local * 4 * its.copies
    passes = moved / (speeds.memory_gb_s * 1e9) * speeds.passes
    collectives = _COLLECTIVES_OF_SUMS if its.gru_is_sharded else 0
    sums = collectives * all_reduce_of_sums(gpus, speeds)
    plain_memory, rectified_memory = memory(model, gpus, setup, engine)
    return Prediction(
        model=model.name,
        engine=engine,
        gpus=gpus,
        unrectified=2 * behind + once,
        compute=compute,
        communication=communication + once,
        plain=behind + once,
        passes=passes,
        sums=sums,
        rectified=2 * behind + once + passes + sums,
        network_bytes=int(exchange_of(engine, 2).sent(gpus) * numel) + collectives * _SUMS,
        plain_memory=plain_memory,
        rectified_memory=rectified_memory,
    )


def _as_kept(setup: Setup, engine: str) -> Setup:
    """DeepSpeed has float32 weights beside bf16 ones, and gradients in float32 here."""
    return replace(setup, param_dtype="float32") if engine.startswith("zero") else setup


def seconds_of(exchange: Exchange, numel: int, gpus: int, speeds: Speeds) -> float:
    """Of all of it, one after the other."""
    sizes = (exchange.gathered, exchange.scattered, exchange.all_reduced, exchange.all_reduced)
    return sum(ring_seconds(numel * size, gpus, speeds) for size in sizes if size)


def memory(model: Model, gpus: int, setup: Setup, engine: str = "fsdp2") -> tuple[int, int]:
    """Bytes of a device: plain training, rectified.

    State by the engine; GRU adds e, and without stream the retain gradients. Whole besides: two layers as bf16 (this
    and the next) and gradients of one where weights are gathered, the bf16 weights of DDP, DeepSpeed's buckets, an
    activation a layer, one layer's inside, logits.
    """
    setup, its = _as_kept(setup, engine), ENGINES[engine]
    layout, tokens = model.layout, setup.tokens_per_gpu
    local = math.ceil(model.numel / gpus)
    narrow = _BYTES[setup.param_dtype] / 4  # of what is float32 in mixed precision, where parameters are 16 bits
    state = int(model.numel * its.whole * narrow) + int(local * its.sharded * narrow)
    gathered = model.numel_of_layer * (2 * 2 + 4) if its.pass_gathers else 0
    cast = 2 * model.numel if engine == "ddp" and setup.param_dtype == "float32" else 0  # by autocast
    buckets = 2 * 2 * min(setup.reduce_bucket, model.numel) if engine.startswith("zero") else 0
    checkpoints = layout.layers * tokens * layout.hidden * 2
    inside = tokens * (10 * layout.hidden + 3 * layout.intermediate) * 2
    logits = 2 * tokens * layout.vocab * 4
    plain = state + gathered + cast + buckets + checkpoints + max(inside, logits)
    of_gru = _BYTES[setup.ema_dtype] + (0 if setup.stream else _BYTES[setup.param_dtype])
    return plain, plain + (local if its.gru_is_sharded else model.numel) * of_gru


def measured_passes(path: Path) -> float:
    """Of a result of step_time.py: gru_fast's time over the floor, the slowest of its cells."""
    cells = json.loads(path.read_text())["cells"]
    ratios = [form["floor_ratio"][1] for cell in cells for form in cell["forms"] if form["name"] == report.OURS]
    if not ratios:
        raise ValueError(f"{path}: no timings of gru_fast; expected a result of bench/step_time.py --json")
    return max(ratios)


# ---- text ------------------------------------------------------------------------------------------------------------


def assumptions(setup: Setup, speeds: Speeds) -> list[str]:
    """Everything that the numbers stand on."""
    lines = ["Assumed:"]
    for part in (setup, speeds):
        for name, entry in part.__dataclass_fields__.items():
            lines.append(f"  {name:<15} {getattr(part, name):<9} {entry.metadata['help']}")
    lines.append("  each engine over all GPUs; communication behind computation, so that the slower of both counts")
    return lines


def table(predictions: list[Prediction], speeds: Speeds) -> str:
    def gib(size: int) -> str:
        return f"{size / _GIB:.1f}" + (" !" if size / _GIB > speeds.device_gib else "")

    rows = [[
        "model, GPUs, engine", "plain s", "compute s", "network s", "rectified s", "passes ms", "sums ms", "GRU adds",
        "GB sent", "GiB plain", "GiB rectified",
    ]]  # fmt: skip
    rows += [
        [
            f"{p.model} x {p.gpus} {p.engine}", f"{p.plain:.3g}", f"{p.compute:.3g}", f"{p.communication:.3g}",
            f"{p.rectified:.3g}", f"{p.passes * 1e3:.3g}", f"{p.sums * 1e3:.2g}", f"{100 * p.overhead:.2g} %",
            f"{p.network_bytes * 1e-9:.3g}", gib(p.plain_memory), gib(p.rectified_memory),
        ]
        for p in predictions
    ]  # fmt: skip
    return report.grid(rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=["fsdp2"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512, 1024])
    for part in (Setup, Speeds):
        for name, entry in part.__dataclass_fields__.items():
            flag, text = f"--{name.replace('_', '-')}", f"{entry.metadata['help']} (default: {entry.default})"
            if isinstance(entry.default, bool):
                parser.add_argument(flag, action="store_true", help=text)
            else:
                parser.add_argument(flag, type=type(entry.default), default=entry.default, help=text)
    parser.add_argument("--step-time", type=Path, help="result of step_time.py --json, for --passes")
    parser.add_argument("--measure", action="store_true", help="also run 1, 2 and 4 processes here (minutes)")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    options = parser.parse_args(arguments)
    if min(options.gpus) < 1:
        parser.error("--gpus: expected numbers of at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.step_time is not None:
        options.passes = measured_passes(options.step_time)
    values = vars(options)
    setup = Setup(**{name: values[name] for name in Setup.__dataclass_fields__})
    speeds = Speeds(**{name: values[name] for name in Speeds.__dataclass_fields__})
    predictions = [
        predict(MODELS[name], gpus, setup, speeds, engine)
        for name in options.models
        for gpus in options.gpus
        for engine in options.engines
    ]
    report.say([*assumptions(setup, speeds), "", table(predictions, speeds), ""])
    records: dict[str, object] = {"predictions": predictions}
    if options.measure:
        import weak_scaling
        import wire

        points = weak_scaling.run()
        report.say([weak_scaling.describe(points), ""])
        sent = wire.run()
        report.say(wire.describe(sent))
        records |= {"weak_scaling": points, "bytes_sent": sent}
    if options.json is not None:
        report.write_json(options.json, {"setup": asdict(setup), "speeds": asdict(speeds)}, **records)


if __name__ == "__main__":
    main()
