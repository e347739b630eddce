"""Gives up a run whose Model Utility is out of reach."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gru_fast.jobs.doing import Pruned

_BATCH = 32
_PARTS = 9  # numbers that Model Utility is the harmonic mean of, each at most 1


class Reach(TrainerCallback):
    """Looks after every epoch but the last at what Model Utility can be at most, and ends a run for which that is too
    little: with the retain set's Probability P, MU <= 9 / (1/P + 8), whatever the other eight numbers are.

    The bound is exact for the model as it is then; that the epochs to come will not bring it back is an assumption.

    Args:
        run: folder of the run, which names its template.
        evaluation: file with the options of the evaluation: data, which rows and how long.
        least: the Model Utility that must be kept.
    """

    def __init__(self, run: Path, evaluation: Path, least: float) -> None:
        self.bounds: dict[str, float] = {}  # by epoch
        self._run = run
        self._evaluation = evaluation
        self._least = least
        self._rows: Any = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises Pruned."""
        if state.global_step >= state.max_steps:
            return
        probability = self._probability(kwargs["model"], kwargs["processing_class"])
        most = utility_bound(probability)
        epoch = round(state.epoch)
        self.bounds[str(epoch)] = most
        if most < self._least:
            raise Pruned(
                f"after epoch {epoch} of {args.num_train_epochs:g} the retain set has Probability {probability:.4f}, "
                f"so that MU <= {most:.4f}, below the {self._least:.4f} to be kept",
                {"utility_bounds": self.bounds, "missing_utility": self._least - most},
            )

    def _probability(self, model: Any, tokenizer: Any) -> float:
        """Mean exp(-loss) over the evaluated rows of the retain set; 0 of a model that has diverged."""
        from gru_fast.evaluation.scoring import DivergedError, losses
        from gru_fast.models.limits import padding_id

        if self._rows is None:
            self._rows = _retain_rows(self._run, self._evaluation, tokenizer)
        try:
            found = losses(model, self._rows, batch_size=_BATCH, pad_token_id=padding_id(model, tokenizer))
        except DivergedError:
            return 0.0
        return sum(math.exp(-row.loss) for row in found) / len(found)


def utility_bound(probability: float) -> float:
    """The largest Model Utility that goes with a Probability on the retain set.

    >>> utility_bound(1.0)
    1.0
    """
    return 0.0 if probability <= 0 else _PARTS / (1 / probability + _PARTS - 1)


def _retain_rows(run: Path, evaluation: Path, tokenizer: Any) -> Any:
    """The rows whose Probability enters Model Utility, as the evaluation has them."""
    from gru_fast.benchmarks.tofu.evaluate import MAX_LENGTH
    from gru_fast.benchmarks.tofu.rows import MAX_ROWS, eval_sets, finetuning_data
    from gru_fast.data.templates import resolve_template
    from gru_fast.runs.folder import read_config
    from gru_fast.sweep.plan import read_settings

    options = read_settings(evaluation)
    config = read_config(run)
    template = resolve_template(config["template"], tokenizer, config.get("template_options"))
    length = int(options.get("max_length", MAX_LENGTH))
    rows = finetuning_data(tokenizer, template, eval_sets(options["split"])["retain"], options["data"], length)
    return rows[: int(options.get("max_rows", MAX_ROWS)) or None]
