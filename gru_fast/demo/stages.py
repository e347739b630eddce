"""The demo's runs. Each goes the way of the command of its name and leaves the same folder behind."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from gru_fast import runs
from gru_fast.benchmarks import tofu
from gru_fast.benchmarks.tofu import evaluate as tofu_eval
from gru_fast.benchmarks.tofu import summary as tofu_summary
from gru_fast.data.templates import TEMPLATES
from gru_fast.demo import fiction, model
from gru_fast.demo.settings import METHODS, Settings
from gru_fast.evaluation.scoring import losses
from gru_fast.models.load import ModelOptions, load_model, load_tokenizer
from gru_fast.options.commands import TofuFinetuneOptions
from gru_fast.options.flags import config_text
from gru_fast.report.figures import FORGET_PROBABILITY, RETAIN_PROBABILITY
from gru_fast.unlearn import UnlearnConfig, UnlearnTrainer
from gru_fast.unlearn.finetune import FinetuneConfig, finetune_trainer

MARK = "demo.json"  # in the demo's folder: the settings it was made with
# No answer tag: a tag that every answer begins with would be unlearned for all of them.
TEMPLATE = TEMPLATES["llama2-chat"]
_MAX_LENGTH = 128  # tokens; rows have some 20
_EVAL_BATCH = 72


@dataclass(frozen=True)
class Places:
    """Where things are in the demo's folder."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def report(self) -> Path:
        return self.folder / "report"

    @property
    def original(self) -> Path:
        """The model that knows all authors."""
        return self.folder / "runs" / "original"

    @property
    def retrained(self) -> Path:
        """The model that has never seen those to forget."""
        return self.folder / "runs" / "retrained"

    def unlearned(self, method: str, rectify: bool) -> Path:
        return self.folder / "runs" / f"{method}{'-gru' if rectify else ''}"

    def runs(self) -> list[Path]:
        """All of them, in the order in which they are made."""
        return [
            self.original,
            self.retrained,
            *(self.unlearned(m, rectify) for m in METHODS for rectify in (False, True)),
        ]


def prepare(folder: Path, settings: Settings, overwrite: bool = False) -> Places:
    """The folder, empty or with what an earlier demo with these settings has left in it, to go on from.

    Raises:
        FileExistsError: a folder with something else in it; nothing is deleted then.
    """
    places, mark = Places(folder), folder / MARK
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output: expected a folder, got the file {folder}")
    if folder.is_dir() and any(folder.iterdir()):
        if not mark.is_file():
            raise FileExistsError(f"{folder} is not empty, and no demo made it; give another folder with --output")
        made_with = runs.read_json(mark)
        if made_with != asdict(settings) and not overwrite:
            changed = [f"{name} {value}" for name, value in made_with.items() if value != asdict(settings).get(name)]
            raise FileExistsError(
                f"{folder} holds a demo with {', '.join(changed)}; --overwrite replaces it, --output goes elsewhere"
            )
        if overwrite:
            for made in (places.data, places.base, folder / "runs", places.report):
                shutil.rmtree(made, ignore_errors=True)
    runs.write_json(mark, asdict(settings))
    return places


def write_data(places: Places, settings: Settings) -> dict[str, list[fiction.Row]]:
    """Benchmark and untrained model; returns the rows by split."""
    splits = fiction.write_benchmark(places.data, settings.seed)
    pairs = [(row["question"], row["answer"]) for row in splits[fiction.FULL_SUBSET]]
    model.write_model(places.base, pairs, TEMPLATE, settings.seed)
    return splits


def is_done(folder: Path) -> bool:
    """Whether a run was finished by an earlier, interrupted demo."""
    return runs.is_run(folder) and runs.read_run(folder).complete


def finetune(places: Places, settings: Settings, subset: str, folder: Path, watch: TrainerCallback) -> dict[str, Any]:
    """`gru-fast finetune`: the base model, taught one subset. Returns run.json."""
    from transformers import set_seed

    options = ModelOptions(model=str(places.base), template=TEMPLATE.name)
    data = TofuFinetuneOptions(subset=subset, data=str(places.data), max_length=_MAX_LENGTH)
    config = FinetuneConfig(str(folder), **settings.finetuning())
    tokenizer = load_tokenizer(options)
    rows = tofu.finetuning_data(tokenizer, TEMPLATE, data.subset, data.data, data.max_length)
    set_seed(config.seed)
    trainer = finetune_trainer(load_model(options, train=True), config, rows, tokenizer)
    facts = {"command": "finetune", "benchmark": "tofu", "subset": subset, "model": options.model}
    return _train(trainer, (options, data, config), facts, watch)


def unlearn(places: Places, settings: Settings, method: str, rectify: bool, watch: TrainerCallback) -> dict[str, Any]:
    """`gru-fast unlearn`: the original model, made to forget. Returns run.json."""
    from transformers import set_seed

    folder = places.unlearned(method, rectify)
    options = ModelOptions(model=str(places.original), template=TEMPLATE.name)
    data = tofu.TofuOptions(data=str(places.data), split=fiction.SPLIT, max_length=_MAX_LENGTH)
    config = UnlearnConfig(str(folder), **settings.unlearning(method, rectify))
    objective = config.make_method()
    config.method_options = asdict(objective)
    tokenizer = load_tokenizer(options)
    dataset = tofu.unlearning_data(
        tokenizer, TEMPLATE, data.split, data.data, data.max_length, config.seed, ("forget", "retain")
    )
    set_seed(config.seed)
    trainer = UnlearnTrainer(load_model(options, train=True), config, train_dataset=dataset, processing_class=tokenizer)
    trainer.add_callback(_PathCallback(trainer, tokenizer, places.data, settings))
    facts = {
        "command": "unlearn",
        "benchmark": "tofu",
        "method": objective.name,
        "title": objective.title,
        "rectify": rectify,
        "split": data.split,
        "model": options.model,
    }
    return _train(trainer, (options, data, config), facts, watch)


def _train(trainer: Any, instances: Sequence[Any], facts: Mapping[str, Any], watch: TrainerCallback) -> dict[str, Any]:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(watch)
    runs.start(trainer.args.output_dir, config_text(instances), overwrite=True)
    return runs.train(trainer, facts)


def evaluate(places: Places, settings: Settings, folder: Path) -> dict[str, Any]:
    """`gru-fast eval tofu`: returns the summary. The retrained model must be evaluated before the others."""
    options = ModelOptions(model=str(folder), template=TEMPLATE.name)
    output = folder / "eval" / f"tofu-{fiction.SPLIT}"
    is_goal = folder == places.retrained
    summary = tofu_eval.evaluate(
        load_model(options),
        load_tokenizer(options),
        TEMPLATE,
        fiction.SPLIT,
        str(places.data),
        output,
        retain_logs=None if is_goal else str(places.retrained),
        batch_size=_EVAL_BATCH,
        max_new_tokens=settings.max_new_tokens,
        max_rows=settings.max_rows,
        progress=False,
        model_options={"model": options.model, "template": TEMPLATE.name, "dtype": options.dtype},
    )
    return tofu_summary.resummarize(output, str(folder)) if is_goal else summary


class _PathCallback(TrainerCallback):
    """Logs mean exp(-loss) of the rows to forget and of the evaluated rows to keep, ``settings.looks`` times.

    Before a step, and so outside of its time; once more at the end.
    """

    def __init__(self, trainer: Any, tokenizer: Any, data: Path, settings: Settings) -> None:
        self._trainer = trainer
        self._looks = settings.looks
        self._pad = tokenizer.pad_token_id
        self._rows = {
            name: tofu.finetuning_data(tokenizer, TEMPLATE, subset, data, _MAX_LENGTH)[: settings.max_rows]
            for name, subset in (
                (FORGET_PROBABILITY, fiction.SPLIT),
                (RETAIN_PROBABILITY, "retain_perturbed"),
            )
        }

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % max(1, state.max_steps // self._looks) == 0:
            self._look()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._look()

    def _look(self) -> None:
        found = {}
        for name, rows in self._rows.items():
            scored = losses(self._trainer.model, rows, batch_size=_EVAL_BATCH, pad_token_id=self._pad)
            found[name] = sum(math.exp(-row.loss) for row in scored) / len(scored)
        self._trainer.log(found)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and notices of transformers, which would be drawn across the demo's own."""
    import transformers.utils.logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread a process: models this small gain little from a second, and the numbers are the same on any machine
    with the same kind of processor.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_steps(settings: Settings, places: Places, subset: str, method: str | None = None) -> int:
    """Optimizer steps of a run, for a progress bar."""
    rows = len(tofu.load(subset, places.data))
    options = settings.finetuning() if method is None else settings.unlearning(method, rectify=False)
    return math.ceil(rows / options["per_device_train_batch_size"]) * options["num_train_epochs"]


def outcome(folder: Path, took: float | None, loss: str) -> tuple[str, float | None, str]:
    """A finished run as the console shows it: "400 steps", seconds, "loss 5.85 -> 0.02"."""
    run = runs.read_run(folder)
    values = [row[loss] for row in run.log if loss in row]
    trend = f"{loss.replace('_', ' ')} {values[0]:.2f} -> {values[-1]:.2f}" if values else ""
    return f"{(run.result or {})['steps']} steps", took, trend
