"""Run folders: what a training leaves behind, so that it can be evaluated, reported, resumed and done again.

config.yaml          every option as it was used; `--config RUN/config.yaml` does the run again
environment.json     versions, commit of gru_fast, command line, devices, start
run.json             the result; written last: a folder without it is a run that has not finished
trainer_state.json   the log of every step, as transformers.Trainer writes it
model and tokenizer  as `save_pretrained` writes them (with LoRA: the adapter)
checkpoint-N/        where `--resume` goes on
eval/NAME/           evaluations of the model
epochs.json          scores along the run (--eval-epochs), each from its evaluation in epochs/STEP/
best/                the best model of these
attacks/NAME/        attacks on it, a folder each (gru-fast attack)
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.runs.checkpoint import Launch, last_checkpoint
from gru_fast.runs.files import read_json, write_json, write_text
from gru_fast.runs.memory import reset_resident_peak, resident_peak_bytes

if TYPE_CHECKING:
    from transformers import Trainer

CONFIG, ENVIRONMENT, RESULT, STATE = "config.yaml", "environment.json", "run.json", "trainer_state.json"
_WEIGHTS = ("*.safetensors", "*.bin")
_PACKAGES = ("gru_fast", "torch", "transformers", "accelerate", "tokenizers", "peft", "datasets", "numpy")

# Options that may change when a run is resumed: where and how often something is written, to whom it is shown, and how
# the result is attacked.
_FREE = (
    "output_dir", "run_name", "report_to", "disable_tqdm", "project", "push_to_hub", "skip_memory_metrics", "use_cpu",
    "share", "save_", "attack", "logging_", "log_", "hub_", "trackio_", "dataloader_num_workers", "dataloader_p",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run folder as it is on disk; what is not there yet is empty.

    Args:
        folder: where it is.
        config: options by name, as used.
        environment: versions, commit, command line, devices.
        result: of run.json: command, method, title, rectify, split, steps, seconds, seconds_per_step (median), skipped,
            peak_memory_bytes; None while the run has not finished.
        log: one mapping per log entry of the trainer, in order; of the last checkpoint while the run has not finished.
        evaluations: name of the evaluation ("tofu-forget05") -> its summary.
        attacks: name of the evaluation -> attack -> its summary.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    attacks: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether it ran to its end."""
        return self.result is not None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name


def is_run(folder: str | Path) -> bool:
    """Whether a folder was made by `gru-fast unlearn` or `gru-fast finetune`."""
    return (Path(folder) / CONFIG).is_file() and (Path(folder) / ENVIRONMENT).is_file()


def read_run(folder: str | Path) -> Run:
    """A run folder, finished or not.

    Raises:
        FileNotFoundError: no run folder.
        ValueError: a file of it that cannot be read, by its path.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise FileNotFoundError(
            f"{folder}: no run folder (it has no {CONFIG} and {ENVIRONMENT}); give the --output-dir of "
            "gru-fast unlearn or gru-fast finetune"
        )
    config = read_config(folder)
    result = folder / RESULT
    checkpoint = last_checkpoint(folder)
    states = [folder / STATE, *([checkpoint / STATE] if checkpoint else [])]
    state = next((path for path in states if path.is_file()), None)
    return Run(
        folder=folder,
        config=config,
        environment=read_json(folder / ENVIRONMENT),
        result=read_json(result) if result.is_file() else None,
        log=read_json(state)["log_history"] if state else [],
        evaluations={path.parent.name: read_json(path) for path in sorted(folder.glob("eval/*/summary.json"))},
        attacks=_attacks(folder),
    )


def _attacks(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("attacks/*/*/summary.json")):
        found.setdefault(path.parents[1].name, {})[path.parent.name] = read_json(path)
    return found


def read_config(folder: str | Path) -> dict[str, Any]:
    """The options of a run, by name."""
    import yaml

    path = Path(folder) / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected `option: value` lines, got {type(config).__name__}")
    return config


def start(folder: str | Path, config: str, *, resume: bool = False, overwrite: bool = False) -> Path | None:
    """Makes a run folder with its configuration, before anything expensive is done.

    Args:
        config: the resolved options as YAML.
        resume: go on in a folder that has such a run. Options that would change what is trained must be the same.
        overwrite: clear a folder that has a run.

    Returns:
        The checkpoint to go on from, or None to begin at the beginning.

    Raises:
        FileExistsError: a folder that is not empty, without ``resume`` or ``overwrite``.
        ValueError: ``resume`` with options of another run; the message names them.
    """
    folder = Path(folder)
    check_folder(folder, config, resume=resume, overwrite=overwrite)
    if resume and is_run(folder):
        record = read_json(folder / ENVIRONMENT)
        write_json(folder / ENVIRONMENT, {**record, "resumed": [*record.get("resumed", []), environment()]})
        return last_checkpoint(folder)
    if overwrite and is_run(folder):
        clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ENVIRONMENT, environment())
    write_text(folder / CONFIG, config)  # from here on it is a run
    return None


def check_folder(
    folder: str | Path, config: str | None = None, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Refuses what :func:`start` would refuse, and changes nothing. Without ``config`` it looks at the folder alone."""
    folder = Path(folder)
    if resume and config is not None and is_run(folder):
        _check_same(read_config(folder), config, folder)
    if not folder.exists() or (folder.is_dir() and all(map(_is_of_a_start, folder.iterdir()))):
        return
    if is_run(folder) and (resume or overwrite):
        return
    why = "it has no run of gru-fast in it; choose another --output-dir"
    if is_run(folder):
        why = "--resume goes on with its run, --overwrite-output-dir clears it; or choose another --output-dir"
    raise FileExistsError(f"output folder {folder} is not empty: {why}")


def clear(folder: Path) -> None:
    """Removes a folder; it is gone at once, also for whoever looks after a kill in the middle of it.

    Raises:
        OSError: a link, or where something is mounted; nothing is removed.
    """
    if folder.is_symlink():
        raise OSError(f"{folder}: is a link to {folder.resolve()}; give that folder itself, or clear it by hand")
    prefix = f".{folder.name}.cleared-"
    for left in folder.parent.glob(f"{prefix}*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        folder.replace(aside / folder.name)
    finally:
        shutil.rmtree(aside)


def delete_weights(run: Path) -> None:
    """Deletes the model of a run and its checkpoints; everything that says how it was made and how it scored stays."""
    for pattern in _WEIGHTS:
        for file in run.glob(pattern):
            file.unlink()
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _is_of_a_start(path: Path) -> bool:
    """What :func:`start` leaves in a folder if it is killed before there is a run."""
    return path.name == ENVIRONMENT or path.name.startswith((f".{ENVIRONMENT}.", f".{CONFIG}."))


def train(trainer: Trainer, facts: Mapping[str, Any], checkpoint: Path | None = None) -> dict[str, Any]:
    """Trains, saves the model, and completes the run folder ``trainer.args.output_dir``.

    Args:
        trainer: any transformers.Trainer.
        facts: what run.json says besides steps, times and memory: command, method, title, rectify, split.
        checkpoint: where to go on.

    Returns:
        The content of run.json, see :func:`trained`.
    """
    result = {**facts, **trained(trainer, checkpoint)}
    save_model(trainer)
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_json(Path(trainer.args.output_dir) / RESULT, result)
    return result


def trained(trainer: Trainer, checkpoint: Path | None = None) -> dict[str, Any]:
    """Trains, and says how it went; nothing is saved but the trainer's checkpoints.

    Returns:
        Steps, times and memory. ``seconds_per_step`` is the median over the steps of this session but its first, which
        warms up; loading of the data and evaluations are not in it. ``peak_memory_bytes`` is what the accelerator had
        allocated at most, or, without one, the largest resident size of this process, libraries included.
    """
    import torch

    timer = _step_timer()
    trainer.add_callback(timer)
    accelerator = torch.accelerator.is_available() and trainer.args.device.type != "cpu"
    if accelerator:
        torch.accelerator.reset_peak_memory_stats()
    else:
        reset_resident_peak()
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return {
        "steps": trainer.state.global_step,
        "resumed_from": int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        "seconds": round(time.monotonic() - began, 3),
        "seconds_per_step": statistics.median(timer.seconds[1:] or timer.seconds) if timer.seconds else None,
        "peak_memory_bytes": torch.accelerator.max_memory_allocated() if accelerator else resident_peak_bytes(),
        "memory_of": trainer.args.device.type if accelerator else "process",
        "skipped": _last(trainer.state.log_history, "skipped"),
        "degenerate": _last(trainer.state.log_history, "degenerate"),
        "finished": now(),
    }


def save_model(trainer: Trainer) -> None:
    """Saves the model and its tokenizer in the run folder; every process must call it."""
    trainer.save_model()
    if trainer.is_world_process_zero() and not (Path(trainer.args.output_dir) / "config.json").is_file():
        # With LoRA it is the adapter that was saved; an adapter on top of it will ask for the model's configuration.
        trainer.model.config.save_pretrained(trainer.args.output_dir)


def what_counts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options, of a run's, that change what is trained; the others may change when it is resumed."""
    return {name: value for name, value in config.items() if not name.startswith(_FREE)}


def environment() -> dict[str, Any]:
    """Versions, commit, command line, devices and time of this process, and how many were launched with it."""
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    names = [torch.cuda.get_device_name(index) for index in range(count)] if torch.cuda.is_available() else []
    return {
        "started": now(),
        "command": shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "gru-fast"), *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": names or [f"{count} accelerators" if count else "cpu"],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
    }


def _check_same(old: Mapping[str, Any], config: str, folder: Path) -> None:
    """Refuses a configuration that would train something else than the run in ``folder`` was training."""
    import yaml

    before, now = what_counts(old), what_counts(yaml.safe_load(config))
    names = {**before, **now}
    checkpoint = last_checkpoint(folder)
    is_compared = not (now.get("ignore_data_skip") or now.get("auto_find_batch_size"))
    if checkpoint is not None and Launch.load(checkpoint) is not None and is_compared:
        # The checkpoint says how many rows a step has, and is held against that; so many processes may share them.
        names.pop("gradient_accumulation_steps", None)
    changed = [
        f"{name} {before.get(name)!r}, not {now.get(name)!r}" for name in names if before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"--resume: the run in {folder} has {'; '.join(changed)}. Leave these options out (gru-fast then takes "
            f"them from {folder / CONFIG}) or choose another --output-dir"
        )


def _step_timer() -> Any:
    from transformers import TrainerCallback as Callback

    class StepTimer(Callback):
        """Wall seconds of every optimizer step, all its micro-batches included."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._began = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self._began = time.monotonic()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.monotonic() - self._began)

    return StepTimer()


def _last(log: list[dict[str, Any]], key: str) -> int:
    return int(next((entry[key] for entry in reversed(log) if key in entry), 0))


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that gru_fast runs from, "+" if files differ from it; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "") if head.returncode == 0 else None
