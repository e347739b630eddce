"""Parameters that ZeRO-3 has cut up, as DeepSpeed leaves them: pieces of one size, the last ones padded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gru_fast.models.partitioned import piece_of


@pytest.mark.parametrize(("rank", "wanted"), [(0, [1.0, 2.0]), (1, [3.0]), (2, [])])
def test_a_piece_is_without_its_padding(monkeypatch: pytest.MonkeyPatch, rank: int, wanted: list[float]) -> None:
    """Three elements in three processes; DeepSpeed does not write what is behind them."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: rank)
    held = torch.tensor([*wanted, *[torch.nan] * (2 - len(wanted))])
    param = SimpleNamespace(ds_tensor=held, ds_numel=3, ds_process_group=None)
    piece = piece_of(param)
    assert piece.tolist() == wanted
    piece.fill_(7.0)
    assert held.tolist()[: len(wanted)] == [7.0] * len(wanted)
    assert held[len(wanted) :].isnan().all()


def test_of_any_other_parameter_it_is_all() -> None:
    param = torch.nn.Parameter(torch.ones(2, 3))
    assert piece_of(param).data_ptr() == param.data_ptr()
    assert not piece_of(param).requires_grad
