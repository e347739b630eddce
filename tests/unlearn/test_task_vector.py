"""Plain task vectors (TV), the file of a vector, its strengths, and options that cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from forgetting import TwoParameters, pair, vector
from tiny import llama, rows

from gru_fast.unlearn import task_vector
from gru_fast.unlearn.forget_set import ForgetSet
from gru_fast.unlearn.task_vector import TaskVector, TaskVectorOptions


def plain(model: Any = None, count: int = 5, **settings: Any) -> TaskVector:
    how = {"method": "tv", "learning_rate": 1e-2, "epochs": 2, "rows_per_step": 2, **settings}
    finetuned = how.pop("finetuned", None)
    return task_vector.plain(
        llama() if model is None else model,
        rows(count, seed=5),
        TaskVectorOptions(**how),
        pad_token_id=0,
        finetuned=finetuned,
        progress=False,
    )


# ---- TV --------------------------------------------------------------------------------------------------------------


def test_two_parameters_by_hand() -> None:
    """One row of gradient (-1, 0): one step of SGD at the full rate goes to (0.5, 0); minus 4 of it, to (-2, 0)."""
    model = TwoParameters()
    options = TaskVectorOptions("tv", optimizer="sgd", learning_rate=0.5, epochs=1)
    found = task_vector.plain(model, [pair(0, 1)], options, pad_token_id=0, progress=False)
    torch.testing.assert_close(found.tensors["w"], torch.tensor([0.5, 0.0]))  # not of norm 1
    assert torch.equal(model.w.detach(), torch.zeros(2))
    with found.subtracted(model) as set_strength:
        set_strength(4.0)
        torch.testing.assert_close(model.w.detach(), torch.tensor([-2.0, 0.0]))
    assert found.about["norm"] == pytest.approx(0.5)


def test_it_is_what_fine_tuning_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW over shuffled rows, its rate along a cosine, every row once an epoch."""
    seen: list[tuple[list[int], float]] = []
    step = ForgetSet.step

    def spy(self: Any, optimizer: Any, indices: Any, sums: Any = None) -> None:
        seen.append((list(indices), optimizer.param_groups[0]["lr"]))
        step(self, optimizer, indices, sums)

    monkeypatch.setattr(ForgetSet, "step", spy)
    model = llama()
    found = plain(model)
    assert [len(some) for some, _ in seen] == [2, 2, 1, 2, 2, 1]
    for epoch in (seen[:3], seen[3:]):
        assert sorted(row for some, _ in epoch for row in some) == [0, 1, 2, 3, 4]
    expected = [0.5e-2 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert [rate for _, rate in seen] == pytest.approx(expected)

    twin, data = llama(), rows(5, seed=5)
    optimizer = torch.optim.AdamW(twin.parameters(), weight_decay=0.0)
    for some, rate in seen:
        optimizer.param_groups[0]["lr"] = rate
        nll, count = torch.zeros(()), 0
        for row in (data[i] for i in some):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            scored = int((labels[:, 1:] != -100).sum())
            nll, count = nll + twin(input_ids=ids, labels=labels).loss * scored, count + scored
        optimizer.zero_grad()
        (nll / count).backward()
        optimizer.step()
    origin = dict(model.named_parameters())
    for name, param in twin.named_parameters():
        torch.testing.assert_close(found.tensors[name], (param - origin[name]).detach(), atol=1e-4, rtol=0)


def test_of_a_model_that_was_fine_tuned_elsewhere() -> None:
    other = llama(seed=1)
    found = plain(finetuned=other)
    origin = dict(llama().named_parameters())
    assert found.about["steps"] == 0
    for name, param in other.named_parameters():
        torch.testing.assert_close(found.tensors[name], (param - origin[name]).detach())
    with pytest.raises(ValueError, match="finetuned: expected the same parameters as the model's"):
        plain(finetuned=llama(num_hidden_layers=1))


def test_offload_is_the_same_bit_for_bit() -> None:
    one, two = plain(), plain(offload="cpu")
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_nothing_learned_is_said() -> None:
    with pytest.raises(RuntimeError, match="task vector: it is zero"):
        plain(finetuned=llama())


# ---- the file --------------------------------------------------------------------------------------------------------


def test_strengths_from_the_file(tmp_path: Path) -> None:
    """Each strength from theta_org, whatever came before it; afterwards the model is theta_org."""
    model = llama()
    vector(4, model=model).save(tmp_path / "vector.safetensors")
    found = TaskVector.load(tmp_path / "vector.safetensors")
    assert found.about["kept"] == 4
    origin = {name: param.detach().clone() for name, param in model.named_parameters()}
    with found.subtracted(model) as set_strength:
        for strength in (0.7, 5.0, 0.7, 0.0):
            set_strength(strength)
            for name, param in model.named_parameters():
                torch.testing.assert_close(param.detach(), origin[name] - strength * found.tensors[name])
    assert all(torch.equal(param, origin[name]) for name, param in model.named_parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vector.safetensors"]  # nothing temporary


def test_vector_of_another_model_is_refused() -> None:
    found = vector(2)
    with (
        pytest.raises(ValueError, match="task vector: it is of another model than this one"),
        found.subtracted(llama(seed=1)),
    ):
        pass


def test_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gru-fast tru makes it"):
        TaskVector.load(tmp_path / "vector.safetensors")
    (tmp_path / "broken").write_bytes(b"no")
    with pytest.raises(ValueError, match="no task vector of gru-fast, or broken off"):
        TaskVector.load(tmp_path / "broken")


# ---- options ---------------------------------------------------------------------------------------------------------


def test_defaults_of_the_methods() -> None:
    tru, tv = TaskVectorOptions(), TaskVectorOptions("tv")
    assert (tru.stg, tru.learning_rate, tru.steps, tru.partition, tru.title) == ([0.7], 1e-4, 5, "random", "TRU")
    assert (tv.stg, tv.learning_rate, tv.epochs, tv.rows_per_step, tv.title) == ([5.0], 1e-5, 10, 32, "TV")
    assert (tru.epochs, tv.steps) == (None, None)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="optimizer: expected adamw, sgd, got 'adam'") as caught:
        TaskVectorOptions(
            optimizer="adam", steps=0, epochs=3, stg=[math.nan], learning_rate=-1.0, save_minutes=0.0, num_units=0
        )
    said = str(caught.value)
    for text in (
        "steps: expected a whole number of at least 1, got 0",
        "epochs: no option of --method tru; leave it out",
        "stg: expected finite numbers, got nan",
        "learning_rate: expected a number above 0, got -1.0",
        "save_minutes: expected a number above 0, got 0.0",
        "num_units: expected a whole number of at least 1, got 0",
    ):
        assert text in said
    with pytest.raises(ValueError, match="epochs: with finetuned nothing is trained; leave it out"):
        TaskVectorOptions("tv", epochs=3, finetuned="learned")
    assert TaskVectorOptions("tv", finetuned="learned").learning_rate is None  # nor does the record say one
    with pytest.raises(ValueError, match="method: expected tru, tv, got 'npo'"):
        TaskVectorOptions("npo")


def test_attention_dropout_and_checkpointing() -> None:
    with pytest.raises(ValueError, match="gradient_checkpointing: expected a model without attention dropout"):
        vector(2, model=llama(attention_dropout=0.1), gradient_checkpointing=True)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="rows: expected at least one row to forget, got an empty set"):
        ForgetSet(llama(), [], TaskVectorOptions(), 0)
