"""The chunk planner: sizes -> chunks and launches. Pure arithmetic, so beyond what fits into memory as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gru_fast.core.load import core

pytestmark = pytest.mark.core

KINDS = (0, 3, 4, 6, 8)  # 3 * dtype of g + dtype of e: the pairs there are
TILE = 65536
MAX_CPU_CHUNKS = 8192

sizes = st.integers(0, 3) | st.integers(0, 300_000) | st.integers(0, 2**40)
rows_strategy = st.lists(st.tuples(sizes, st.sampled_from(KINDS)), max_size=60)
chunk_sizes = st.sampled_from([1 << 14, TILE, 1 << 20, 1 << 24])

Launches = list[dict[str, Any]]


def divide_up(a: int, b: int) -> int:
    return -(-a // b)


def check_launches(launches: Launches, numels: Sequence[int], kinds: Sequence[int], max_rows: int) -> None:
    """Everything a pass relies on; ``max_rows`` 0: no limit."""
    seen: list[int] = []
    for launch in launches:
        ids, chunk_numel = launch["ids"], launch["chunk_numel"]
        assert ids, "an empty launch"
        assert max_rows == 0 or len(ids) <= max_rows
        assert {kinds[i] for i in ids} == {launch["kind"]}
        assert launch["numel"] == sum(numels[i] for i in ids)
        chunks = [divide_up(numels[i], chunk_numel) for i in ids]
        assert min(chunks) > 0, "an empty row"
        assert launch["first_chunks"] == [sum(chunks[:k]) for k in range(len(chunks))]
        assert launch["num_chunks"] == sum(chunks)
        seen += ids
    assert sorted(seen) == [i for i, numel in enumerate(numels) if numel > 0], "rows lost, doubled or empty"


@settings(deadline=None, max_examples=200)
@given(rows=rows_strategy, chunk_numel=chunk_sizes, max_rows=st.integers(1, 12))
def test_launches(rows: list[tuple[int, int]], chunk_numel: int, max_rows: int) -> None:
    numels, kinds = [n for n, _ in rows], [k for _, k in rows]
    # Keep below the 2^32 chunks of a launch.
    numels = [min(n, chunk_numel << 24) for n in numels]
    launches = core.plan(numels, kinds, chunk_numel, max_rows)
    check_launches(launches, numels, kinds, max_rows)
    assert all(launch["chunk_numel"] == chunk_numel for launch in launches)
    for kind in KINDS:
        full = sum(1 for n, k in zip(numels, kinds, strict=True) if k == kind and n > 0)
        found = [launch for launch in launches if launch["kind"] == kind]
        assert len(found) == divide_up(full, max_rows), f"kind {kind}: more launches than needed"
        assert [i for launch in found for i in launch["ids"]] == sorted(i for launch in found for i in launch["ids"])


@settings(deadline=None, max_examples=200)
@given(
    numels=st.lists(st.integers(0, 2000), min_size=1, max_size=20).filter(any),
    chunk_numel=st.sampled_from([1, 7, 64, 512, 4096]),
)
def test_chunks_cover_every_element_once(numels: list[int], chunk_numel: int) -> None:
    (launch,) = core.plan(numels, [0] * len(numels), chunk_numel, len(numels))
    position = dict.fromkeys(launch["ids"], 0)
    for chunk in range(launch["num_chunks"]):
        row, begin, end = core.locate_chunk(numels, chunk_numel, chunk)
        assert begin == position[row], f"chunk {chunk} of row {row}: starts at {begin}, expected {position[row]}"
        assert 0 < end - begin <= chunk_numel
        assert end - begin == chunk_numel or end == numels[row], "a short chunk that is not the last of its row"
        position[row] = end
    assert position == {i: numel for i, numel in enumerate(numels) if numel > 0}


@pytest.mark.parametrize("numel", [2**31 - 1, 2**31, 2**31 + 1, 2**32 + 5, 2**40 + 3])
def test_beyond_32_bits(numel: int) -> None:
    numels = [5, numel, 0, 70_000]
    (launch,) = core.plan(numels, [0] * 4, TILE, 10)
    check_launches([launch], numels, [0] * 4, 10)
    assert launch["numel"] == numel + 70_005
    last = divide_up(numel, TILE)  # one chunk goes to the row before
    assert core.locate_chunk(numels, TILE, 1) == (1, 0, TILE)
    assert core.locate_chunk(numels, TILE, last) == (1, (last - 1) * TILE, numel)
    assert core.locate_chunk(numels, TILE, last + 1) == (3, 0, TILE)
    assert core.locate_chunk(numels, TILE, last + 2) == (3, TILE, 70_000)


def test_many_tensors_of_all_kinds() -> None:
    count = 10_000
    numels = [(i * 7919) % 300_000 if i % 11 else 0 for i in range(count)]
    kinds = [KINDS[i % 3] for i in range(count)]
    for max_rows in (1, 799, 800, count):
        launches = core.plan(numels, kinds, TILE, max_rows)
        check_launches(launches, numels, kinds, max_rows)


@pytest.mark.parametrize("numels", [[0, 5, 6], [5, 0, 6], [5, 6, 0], [0, 0, 5, 0, 0, 6, 0]])
@pytest.mark.parametrize("max_rows", [1, 2])
def test_empty_rows_are_skipped_wherever_they_are(numels: list[int], max_rows: int) -> None:
    launches = core.plan(numels, [0] * len(numels), 64, max_rows)
    check_launches(launches, numels, [0] * len(numels), max_rows)
    assert len(launches) == 2 // max_rows  # the last launch is not lost either


@pytest.mark.parametrize("numels", [[], [0], [0, 0, 0]])
def test_nothing_to_do(numels: list[int]) -> None:
    assert core.plan(numels, [0] * len(numels), TILE, 10) == []
    assert core.plan(numels, [0] * len(numels), 0, 0) == []


@settings(deadline=None, max_examples=100)
@given(rows=rows_strategy)
def test_limits_of_the_cpu(rows: list[tuple[int, int]]) -> None:
    """Chunks are whole rounding tiles, and their number (the scratch) stays bounded."""
    numels, kinds = [n for n, _ in rows], [k for _, k in rows]
    launches = core.plan(numels, kinds, 0, 0)
    check_launches(launches, numels, kinds, 0)
    assert len(launches) == len({k for n, k in rows if n > 0}), "one launch a kind"
    assert all(launch["chunk_numel"] % TILE == 0 for launch in launches)
    assert sum(launch["num_chunks"] for launch in launches) <= MAX_CPU_CHUNKS + len(rows)


def test_small_problems_keep_small_chunks() -> None:
    (launch,) = core.plan([134_500_000], [0], 0, 0)
    assert launch["chunk_numel"] == TILE


def test_too_many_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"more than 2\^32 chunks in one launch"):
        core.plan([2**33], [0], 1, 10)
    with pytest.raises(ValueError, match=r"more than 2\^32 chunks in one launch"):
        core.plan([2**31, 2**31], [0, 0], 1, 10)
    assert len(core.plan([2**31, 2**31], [0, 0], 1, 1)) == 2
