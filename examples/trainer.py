"""GRU by ``UnlearnTrainer``, a ``transformers.Trainer``: the model forgets four facts of forty, without and with GRU.

    python examples/trainer.py
    python examples/trainer.py --method npo

Prints the loss on what is to be forgotten (higher: forgotten) and on what is kept (lower: kept). Some seconds on a CPU.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import toy

from gru_fast.unlearn import UnlearnConfig, UnlearnDataset, UnlearnTrainer


def forget(model: Any, dataset: UnlearnDataset, args: argparse.Namespace, folder: str, *, gru: bool) -> None:
    """One run of the trainer."""
    config = UnlearnConfig(
        folder,
        method=args.method,
        rectify=gru,
        gamma=args.gamma,
        tau=args.tau if gru else None,
        max_grad_norm=0.0 if gru else args.tau,
        stream=gru,  # folds retain gradients into the average as they come: less memory
        num_train_epochs=args.epochs,
        per_device_train_batch_size=4,
        learning_rate=args.learning_rate,
        save_strategy="no",
        logging_strategy="no",  # else losses, angles and norms of every step
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    UnlearnTrainer(model, config, train_dataset=dataset).train()


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """The losses on rows to forget and rows to keep, by run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ga", help="ga, npo, simnpo, gd, ...: gru-fast ls methods")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--gamma", type=float, default=0.8, help="weight of the newest gradient in the average")
    parser.add_argument("--tau", type=float, default=1.0, help="largest norm of the gradient")
    args = parser.parse_args(argv)

    taught, forget_rows, retain_rows = toy.taught()
    # A row to keep is drawn for each row to forget, anew in every epoch.
    dataset = UnlearnDataset(forget_rows, retain_rows)

    found = {"before": (toy.loss(taught, forget_rows), toy.loss(taught, retain_rows))}
    with TemporaryDirectory() as folder:
        for name, gru in (("plain", False), ("with GRU", True)):
            model = copy.deepcopy(taught)
            forget(model, dataset, args, folder, gru=gru)
            found[name] = toy.loss(model, forget_rows), toy.loss(model, retain_rows)
    toy.show(found)
    return found


if __name__ == "__main__":
    main()
