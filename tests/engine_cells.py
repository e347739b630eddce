"""What goes with which engine: the rows of the table in docs/larger-models.md, each cell of which a test runs.

A cell is a yes, where every setting of its row follows one process (``held_to``) in two with that engine; a refusal,
where every one is refused before anything is trained; or nothing, where the engine has no such option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ENGINES = ("DDP", "FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3")
ZERO = ENGINES[2:]
_HEADS = {"DDP": "one process, DDP"}


@dataclass(frozen=True)
class Row:
    """An option of the table.

    Attributes:
        option: what the first column says.
        runs: settings, as launched.trained takes them; all of them are run with every engine.
        refused: by engine, how what it says begins.
        lacks: engines without that option.
        held_to: "the bits": logs, e and weights, but for rounding; "weights": those and e, where logs are means over
            other rows in each process; "bfloat16": what 16 bits keep of them.
        conflict: whether g must be in conflict with e in some step, so that the projection is seen.
        zero: what the configuration of DeepSpeed has besides; ``offloaded``: the same in its ``zero_optimization``.
    """

    option: str
    runs: Sequence[Mapping[str, Any]]
    refused: Mapping[str, str] = field(default_factory=dict)
    lacks: Sequence[str] = ()
    held_to: str = "the bits"
    conflict: bool = True
    zero: Mapping[str, Any] = field(default_factory=dict)
    offloaded: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, engine: str) -> str:
        """What the table says."""
        return "" if engine in self.lacks else "refused" if engine in self.refused else "yes"


def _on(engines: Sequence[str], said: str) -> dict[str, str]:
    return dict.fromkeys(engines, said)


_FLAT = {"retain_weight": 0.5, "eps": 3.0, "warm_up_epochs": 0}  # of pdu, whose gradients are in no conflict: no GRU
_UNDIAL = {"method_options": {"beta": 3.0}, "learning_rate": 0.002}
_OTHER_STEP = {"method": "ga", "optim": "gru_adamw", "adam_epsilon": 1e-2}  # or rounding near 0 becomes a whole step
_NOT_ZERO = "optim, rectify_update, monitor_update: not with DeepSpeed"
_MORE_TO_KEEP = {"method": "ga", "retain_batch_size": 3, "warm_up_retain": 4, "gamma": 0.3}
_SETS = {"method": "ga", "retain_sets": ["facts"], "rectify_against": "ema", "gamma": 0.3}

ROWS = (
    Row(
        "`ga`, `wga`, `ceu`, `simnpo`",
        [{"method": name} for name in ("ga", "wga", "ceu", "simnpo")],
    ),
    Row(
        "`gd`, `wga_gd`, `satimp`, `simnpo_gd`, `undial_gd`: a term of the rows to keep",
        [*({"method": name} for name in ("gd", "wga_gd", "satimp", "simnpo_gd")), {"method": "undial_gd", **_UNDIAL}],
        conflict=False,
    ),
    Row("`idk`", [{"method": "idk"}, {"method": "idk", "stream": True}], held_to="weights"),
    Row(
        "`npo`, `npo_gd`, `dpo`: reference log-probabilities",
        [{"method": name} for name in ("npo", "npo_gd", "dpo")],
    ),
    Row(
        "`ga_kl`, `npo_kl`, `wga_kl`, `simnpo_kl`, `dpo_kl`, `undial`: the model before unlearning",
        [
            *({"method": name} for name in ("ga_kl", "npo_kl", "wga_kl", "simnpo_kl", "dpo_kl")),
            {"method": "undial", **_UNDIAL},
        ],
    ),
    Row(
        "`pdu`: a dual variable", [{"method": "pdu", "method_options": _FLAT, "learning_rate": 0.002, "rectify": False}]
    ),
    Row(
        "`rmu`",
        [{"method": "rmu"}, {"method": "rmu", "stream": True}],
        {"ZeRO-3": "rmu: not with ZeRO-3, whose modules expect to be run whole"},
    ),
    Row(
        "no GRU; `--monitor`", [{"method": "gd", "rectify": False}, {"method": "ga", "rectify": False, "monitor": True}]
    ),
    Row("`--stream`", [{"method": name, "stream": True} for name in ("ga", "npo_gd", "npo_kl")]),
    Row(
        "`--rectifier` of another name",
        [{"method": "ga", "rectifier": "gdr", "tau": 1.0}, {"method": "ga", "rectifier": "sago"}],
    ),
    Row("`--rectify-against retain`", [{"method": "ga", "rectify_against": "retain"}]),
    Row(
        "`--retain-sets`",
        [
            {**_SETS, "rectifier": "gem"},
            {**_SETS, "rectifier": "subspace"},
            {**_SETS, "rectifier": "gem", "stream": True},
        ],
    ),
    Row(
        "`--retain-batch-size`, `--warm-up-retain`",
        [{**_MORE_TO_KEEP, "tau": 5.0}, {**_MORE_TO_KEEP, "stream": True}],
    ),
    Row(
        "`--granularity` tensor, layer",
        [{"method": "ga", "granularity": name} for name in ("tensor", "layer")],
        _on(("ZeRO-1", "ZeRO-2"), "granularity: expected global with ZeRO-1 and 2"),
    ),
    Row(
        "`--ema-dtype` of 16 bits",
        [{"method": "ga", "dtype": "bfloat16", "ema_dtype": "bfloat16"}],
        _on(ZERO, "ema_dtype: expected float32 with DeepSpeed"),
        held_to="bfloat16",
    ),
    Row("`--optim gru_adamw`", [_OTHER_STEP], _on(ZERO, _NOT_ZERO)),
    Row(
        "`--rectify-update`",
        [{**_OTHER_STEP, "rectify_update": True, "update_metric": metric} for metric in ("euclidean", "adam")],
        _on(ZERO, _NOT_ZERO),
    ),
    Row(
        "`--monitor-update`",
        [{**_OTHER_STEP, "optim": "adamw_torch", "monitor_update": True}],
        _on(ZERO, _NOT_ZERO),
    ),
    Row("LoRA", [{"method": "npo_gd", "lora": True}, {"method": "ga_kl", "lora": True, "stream": True}]),
    Row(
        "a base in 4 bits, LoRA",
        [{"method": "npo_gd", "four_bit": "", "stream": True}],
        {
            "FSDP2": "load_in_4bit: not with FSDP, which leaves the weights in 4 bits whole",
            "ZeRO-3": "load_in_4bit: not with ZeRO-3, for which transformers loads no model in 4 bits",
        },
    ),
    Row("`--offload-reference`", [{"method": "npo_kl", "offload_reference": True, "stream": True}]),
    Row(
        "layers checkpointed (`--activation-checkpointing`; FSDP2 in its file)",
        [{"method": "npo_gd", "activation_checkpointing": True}],
    ),
    Row(
        "bf16",
        [{"method": "npo_gd", "bf16": True}],
        held_to="bfloat16",
        zero={"bf16": {"enabled": "auto"}},
    ),
    Row(
        "fp16",
        [{"method": "npo_gd", "scale": 1024.0}, {"method": "ga", "scale": 1024.0, "stream": True}],
        _on(ZERO, "fp16: not with DeepSpeed, whose loss scale is its own; use bf16"),
        zero={"fp16": {"enabled": True}},
    ),
    Row(
        "`--auto-find-batch-size`",
        [{"method": "npo_gd", "auto_find_batch_size": True}],
        _on(ENGINES[1:], "auto_find_batch_size: not with FSDP2 or DeepSpeed"),
    ),
    Row(
        "optimizer on the CPU (DeepSpeed's `offload_optimizer`)",
        [{"method": "npo_gd"}, {"method": "ga", "stream": True}],
        lacks=("DDP", "FSDP2"),
        offloaded={"offload_optimizer": {"device": "cpu"}},
    ),
    Row(
        "optimizer on NVMe",
        [{"method": "npo_gd"}],
        _on(ZERO, "zero_optimization.offload_optimizer: expected the device cpu or none, got nvme"),
        lacks=("DDP", "FSDP2"),
        offloaded={"offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}},
    ),
)

# Resuming in 4 processes what 2 have saved: how the refusal begins, else none.
RESUMED_ELSEWHERE = {
    "DDP": "",
    "FSDP2": "",
    **_on(ZERO, "expected 2 processes, as it was saved by, got 4; DeepSpeed does not cut up"),
}


def table() -> str:
    """As docs/larger-models.md has it. ZeRO-1 and 2 share a column where they never differ."""
    columns = [*ENGINES[:2], "ZeRO-1, 2", "ZeRO-3"]
    assert all(row.answer("ZeRO-1") == row.answer("ZeRO-2") for row in ROWS), "give ZeRO-1 and 2 a column each"
    lines = ["| | " + " | ".join(_HEADS.get(name, name) for name in columns) + " |"]
    lines.append("|" + " --- |" * (len(columns) + 1))
    for row in ROWS:
        cells = [row.answer("ZeRO-1" if name == "ZeRO-1, 2" else name) for name in columns]
        lines.append(_line([row.option, *cells]))
    of_resuming = ["refused" if said else "yes" for said in RESUMED_ELSEWHERE.values()]
    lines.append(_line(["resuming in as many processes", *["yes"] * len(columns)]))
    lines.append(_line(["resuming in another number of processes", *of_resuming[:2], *of_resuming[-2:]]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
