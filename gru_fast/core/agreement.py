"""``agreement``: how well the moving average foretells the retain gradient that has just come in."""

from __future__ import annotations

from gru_fast.core.backends.parts import Work, run_measure
from gru_fast.core.backends.passes import Rows, StepArgs
from gru_fast.core.ema import RetainEMA
from gru_fast.core.result import Rectification


def agreement(ema: RetainEMA) -> Rectification:
    """e, as earlier steps have left it, beside the r of the step in progress: ``cos`` of the result is cos(r, e).

    Near 1 the next batch says what the average says; near 0 most of the average, or of the batch, is chance. Of the
    result, ``dot`` is <r, e> and ``norm_before`` |r|, both times the loss scale if there is one, and ``norm_ema`` |e|.

    Reads r and e once and writes nothing. Call it between :meth:`~gru_fast.RetainEMA.collect` and ``rectify_``, in all
    processes that share sharded parameters.

    Args:
        ema: with retain gradients collected.

    Raises:
        ValueError: several retain sets. RuntimeError: none are, or they were streamed, and are in e already.

    >>> import torch
    >>> from gru_fast import RetainEMA, rectify_
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> ema = RetainEMA([w])
    >>> for r in ([1.0, 0.0], [0.6, 0.8]):
    ...     with ema.collect():
    ...         (w @ torch.tensor(r)).backward()
    ...     found = agreement(ema)
    ...     _ = rectify_([w], ema, gamma=0.5)
    >>> round(found.cos, 6)
    0.6
    """
    ema.expect_one("agreement")
    average, pending = ema.average, ema.pending
    pending.check_outside("agreement")
    if pending.retain is None:
        raise RuntimeError("agreement: expected retain gradients in collect() before it, and rectify_ after it")
    retain = average.sharded.parts(pending.retain, "retain_grads")
    rows = Rows(retain, None, average.tensors, True, names=average.names, known_ema=average.known)
    work = Work(rows, average.devices, shards=average.sharded.shards)
    return Rectification(run_measure(work, StepArgs(keep=1.0, gain=0.0)))
