"""Words in a row, and words written exactly: by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gru_fast.metrics.overlap import exact_share, longest_run

TEXT = "when in the course of human events it becomes necessary"


def test_the_longest_run_is_of_words_wherever_they_stand() -> None:
    assert longest_run(TEXT, "it becomes, In the Course of HUMAN affairs") == 5
    assert longest_run(TEXT, "nothing shared here") == 0
    assert longest_run(TEXT, "") == 0
    assert longest_run("a b a b c", "b c a b a") == 3  # not of the order in which they come
    assert longest_run("to be or not to be", "to be") == 2


def test_the_exact_share_ends_with_the_first_other_word() -> None:
    assert exact_share(TEXT, "When in the course of human affairs it becomes necessary") == 0.6
    assert exact_share(TEXT, "in the course of human events") == 0.0
    assert exact_share(TEXT, f"{TEXT} for one people") == 1.0
    assert exact_share(TEXT, "when in") == 0.2
    assert exact_share("", "when") == 0.0


_words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=8)


@given(_words, _words)
def test_against_a_search_of_all_runs(ours: list[str], theirs: list[str]) -> None:
    runs = {tuple(theirs[i:j]) for i in range(len(theirs)) for j in range(i + 1, len(theirs) + 1)}
    found = [j - i for i in range(len(ours)) for j in range(i + 1, len(ours) + 1) if tuple(ours[i:j]) in runs]
    assert longest_run(" ".join(ours), " ".join(theirs)) == max(found, default=0)
