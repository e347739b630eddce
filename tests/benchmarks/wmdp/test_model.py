"""Questions shared by processes: the batches that are dealt out are those that lm-eval makes."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import wmdp_files
from processes import Processes

from gru_fast.benchmarks.wmdp.model import batches

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: gru_fast[wmdp]")


def test_batches_by_hand() -> None:
    """Choices of one token share a row; a longer one has its own, and that row is the longest."""
    question, other = [5, 6, 7], [4, 6]
    requests = [("", question, [8]), ("", other, [8]), ("", question, [9]), ("", question, [9, 3]), ("", other, [7])]
    assert batches(requests, 1) == [[3], [0, 2], [1, 4]]
    assert batches(requests, 2) == [[3, 0, 2], [1, 4]]
    assert batches(requests, 9) == [[3, 0, 2, 1, 4]]
    assert batches([], 2) == []


def requests_of(seed: int) -> list[tuple[tuple[str, str], list[int], list[int]]]:
    """Forty questions of 2 to 6 tokens, some alike, with four choices of one to three tokens."""
    draw = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high + 1, (1,), generator=draw))
        return torch.randint(4, 9, (count,), generator=draw).tolist()

    questions = [some(2, 6) for _ in range(40)]
    return [(("", str(i)), list(question), some(1, 3)) for i, question in enumerate(questions) for _ in range(4)]


@needs_lm_eval
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batches_are_lm_evals(monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr(logging.getLogger("lm_eval"), "level", logging.ERROR)
    lm: Any = HFLM(pretrained=wmdp_files.model(), tokenizer=wmdp_files.tokenizer(), batch_size=batch_size)
    run: list[list[list[int]]] = []
    call = lm._model_call

    def seen(inputs: torch.Tensor, **kwargs: Any) -> Any:
        run.append([[token for token in row if token] for row in inputs.tolist()])  # padding is 0
        return call(inputs, **kwargs)

    monkeypatch.setattr(lm, "_model_call", seen)
    requests = requests_of(batch_size)
    lm._loglikelihood_tokens(requests, disable_tqdm=True)
    ours = []
    for batch in batches(requests, batch_size):
        rows = [[*requests[i][1], *requests[i][2]][:-1] for i in batch]
        ours.append([row for at, row in enumerate(rows) if row not in rows[:at]])  # choices of one question, once
    assert ours == run


@needs_lm_eval
@pytest.mark.parametrize(("world", "shares"), [(2, [9, 9]), (4, [6, 6, 3, 3])])
def test_processes_share_the_batches(processes: Processes, tmp_path: Path, world: int, shares: list[int]) -> None:
    """Of each of three tasks, six different questions, one a batch. Every process has the summary of all."""
    questions = wmdp_files.save_questions(tmp_path / "questions")
    found = processes.run(wmdp_files.asked, world, questions, tmp_path / "out", batch_size=1)
    assert [calls for calls, _ in found] == shares
    assert all(summary == found[0][1] for _, summary in found)
    calls, summary = wmdp_files.asked(questions, tmp_path / "alone", batch_size=1)
    assert calls == sum(shares)
    assert {**summary, "seconds": 0} == {**found[0][1], "seconds": 0}
    for name in summary["accuracy"]:
        ours, theirs = (json.loads((tmp_path / of / f"tasks/{name}.json").read_text()) for of in ("out", "alone"))
        assert ours["answers"] == theirs["answers"]
    # Nothing to do for some: fewer batches than processes.
    few = processes.run(wmdp_files.asked, world, questions, tmp_path / "few", batch_size=100)
    assert [calls for calls, _ in few] == [3, *[0] * (world - 1)]
