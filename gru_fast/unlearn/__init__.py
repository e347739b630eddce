"""Unlearning on top of the step: methods, data, and trainers in the manner of ``transformers.Trainer``.

    from gru_fast.unlearn import UnlearnConfig, UnlearnTrainer

    args = UnlearnConfig("run", method="npo", rectify=True, gamma=0.8, tau=1.0)
    UnlearnTrainer(model, args, train_dataset=dataset, processing_class=tokenizer).train()

:class:`GRUMixin` gives any other ``Trainer`` subclass with a retain loss the same switch. Methods, batches and data
need torch alone; ``transformers`` is imported when one of the names that need it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gru_fast.data.pairs import PairCollator, UnlearnDataset
from gru_fast.data.sequences import SequenceCollator
from gru_fast.models.scores import Scores
from gru_fast.unlearn.batch import Batch
from gru_fast.unlearn.references import ReferenceLogProbs, ReferenceModel

if TYPE_CHECKING:
    from gru_fast.unlearn.config import GRUOptions, UnlearnConfig
    from gru_fast.unlearn.mixin import GRUMixin
    from gru_fast.unlearn.trainer import UnlearnTrainer

_needs_transformers = {
    "GRUMixin": "mixin",
    "GRUOptions": "config",
    "UnlearnConfig": "config",
    "UnlearnTrainer": "trainer",
}

__all__ = [
    "Batch",
    "GRUMixin",
    "GRUOptions",
    "PairCollator",
    "ReferenceLogProbs",
    "ReferenceModel",
    "Scores",
    "SequenceCollator",
    "UnlearnConfig",
    "UnlearnDataset",
    "UnlearnTrainer",
]


def __getattr__(name: str) -> Any:
    if name in _needs_transformers:
        return getattr(import_module(f"{__name__}.{_needs_transformers[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
