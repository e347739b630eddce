"""TRU: worked by hand, against the direct way (every unit's rest by itself), its sign, going on after a stop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import forgetting
import pytest
import torch
from forgetting import TwoParameters, options, pair, vector
from tiny import llama, rows
from torch.nn import functional as F

from gru_fast.unlearn import tru
from gru_fast.unlearn.forget_set import ForgetSet
from gru_fast.unlearn.task_vector import TaskVector

SMALL = 1 / math.sqrt(2)


def same(left: TaskVector, right: TaskVector) -> bool:
    return left.tensors.keys() == right.tensors.keys() and all(
        torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors
    )


# ---- units -----------------------------------------------------------------------------------------------------------


def test_units() -> None:
    assert tru.units_of(3) == [[0], [1], [2]]
    assert tru.units_of(7, 3, "contiguous") == [[0, 1], [2, 3], [4, 5, 6]]  # the last takes the remainder
    assert tru.units_of(7, 3) == tru.units_of(7, 3, "random")
    drawn = tru.units_of(7, 3, "random", seed=1)
    assert [len(unit) for unit in drawn] == [2, 2, 3]
    assert sorted(row for unit in drawn for row in unit) == list(range(7))
    assert drawn == tru.units_of(7, 3, "random", seed=1) != tru.units_of(7, 3, "random", seed=2)
    for count in (0, 8):
        with pytest.raises(ValueError, match=f"num_units: expected 1 to 7, the rows of the forget set, got {count}"):
            tru.units_of(7, count)


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_two_parameters_by_hand() -> None:
    """Gradients at 0 are -phi / 2 for a label 1: g_0 = (-1, 0), g_1 = (-1, -1). A step of SGD: T = -rate * g.

    Unit 0: <T, r> = -rate, |r|^2 = 2, T~ = rate * ((1, 0) - (1, 1) / 2), along (1, -1).
    Unit 1: <T, r> = -rate, |r|^2 = 1, T~ = rate * ((1, 1) - (1, 0)), along (0, 1).
    """
    model = TwoParameters()
    found = tru.rectified(
        model, [pair(0, 1), pair(1, 1)], options(steps=1, learning_rate=0.5), pad_token_id=0, progress=False
    )
    expected = torch.tensor([SMALL / 2, (1 - SMALL) / 2])
    torch.testing.assert_close(found.tensors["w"], expected, atol=1e-6, rtol=0)
    assert torch.equal(model.w.detach(), torch.zeros(2))  # theta_org again
    assert (found.about["units"], found.about["kept"], found.about["projected"]) == (2, 2, 2)
    first, second = found.about["log"]
    assert first["cos"] == pytest.approx(-SMALL)
    assert (first["norm"], first["norm_rest"]) == pytest.approx((0.5, math.sqrt(2)))
    assert second["norm_rectified"] == pytest.approx(0.5)
    assert first["loss"] == pytest.approx(math.log(2))


def test_no_conflict_is_left_as_it_is() -> None:
    """Labels 1 and 0: g_0 = (-1, 0), g_1 = (1, 1); T_0 = (1, 0) has <T, r> > 0, as has T_1 = (-1, -1)."""
    found = tru.rectified(TwoParameters(), [pair(0, 1), pair(1, 0)], options(steps=1), pad_token_id=0, progress=False)
    torch.testing.assert_close(found.tensors["w"], torch.tensor([1 - SMALL, -SMALL]) / 2, atol=1e-6, rtol=0)
    assert found.about["projected"] == 0


def test_units_without_a_direction_are_dropped_from_the_mean() -> None:
    """Two rows alike, each a unit: T and r are exactly opposite."""
    alike = [pair(1, 1), pair(1, 1)]
    with pytest.raises(RuntimeError, match=r"none of the 2 units gave a task vector \(0 with NaN or Inf, 2 zero\)"):
        tru.rectified(TwoParameters(), alike, options(steps=1), pad_token_id=0, progress=False)
    # A row alone has no rest that could oppose it.
    model = TwoParameters()
    found = tru.rectified(model, [pair(0, 1)], options(steps=1), pad_token_id=0, progress=False)
    torch.testing.assert_close(found.tensors["w"], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    assert found.about["log"][0]["norm_rest"] == 0


# ---- against the direct way ------------------------------------------------------------------------------------------


def mean_nll(model: Any, some: list[Any]) -> torch.Tensor:
    """Mean over the label tokens of some rows, one row at a time."""
    losses = []
    for row in some:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        losses.append(F.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="none", ignore_index=-100))
    count = sum(label != -100 for row in some for label in row["labels"][1:])
    return torch.cat(losses).sum() / count


def flat_gradient(model: Any, some: list[Any]) -> torch.Tensor:
    grads = torch.autograd.grad(mean_nll(model, some), list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def flat(model: Any) -> torch.Tensor:
    return torch.cat([param.detach().flatten() for param in model.parameters()])


def directly(data: list[Any], units: list[list[int]], steps: int, rate: float, sign: float = 1.0) -> torch.Tensor:
    """The mean in float64, each unit's rest forwarded anew; ``sign`` -1 is the paper's Eq. 11."""
    found = []
    for unit in units:
        model = llama(dtype=torch.float64)
        rest = flat_gradient(model, [row for i, row in enumerate(data) if i not in unit])
        origin = flat(model)
        for _ in range(steps):
            step = flat_gradient(model, [data[i] for i in unit])
            torch.nn.utils.vector_to_parameters(flat(model) - rate * step, model.parameters())
        task = flat(model) - origin
        dot = float(task @ rest) * sign
        task += sign * max(-dot, 0.0) / float(rest @ rest) * rest
        found.append(task / task.norm())
    return torch.stack(found).mean(dim=0)


@pytest.mark.parametrize(("num_units", "partition"), [(None, "contiguous"), (3, "contiguous"), (3, "random")])
def test_leave_one_out_is_exact(num_units: int | None, partition: str) -> None:
    data = rows(7, seed=5)
    found = vector(7, num_units=num_units, partition=partition, rows_at_a_time=2)
    units = tru.units_of(7, num_units, partition, seed=42)
    model = llama()
    ours = torch.cat([found.tensors[name].flatten() for name, _ in model.named_parameters()]).double()
    expected = directly(data, units, steps=2, rate=0.05)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
    assert found.about["projected"] > 0
    other = directly(data, units, steps=2, rate=0.05, sign=-1.0)  # Eq. 11's sign: acts where nothing is wrong
    assert float((ours - other).norm()) > 100 * float((ours - expected).norm())


def test_loss_of_the_rest_does_not_rise_to_first_order() -> None:
    """Unit 0 of 7 alone is unlearned a little: what the others lose by that is gone."""
    data = rows(7, seed=5)
    rises: dict[str, float] = {}
    for name in ("rectified", "plain"):
        model = llama(dtype=torch.float32)
        loop = tru._Loop(model, data, options(steps=1), 0, None, progress=False)
        if name == "rectified":
            loop.find_total()
        loop.own_units = range(1)
        loop.run()
        found = loop.result()
        model.double()
        before = mean_nll(model, data[1:]).detach()
        origin = flat(model)
        direction = torch.cat([found.tensors[name].flatten() for name, _ in model.named_parameters()])
        torch.nn.utils.vector_to_parameters(origin - 0.01 * direction, model.parameters())
        rises[name] = float(mean_nll(model, data[1:]).detach() - before) / 0.01
    assert rises["plain"] > 0.3  # a rate of rise
    assert abs(rises["rectified"]) < 0.01 * rises["plain"]


def test_own_gradient_is_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """n (T + 1) rows backward in all: once for the total, then a row for each step."""
    from gru_fast.unlearn.forget_set import ForgetSet

    counts = []
    backward = ForgetSet._backward
    monkeypatch.setattr(ForgetSet, "_backward", lambda self, some: counts.append(len(some)) or backward(self, some))
    vector(4, steps=3, rows_at_a_time=4)
    assert counts == [4, *[1] * (4 * 3)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_offload_is_the_same_bit_for_bit(optimizer: str) -> None:
    model = llama()
    before = {name: param.clone() for name, param in model.named_parameters()}
    there = vector(4, model=model, optimizer=optimizer, offload="cpu", learning_rate=1e-3)
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
    assert same(there, vector(4, optimizer=optimizer, learning_rate=1e-3))


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"bf16": True}, {"rows_at_a_time": 1}])
def test_variants_agree(settings: dict[str, Any]) -> None:
    one, two = vector(4, num_units=2), vector(4, num_units=2, **settings)
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(two.tensors[name], tensor, atol=0.02 if "bf16" in settings else 1e-5, rtol=0.0)


def test_sixteen_bit_weights() -> None:
    model = llama(dtype=torch.bfloat16)
    found = vector(4, model=model, num_units=2, rows_at_a_time=1, learning_rate=0.5)
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}
    norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in found.tensors.values()))
    assert 0.3 < norm <= 1.001


def test_sixteen_bit_gradients_of_several_passes_are_added_up_in_float32() -> None:
    forget = ForgetSet(llama(dtype=torch.bfloat16), rows(3, seed=5), options(rows_at_a_time=1), 0)
    found, nll = forget.gradient([0, 1, 2])
    alone = [forget.gradient([row]) for row in range(3)]
    assert nll == pytest.approx(sum(one[1] for one in alone))
    for i, grad in enumerate(found):
        parts: list[Any] = [one[0][i] for one in alone]
        assert {part.dtype for part in parts} == {torch.bfloat16}
        assert grad is not None
        assert torch.equal(grad, parts[0].float() + parts[1] + parts[2])


# ---- going on after a stop -------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``stop_at(3)``: the loop stops when unit 3 begins; returns the units that were begun."""
    whole, begun = tru._Loop._unit, []

    def arm(at: int | None) -> list[int]:
        def unit(self: Any, index: int) -> Any:
            if index == at:
                raise StoppedError
            begun.append(index)
            return whole(self, index)

        begun.clear()
        monkeypatch.setattr(tru._Loop, "_unit", unit)
        return begun

    return arm


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_is_the_same_bit_for_bit(tmp_path: Path, stop_at: Any, optimizer: str) -> None:
    unbroken = vector(optimizer=optimizer)
    stop_at(3)
    with pytest.raises(StoppedError):
        vector(state=tmp_path, save_units=2, optimizer=optimizer)
    begun = stop_at(None)
    resumed = vector(state=tmp_path, save_units=2, optimizer=optimizer)
    assert begun == [2, 3, 4, 5]  # two were kept
    assert same(resumed, unbroken)
    clean = [{k: v for k, v in entry.items() if k != "seconds"} for entry in resumed.about["log"]]
    assert clean == [{k: v for k, v in entry.items() if k != "seconds"} for entry in unbroken.about["log"]]


def test_time_is_a_reason_to_keep(tmp_path: Path, stop_at: Any) -> None:
    stop_at(2)
    with pytest.raises(StoppedError):
        vector(state=tmp_path, save_minutes=1e-9)
    begun = stop_at(None)
    vector(state=tmp_path)
    assert begun == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": 1}, "the model is another"),
        ({"count": 5}, "the forget set, or its tokens, are others"),
        ({"steps": 3}, "steps is 2 there, 3 now"),
        ({"learning_rate": 0.1}, "learning_rate is 0.05 there, 0.1 now"),
        ({"partition": "contiguous"}, "partition is 'random' there, 'contiguous' now"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, stop_at: Any, changes: dict[str, Any], said: str) -> None:
    stop_at(2)
    with pytest.raises(StoppedError):
        vector(state=tmp_path, save_units=1)
    stop_at(None)
    if "model" in changes:
        changes = {"model": llama(seed=changes["model"])}
    with pytest.raises(ValueError, match=said):
        vector(state=tmp_path, **changes)


def test_what_was_cut_off_is_refused(tmp_path: Path, stop_at: Any) -> None:
    stop_at(2)
    with pytest.raises(StoppedError):
        vector(state=tmp_path, save_units=1)
    file = tmp_path / "units-0.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"units-0.safetensors: no task vector of gru-fast, or broken off"):
        vector(state=tmp_path)


# ---- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_share_the_units(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(forgetting.in_processes, args=(2, str(tmp_path)), nprocs=2)
    shared, alone = TaskVector.load(tmp_path / "vector.safetensors"), vector(5)
    assert [entry["unit"] for entry in shared.about["log"]] == [0, 1, 2, 3, 4]
    assert shared.about["source"] == alone.about["source"]
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(shared.tensors[name], tensor, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="processes is 2 there, 1 now"):
        vector(5, state=tmp_path / "state")


# ---- wrong uses ------------------------------------------------------------------------------------------------------


def test_diverged_model_is_said() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="the gradient of the forget set has NaN or Inf in"):
        vector(3, model=model)


def test_one_bad_unit_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit whose steps diverge adds nothing; the mean is of the others."""
    step = ForgetSet.step

    def diverging(self: Any, optimizer: Any, indices: Any, sums: Any = None) -> None:
        step(self, optimizer, indices, sums)
        if indices == [1]:
            with torch.no_grad():
                self.params[0].fill_(math.inf)

    monkeypatch.setattr(ForgetSet, "step", diverging)
    found = vector(3, steps=1)
    assert (found.about["kept"], found.about["nonfinite"]) == (2, 1)
    assert found.about["log"][1]["norm"] is None  # Inf is not JSON
    assert all(bool(tensor.isfinite().all()) for tensor in found.tensors.values())
    assert tru.about_units(found.about).startswith("2 of 3 units, ")
    one = vector(2, steps=1)  # of a single unit, and so of norm 1: the bad one is not counted
    assert math.sqrt(sum(float(tensor.square().sum()) for tensor in one.tensors.values())) == pytest.approx(1, abs=1e-5)


def test_tv_is_not_for_this_loop() -> None:
    with pytest.raises(ValueError, match='method: expected "tru", got "tv"'):
        tru.rectified(llama(), rows(2, 0), options(method="tv", steps=None), pad_token_id=0)
