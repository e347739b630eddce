"""Pairs that depend on nothing but (seed, epoch, row), and batches whose padding is told by lengths."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from gru_fast.data.pairs import PairCollator, UnlearnDataset
from gru_fast.data.sequences import Encoded, SequenceCollator, content_hash
from gru_fast.unlearn.references import ReferenceLogProbs


def row(*ids: int, prompt: int = 1) -> Encoded:
    return {"input_ids": list(ids), "labels": [-100] * prompt + list(ids[prompt:])}


FORGET = [row(1, 10 + i) for i in range(6)]
RETAIN = [row(2, 100 + i) for i in range(10)]


def idk(index: int, draw: int) -> Encoded:
    return row(3, 10 + index, 1000 + draw % 4, prompt=2)


def dataset(seed: int = 0) -> UnlearnDataset:
    return UnlearnDataset(FORGET, RETAIN, idk, seed=seed)


def drawn(data: UnlearnDataset) -> list[tuple[int, int]]:
    """Which retain row and which idk answer each row comes with."""
    items = [data[i] for i in range(len(data))]
    return [(item["retain"]["input_ids"][1] - 100, item["idk"]["input_ids"][2] - 1000) for item in items]


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_an_item() -> None:
    data = dataset()
    assert len(data) == 6
    assert data.parts == ("forget", "retain", "idk")
    item = data[4]
    assert item["forget"] == {"input_ids": [1, 14], "labels": [-100, 14]}
    assert item["retain"] in RETAIN
    assert item["idk"]["input_ids"][:2] == [3, 14]  # the question of this row
    assert item["idk"]["labels"][:2] == [-100, -100]


def test_parts_follow_the_data() -> None:
    assert UnlearnDataset(FORGET).parts == ("forget",)
    assert sorted(UnlearnDataset(FORGET, RETAIN)[0]) == ["forget", "retain"]
    assert sorted(UnlearnDataset(FORGET, idk=idk)[0]) == ["forget", "idk"]


def test_draws_never_change_between_versions() -> None:
    """A run begun with an older version resumes with the same pairs: these numbers must stay."""
    data = dataset(seed=42)
    assert drawn(data) == DRAWN_SEED_42_EPOCH_0
    data.set_epoch(1)
    assert drawn(data) == DRAWN_SEED_42_EPOCH_1


DRAWN_SEED_42_EPOCH_0 = [(7, 1), (4, 3), (7, 1), (7, 2), (1, 3), (8, 0)]
DRAWN_SEED_42_EPOCH_1 = [(7, 2), (4, 2), (7, 3), (4, 1), (9, 3), (9, 1)]


def test_draws_depend_on_seed_epoch_and_row_only() -> None:
    data, again = dataset(), dataset()
    backwards = [again[i] for i in reversed(range(6))][::-1]
    assert [data[i] for i in range(6)] == backwards
    first = drawn(data)
    data.set_epoch(3)
    third = drawn(data)
    assert third != first
    torch.manual_seed(99)  # the global generators have no say
    data.set_epoch(0)
    assert drawn(data) == first
    again.set_epoch(3)
    assert drawn(again) == third
    assert drawn(dataset(seed=1)) != first


def test_parts_are_drawn_independently() -> None:
    """With as many idk answers as retain rows, the two draws of a row differ."""
    data = UnlearnDataset([row(1, 2)] * 64, RETAIN, lambda _, draw: row(3, draw * 10 >> 63))
    pairs = [(item["retain"]["input_ids"][1] - 100, item["idk"]["input_ids"][1]) for item in data]  # type: ignore[attr-defined]
    assert sum(a == b for a, b in pairs) < 20  # 6.4 expected


def test_draws_are_uniform_over_rows_and_epochs() -> None:
    data = UnlearnDataset([row(1, 2)] * 200, RETAIN)
    counts: Counter[int] = Counter()
    for epoch in range(50):
        data.set_epoch(epoch)
        counts.update(data.encoded("retain", i)["input_ids"][1] for i in range(200))
    chi_square = sum((counts[100 + k] - 1000) ** 2 / 1000 for k in range(10))
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001
    # One row over the epochs.
    over_epochs = Counter(data.encoded("retain", 7, epoch)["input_ids"][1] for epoch in range(2000))
    assert sum((over_epochs[100 + k] - 200) ** 2 / 200 for k in range(10)) < 27.9


def test_idk_draws_are_nonnegative_and_wide() -> None:
    seen: list[int] = []

    def record(index: int, draw: int) -> Encoded:
        seen.append(draw)
        return row(3, index)

    data = UnlearnDataset(FORGET * 20, idk=record)
    for index in range(len(data)):
        data.encoded("idk", index)
    assert all(0 <= draw < 2**63 for draw in seen)
    assert max(seen) > 2**62
    assert len(set(seen)) == len(seen)


def test_encoded_of_another_epoch_leaves_the_current_one() -> None:
    data = dataset()
    data.set_epoch(2)
    second = [data.encoded("retain", i) for i in range(6)]
    data.set_epoch(0)
    assert [data.encoded("retain", i, epoch=2) for i in range(6)] == second
    assert data.epoch == 0


def test_indices_as_in_a_list() -> None:
    data = dataset()
    assert data[-1] == data[5]
    assert data[torch.tensor(2)] == data[2]  # type: ignore[index]
    for index in (6, -7):
        with pytest.raises(IndexError, match=rf"index: expected -6..5, got {index}"):
            data[index]
    assert len(list(data)) == 6  # type: ignore[call-overload]


# Forking a process with threads is deprecated from Python 3.12 on; DataLoader does it all the same.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_see_the_epoch(persistent: bool) -> None:
    data = dataset()
    loader = DataLoader(
        data, batch_size=2, num_workers=1, persistent_workers=persistent, collate_fn=PairCollator(pad_token_id=0)
    )
    for epoch in (0, 1, 4):
        data.set_epoch(epoch)
        got = [int(x) - 100 for batch in loader for x in batch["retain"]["input_ids"][:, 1]]
        assert got == [retained for retained, _ in drawn(data)]


def test_accelerate_sets_the_epoch() -> None:
    accelerate = pytest.importorskip("accelerate.data_loader")
    data = dataset()
    loader = accelerate.prepare_data_loader(DataLoader(data, batch_size=2, collate_fn=PairCollator(0)))
    loader.set_epoch(3)
    assert data.epoch == 3
    assert len(list(loader)) == 3


def test_copies_keep_what_they_give_out() -> None:
    data = UnlearnDataset(FORGET, RETAIN, seed=5)
    data.set_epoch(2)
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert other[3] == data[3]


def test_repr() -> None:
    assert repr(dataset(7)) == "UnlearnDataset(6 rows to forget, 10 to retain, idk answers, seed 7)"
    assert repr(UnlearnDataset(FORGET)) == "UnlearnDataset(6 rows to forget, seed 0)"


# ---- references ------------------------------------------------------------------------------------------------------


def test_attached_references_ride_along_for_their_parts() -> None:
    data = dataset()
    store = ReferenceLogProbs({content_hash(r): -float(i) for i, r in enumerate(FORGET)}, ["forget"], "model")
    assert data.attach(store) is data
    item = data[2]
    assert item["forget"]["reference_log_probs"] == -2.0
    assert "reference_log_probs" not in item["retain"]
    assert "reference_log_probs" not in item["idk"]
    assert "reference_log_probs" not in FORGET[2]  # the caller's rows are left alone
    batch = PairCollator(0)([data[1], data[4]])
    assert torch.equal(batch["forget"]["reference_log_probs"], torch.tensor([-1.0, -4.0]))
    assert "reference_log_probs" not in batch["retain"]
    assert "reference_log_probs" not in data.attach(None)[2]["forget"]


def test_references_of_other_data_are_noticed() -> None:
    store = ReferenceLogProbs({content_hash(FORGET[0]): -1.0}, ["forget"], "model")
    data = dataset().attach(store)
    assert data[0]["forget"]["reference_log_probs"] == -1.0
    with pytest.raises(
        ValueError, match=r"reference_log_probs: none for a sequence of 2 tokens among the 1 kept; they be"
    ):
        data[1]


# ---- wrong data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forget", "retain", "message"),
    [
        ([], None, r"^forget: expected at least one row, got an empty set"),
        (FORGET, [], r"^retain: expected at least one row, got an empty set, or None"),
        ([*FORGET, row(1, 2, 3, prompt=3)], None, r"^forget\[6\]: none of its 3 tokens is scored; raise max_length"),
        (FORGET, [{"input_ids": [1, 2], "labels": [1, -100]}], r"^retain\[0\]: none of its 2 tokens is scored"),
        ([row(prompt=0)], None, r"^forget\[0\]: none of its 0 tokens is scored"),
        (
            [{"input_ids": [1, 2], "labels": [1]}],
            None,
            r"^forget\[0\]: expected one label per token, got 1 labels for 2",
        ),
        (
            [{"question": "?", "answer": "!"}],
            None,
            r"^forget\[0\]: expected input_ids and labels, got question, answer",
        ),
    ],
)
def test_wrong_rows(forget: list[Any], retain: list[Any] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnlearnDataset(forget, retain)


def test_wrong_idk_rows_and_unknown_parts() -> None:
    data = UnlearnDataset(FORGET, idk=lambda index, draw: row(1, 2, prompt=2))
    with pytest.raises(ValueError, match=r"^idk\(3, ...\): none of its 2 tokens is scored"):
        data[3]
    with pytest.raises(ValueError, match=r'^part: expected one of forget, idk, got "retain"; give UnlearnDataset'):
        data.encoded("retain", 0)


# ---- collating -------------------------------------------------------------------------------------------------------


def test_right_padding() -> None:
    batch = SequenceCollator(pad_token_id=9)([row(1, 2, 3), row(4, 5), row(6, 7, 8, 9, prompt=2)])
    assert batch["input_ids"].tolist() == [
        [1, 2, 3, 9],
        [4, 5, 9, 9],
        [6, 7, 8, 9],  # ends with a real 9
    ]
    # The trap: pad may be the end-of-sequence token, so the mask must come from the lengths.
    assert batch["attention_mask"].tolist() == [
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 1],
    ]
    assert batch["labels"].tolist() == [
        [-100, 2, 3, -100],
        [-100, 5, -100, -100],
        [-100, -100, 8, 9],  # scored as well
    ]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_left_padding_for_generation() -> None:
    batch = SequenceCollator(0, padding_side="left")([{"input_ids": [1, 2, 0]}, {"input_ids": [3]}])
    assert batch["input_ids"].tolist() == [[1, 2, 0], [0, 0, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert "labels" not in batch


def test_left_padding_moves_labels_too() -> None:
    batch = SequenceCollator(0, padding_side="left")([row(1, 2, 3), row(4, 5)])
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, -100, 5]]


def test_pairs_are_padded_part_by_part() -> None:
    items = [
        {"forget": row(1, 2, 3), "retain": {**row(4, 5), "reference_log_probs": -1.5}},
        {"forget": row(6, 7), "retain": {**row(8, 9), "reference_log_probs": -2.5}},
    ]
    batch = PairCollator(pad_token_id=0)(items)
    assert list(batch) == ["forget", "retain"]
    assert batch["forget"]["input_ids"].tolist() == [[1, 2, 3], [6, 7, 0]]
    assert batch["retain"]["input_ids"].tolist() == [[4, 5], [8, 9]]
    references = batch["retain"]["reference_log_probs"]
    assert references.dtype == torch.float32
    assert references.tolist() == [-1.5, -2.5]
    assert "reference_log_probs" not in batch["forget"]


def test_other_keys_are_left_out() -> None:
    assert set(SequenceCollator(0)([{**row(1, 2), "index": 3}])) == {"input_ids", "attention_mask", "labels"}  # type: ignore[list-item]


def test_tensors_and_empty_prompts_as_rows() -> None:
    batch = SequenceCollator(0)([{"input_ids": torch.tensor([1, 2])}, {"input_ids": []}])
    assert batch["input_ids"].tolist() == [[1, 2], [0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 0]]


def test_collators_travel_to_workers() -> None:
    for collator in (PairCollator(3), SequenceCollator(3, "left")):
        assert pickle.loads(pickle.dumps(collator)) == collator


def test_wrong_collation() -> None:
    with pytest.raises(ValueError, match=r"^rows: expected at least one sequence"):
        SequenceCollator(0)([])
    with pytest.raises(ValueError, match=r"^items: expected at least one item"):
        PairCollator(0)([])
    with pytest.raises(
        ValueError, match=r'^rows\[1\]: expected "labels" as in the other rows of the batch, got input_ids'
    ):
        SequenceCollator(0)([row(1, 2), {"input_ids": [1]}])
    with pytest.raises(ValueError, match=r"^rows\[1\]: expected one label per token, got 1 labels for 2 tokens"):
        SequenceCollator(0)([row(1, 2), {"input_ids": [1, 2], "labels": [1]}])
    with pytest.raises(ValueError, match=r"^items\[1\]: expected the parts forget, retain, got forget"):
        PairCollator(0)([{"forget": row(1, 2), "retain": row(1, 2)}, {"forget": row(1, 2)}])


@pytest.mark.parametrize("pad", [None, "<pad>", True])
@pytest.mark.parametrize("collator", [PairCollator, SequenceCollator])
def test_a_tokenizer_without_pad_token_is_explained(collator: Any, pad: Any) -> None:
    with pytest.raises(TypeError, match=r"^pad_token_id: expected an integer, got .*give the tokenizer a pad token"):
        collator(pad)


def test_padding_side() -> None:
    with pytest.raises(ValueError, match=r'^padding_side: expected "right" or "left", got \'both\''):
        SequenceCollator(0, "both")  # type: ignore[arg-type]
