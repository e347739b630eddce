"""Forget and retain side by side: what both hold, what is held out."""

from __future__ import annotations

import pytest

from gru_fast.data.own import Document, check_apart, hold_out


def texts(*contents: str, name: str = "d") -> list[Document]:
    return [Document(f"{name}#{i}", name, i, "text", text=content) for i, content in enumerate(contents)]


def test_the_same_in_both_is_warned_of_whatever_its_spaces_and_case() -> None:
    forget = texts("One two.", *(f"f{i}" for i in range(19)), name="f")
    retain = texts(*(f"r{i}" for i in range(19)), "ONE\n two. ", name="r")
    with pytest.warns(UserWarning, match=r"1 of 20 documents of retain are in forget too \(f#0 = r#19\)"):
        shared = check_apart(forget, retain)
    assert [(pair.forget.id, pair.retain.id) for pair in shared] == [("f#0", "r#19")]


def test_too_many_of_either_part_are_refused() -> None:
    many = [f"w{i}" for i in range(20)]
    with pytest.raises(
        ValueError, match=r"retain: 4 of 4 documents of retain are .*f#2 = r#2 and 1 more\), more than 10%"
    ):
        check_apart(texts(*many, name="f"), texts(*many[:4], name="r"))
    with pytest.raises(ValueError, match=r"retain: 1 of 20"):
        check_apart(texts("w3", name="f"), texts(*many, name="r"))


def test_where_none_may_be_shared_one_is_too_many() -> None:
    forget, holdout = texts(*map(str, range(20)), name="f"), texts(*(f"h{i}" for i in range(19)), "7", name="h")
    with pytest.raises(ValueError, match=r"holdout: 1 of 20 .* too \(f#7 = h#19\), and none may be; take"):
        check_apart(forget, holdout, 0.0, names=("forget", "holdout"))


def test_parts_that_share_nothing() -> None:
    assert check_apart(texts("a b"), texts("a", "b", "ab")) == []
    pair = Document("p", "p", 0, "pair", question="a", answer="b")
    assert check_apart([pair], [Document("q", "q", 0, "pair", question="ab", answer="")]) == []


def test_some_are_held_out_in_order_and_the_same_every_time() -> None:
    documents = texts(*map(str, range(25)))
    rest, held = hold_out(documents, 0.1, seed=3)
    assert len(held) == 3
    assert sorted([*rest, *held], key=documents.index) == documents
    assert rest == [each for each in documents if each not in held]
    assert hold_out(documents, 0.1, seed=3) == (rest, held)
    assert any(hold_out(documents, 0.1, seed=seed)[1] != held for seed in range(4))
    assert hold_out(documents, 0.0) == (documents, [])


def test_what_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="expected at least two documents to hold one out for measuring, got 1"):
        hold_out(texts("a"))
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match="hold_out: expected a share from 0 to below 1"):
            hold_out(texts("a", "b"), share)
