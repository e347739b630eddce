"""bench/scaling_model.py: its arithmetic by hand, what must grow and what must not, the run that checks its shape."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, as scripts in bench/ see it: their folder comes first on the path."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("scaling_model")


def test_sizes_are_the_published_ones(model: Any) -> None:
    sizes = {name: each.numel for name, each in model.MODELS.items()}
    assert sizes == {"7b": 6_738_415_616, "70b": 68_976_648_192, "405b": 405_853_388_800}
    # Llama-2-7B's layer: four square attention matrices, three of the MLP, two norms
    assert model.MODELS["7b"].numel_of_layer == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096


def test_passes_by_hand(model: Any) -> None:
    """bfloat16 g and e: 7 accesses of 2 bytes; with stream r is not kept, and g and e are read once more."""
    assert model.pass_bytes(10, model.Setup(param_dtype="bfloat16")) == 10 * 7 * 2
    assert model.pass_bytes(10, model.Setup(param_dtype="bfloat16", ema_dtype="float32")) == 10 * (4 * 2 + 3 * 4)
    assert model.pass_bytes(10, model.Setup(param_dtype="bfloat16", stream=True)) == 10 * 8 * 2


def test_links_by_hand(model: Any) -> None:
    speeds = model.Speeds(
        node_gb_s=100.0, network_gb_s=10.0, link_share=0.5, node_us=1.0, network_us=10.0, gpus_per_node=4
    )
    assert model.ring_seconds(1e9, 1, speeds) == 0.0
    assert model.ring_seconds(1e9, 4, speeds) == pytest.approx(0.75 / 50 + 2e-6)  # inside the node, two hops
    # Two nodes: half of it comes over four network links of 10 GB/s, of which 5 are reached; two hops and one.
    assert model.ring_seconds(1e9, 8, speeds) == pytest.approx(0.5 / 20 + 12e-6)
    assert model.all_reduce_of_sums(8, speeds) == pytest.approx(24e-6)


def test_a_step_by_hand(model: Any) -> None:
    seven, setup, speeds = model.MODELS["7b"], model.Setup(tokens_per_gpu=1000), model.Speeds()
    found = model.predict(seven, 8, setup, speeds)
    assert found.compute == pytest.approx(8 * 6_738_415_616 * 1000 / (989e12 * 0.4))
    assert found.plain == max(found.compute, found.communication)
    assert found.rectified == pytest.approx(2 * found.plain + found.passes + found.sums)
    assert found.passes == pytest.approx(6_738_415_616 / 8 * 7 * 4 / 3000e9 * 1.13)
    state = 6_738_415_616 // 8
    assert found.rectified_memory - found.plain_memory == state * (4 + 4)  # e and retain gradients, float32
    streamed = model.predict(seven, 8, model.Setup(tokens_per_gpu=1000, stream=True), speeds)
    assert streamed.rectified_memory - streamed.plain_memory == state * 4


def test_what_grows_with_the_gpus(model: Any) -> None:
    for each in model.MODELS.values():
        found = [model.predict(each, 2**k, model.Setup(), model.Speeds()) for k in range(3, 11)]
        for fewer, more in itertools.pairwise(found):
            assert fewer.passes > more.passes
            assert fewer.rectified_memory > more.rectified_memory
            assert fewer.sums <= more.sums
        assert all(p.overhead < 0.01 for p in found)


def test_what_engines_exchange_by_hand(model: Any) -> None:
    """Of a step with two losses, in bf16, by each of 4: 3/4 of what is gathered or scattered, 6/4 of reduced."""
    sent = {name: model.exchange_of(name, 2).sent(4) for name in model.ENGINES}
    assert sent == {
        "ddp": 2 * 4 * 1.5,  # gradients in float32
        "fsdp2": 2 * (2 * 2 + 4) * 0.75,  # weights forward and backward, gradients in float32
        "zero1": 2 * 2 * 1.5 + 2 * 0.75,  # gradients in bf16, and once the new weights
        "zero2": 2 * 2 * 1.5 + 2 * 0.75,
        "zero3": 2 * (2 * 2 + 2) * 0.75,
    }
    assert all(model.exchange_of(name, 2).sent(1) == 0 for name in model.ENGINES)


def test_engines_by_hand(model: Any) -> None:
    seven, setup, speeds = model.MODELS["7b"], model.Setup(tokens_per_gpu=1000), model.Speeds()
    numel = seven.numel
    found = {name: model.predict(seven, 8, setup, speeds, name) for name in model.ENGINES}
    added = {name: p.rectified_memory - p.plain_memory for name, p in found.items()}
    assert added == {**dict.fromkeys(found, numel // 8 * 8), "ddp": numel * 8}  # e and retain gradients
    assert found["zero2"].plain_memory < found["zero1"].plain_memory < found["ddp"].plain_memory
    assert found["ddp"].sums == 0.0  # every process has them
    assert found["ddp"].passes == pytest.approx(8 * found["fsdp2"].passes)
    # The new weights are gathered once, behind nothing, and not for each loss.
    gathered = model.ring_seconds(2 * numel, 8, speeds)
    zero2 = found["zero2"]
    assert zero2.plain - found["zero3"].plain == pytest.approx(gathered)
    assert zero2.rectified - zero2.passes - zero2.sums == pytest.approx(2 * zero2.plain - gathered)
    in_sixteen = model.Setup(tokens_per_gpu=1000, param_dtype="bfloat16")
    assert model.memory(seven, 8, in_sixteen, "zero3")[0] == found["zero3"].plain_memory  # float32 weights all the same
    assert model.memory(seven, 8, in_sixteen, "fsdp2")[0] < found["fsdp2"].plain_memory


def test_an_ema_is_float32_or_of_the_parameters(model: Any) -> None:
    assert model.Setup(param_dtype="float32", ema_dtype="bfloat16").ema_dtype == "float32"
    with pytest.raises(ValueError, match="ema_dtype: expected float32 or bfloat16, got float64"):
        model.Setup(ema_dtype="float64")


def test_measured_passes(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    forms = [{"name": "gru_fast", "floor_ratio": [0.9, 1.2, 1.3]}, {"name": "foreach", "floor_ratio": [2, 2, 2]}]
    file.write_text(json.dumps({"cells": [{"forms": forms}, {"forms": forms[1:]}]}))
    assert model.measured_passes(file) == 1.2
    file.write_text(json.dumps({"cells": []}))
    with pytest.raises(ValueError, match=r"no timings of gru_fast"):
        model.measured_passes(file)


def test_the_script_says_what_it_assumes(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    model.main(["--models", "70b", "--gpus", "8", "64", "--json", str(out)])
    said = capsys.readouterr().out
    for name in (*model.Setup.__dataclass_fields__, *model.Speeds.__dataclass_fields__):
        assert f"  {name} " in said
    assert "| 70b x 8 " in said
    assert "!" in next(line for line in said.splitlines() if "70b x 8 " in line)
    assert "!" not in next(line for line in said.splitlines() if "70b x 64 " in line)
    assert [p["gpus"] for p in json.loads(out.read_text())["predictions"]] == [8, 64]


def test_processes_follow_the_models_shape(model: Any) -> None:
    """Two exchanges a step, of the sums and of the written |g|, for any number of processes. Times are not asserted."""
    weak_scaling = importlib.import_module("weak_scaling")
    points = weak_scaling.run((1, 2), numel=4000, rounds=2)
    assert [(p.processes, p.collectives) for p in points] == [(1, 2), (2, 2)]
    assert all(math.isfinite(p.predicted) and p.sharded > 0 for p in points)
    assert "| 2 " in weak_scaling.describe(points)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_bytes_sent_are_those_of_this_process_sockets(model: Any) -> None:
    wire = importlib.import_module("wire")
    before = wire.bytes_sent()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with theirs:
            ours.sendall(b"x" * 1000)
            assert len(theirs.recv(1000, socket.MSG_WAITALL)) == 1000
            theirs.sendall(b"y" * 20)
            assert wire.bytes_sent() - before == 1020


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_engines_send_what_the_model_says(model: Any) -> None:
    """Collectives counted at the sockets, to 3%: what is small or said once (norms, logs, the statistics) is on top."""
    pytest.importorskip("deepspeed", reason="needs the extra gru_fast[deepspeed]")
    wire = importlib.import_module("wire")
    found = wire.run()
    assert [(s.engine, s.rectified) for s in found] == [(e, r) for e in model.ENGINES for r in (False, True)]
    for sent in found:
        assert sent.measured == pytest.approx(sent.predicted, rel=0.03), sent
    assert "| zero3 " in wire.describe(found)
