"""The model that is to be evaluated: how it was asked for, when it is loaded, what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gru_fast.core.sharded.shards import is_sharded
from gru_fast.evaluation.backends import Backend
from gru_fast.evaluation.summaries import SUMMARY_FILE, finished
from gru_fast.models.identity import fingerprint
from gru_fast.models.partitioned import is_partitioned
from gru_fast.runs.processes import here, on_first


@dataclass(frozen=True)
class Subject:
    """A model to be evaluated, which is loaded only if something is left to score.

    Args:
        asked: how it was asked for (model, revision, dtype, ...); kept in the summary.
        output_dir: where its evaluation goes.
        load: the model on its device, its tokenizer, and its prompts' template.
        is_older_than: whether its files are older than another file, as far as can be told without loading it.
        batch_size: rows at a time.
        overwrite: score anew what is there.
        progress: whether to show progress bars.
        backend: makes what writes in place of a model that is loaded; None: nothing does.
    """

    asked: Mapping[str, Any]
    output_dir: Path
    load: Callable[[], tuple[Any, Any, Any]]
    is_older_than: Callable[[Path], bool]
    batch_size: int = 16
    overwrite: bool = False
    progress: bool = True
    backend: Callable[[Any], Backend] | None = None

    @property
    def how(self) -> dict[str, Any]:
        """What every benchmark's ``evaluate`` is given of it."""
        return {
            "batch_size": self.batch_size,
            "overwrite": self.overwrite,
            "progress": self.progress,
            "model_options": self.asked,
        }

    @property
    def summary_file(self) -> Path:
        """Where the summary goes."""
        return self.output_dir / SUMMARY_FILE

    def has_answered(self, wanted: Mapping[str, Any]) -> bool:
        """Whether there is a whole evaluation of it with the settings ``wanted``, which is not to be done anew."""
        is_there = not self.overwrite and finished(self.output_dir, wanted)
        return is_there and self.is_older_than(self.summary_file)

    def answer(
        self,
        wanted: Mapping[str, Any],
        read: Callable[[], dict[str, Any]],
        check: Callable[[], object] = lambda: None,
    ) -> dict[str, Any] | None:
        """What ``read`` makes of a whole evaluation that is there; None in every process where one is to be made.

        Args:
            check: refuses, before the model is loaded for that, what would be refused afterwards.
        """

        def known() -> dict[str, Any] | None:
            if self.has_answered(wanted):
                return read()
            check()
            return None

        return on_first(known)

    def evaluated(
        self,
        wanted: Mapping[str, Any],
        read: Callable[[], dict[str, Any]],
        evaluate: Callable[..., dict[str, Any]],
        check: Callable[[], object] = lambda: None,
    ) -> dict[str, Any]:
        """The summary of a whole evaluation that is there, else of one that is done now.

        Args:
            wanted, read, check: see :meth:`answer`.
            evaluate: is given the model, its tokenizer and its template, and :attr:`how` by name.
        """
        summary = self.answer(wanted, read, check)
        if summary is not None:
            return summary
        model, *rest = self.load()
        how = self.how if self.backend is None else {**self.how, "backend": self.backend(model)}
        return evaluate(model, *rest, **how)


def check_whole(model: Any) -> None:
    """Refuses to deal rows out to processes that have a model only together."""
    _, world = here()
    if world > 1 and any(is_sharded(param) or is_partitioned(param) for param in model.parameters()):
        raise ValueError(
            f"model: it is sharded over {world} processes (FSDP2, tensor parallel, ZeRO-3), which run every batch "
            "together, so that rows cannot be dealt out to them; save it, and evaluate what was saved"
        )


def settings_of(model: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What records of a model depend on, beside the texts."""
    return {**settings, "dtype": str(model.dtype).removeprefix("torch."), "model": fingerprint(model)}


def asked_for(model: Any, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """How a model was asked for, for a summary; where nobody says, by the name it was loaded by."""
    return dict(options or {"model": getattr(model, "name_or_path", "")})
