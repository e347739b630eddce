"""GRU in front of every unlearning trainer of open-unlearning: its source, trainers and experiments as they are.

    cd open-unlearning
    python ~/gru_fast/examples/open_unlearning/gru.py --config-name=unlearn.yaml experiment=unlearn/tofu/default \
        trainer=NPO +gru=default task_name=npo_gru

It is its ``src/train.py``, with two things added: the configurations beside this file, and for every name in its
registry a class with :class:`~gru_fast.unlearn.GRUMixin` in front. Without ``+gru=...`` that one does nothing, so that
a run with GRU and one without differ in it alone. Any field of GRUOptions can be given, as
``+trainer.method_args.gru.warm_up_retain=8``.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from gru_fast.unlearn import GRUMixin, GRUOptions

CONFIGS = Path(__file__).parent / "configs"


class WithGRU(GRUMixin):
    """In front of one of its trainers; off unless ``method_args`` has ``gru``."""

    gru = GRUOptions(rectify=False)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Freezes what the optimizer does not hold. RMU trains a few matrices and asks for the gradients of all, which
        would be in g, in the average and in its memory.
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.gru_options.follows_retain:
            trained = {id(param) for group in self.optimizer.param_groups for param in group["params"]}
            for param in self.model.parameters():
                param.requires_grad_(id(param) in trained)
        return optimizer


def with_gru(trainer: type) -> type:
    """The class with GRU in front, under its own name."""
    return type(trainer.__name__, (WithGRU, trainer), {"__doc__": trainer.__doc__, "__module__": trainer.__module__})


def register() -> list[str]:
    """Puts GRU in front of each unlearning trainer in open-unlearning's registry; returns their names."""
    from trainer import TRAINER_REGISTRY  # open-unlearning's, from src/
    from trainer.unlearn.base import UnlearnTrainer

    names = [name for name, known in TRAINER_REGISTRY.items() if issubclass(known, UnlearnTrainer)]
    TRAINER_REGISTRY.update({name: with_gru(TRAINER_REGISTRY[name]) for name in names})
    return names


def main() -> None:
    """open-unlearning's ``src/train.py``, run from the folder it is in."""
    script = Path("src/train.py").resolve()
    if not (script.is_file() and script.with_name("trainer").is_dir()):
        sys.exit(f"{script}: no such file; run this in a checkout of open-unlearning (git clone, then cd into it)")
    sys.path.insert(0, str(script.parent))
    register()
    if not any(word.startswith("--config-dir") for word in sys.argv):
        sys.argv[1:1] = ["--config-dir", str(CONFIGS.resolve())]
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
