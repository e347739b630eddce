"""Unlearn without retain data: task vector rectified unlearning (TRU), or plain task vectors (--method tv).

    gru-fast tru --model runs/tofu-full --data ../tofu --split forget05 --stg 0.5 0.7
    gru-fast tru --config tru-tofu-phi-forget05
    gru-fast tru --output-dir runs/tofu-forget05-tru --resume --stg 0.85          another strength, nothing anew
    torchrun --nproc-per-node 4 -m gru_fast.cli tru --config tru-tofu-phi-forget05

The vector is computed once and kept; each strength gives a run folder, OUTPUT_DIR/stg-0.7, for gru-fast eval and
gru-fast report. Stopped while computing, the same command with --resume goes on with the next unit.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_fast.unlearn.task_vector import TaskVector

HELP = "unlearn without retain data: TRU, or plain task vectors"

VECTOR = "task_vector.safetensors"  # with "units.json", all there is to know of how it came about
_LOG = "units.json"
_STATE = "state"  # what is needed to go on; removed when the vector is whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.cli import training
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on in --output-dir: with the units that are left, or, where the vector is whole, with strengths it "
        "has no model of yet. With its own config.yaml unless --config is given",
    )
    parser.add_argument("--overwrite-output-dir", action="store_true", help="clear --output-dir of the vector in it")
    training.add_print_rows(parser)
    model, _, config = commands.tru()
    options.add(parser, model, commands.data_of_all(), config)


def run(args: argparse.Namespace) -> int:
    from gru_fast import runs
    from gru_fast.cli import chosen, training
    from gru_fast.options import commands
    from gru_fast.options import flags as options
    from gru_fast.runs import processes

    training.take_saved_config(args, lambda folder: (folder / runs.CONFIG).is_file())
    benchmark = chosen.benchmark(args)
    instances = options.resolve(args, *commands.tru(benchmark), fill=fill)
    model, _, config = instances
    _check(args, model, config)
    if args.print_config:
        print(options.config_text(instances, args), end="")
        return 0
    with processes.joined(config.device) as (rank, world):
        if world > 1 and config.method == "tv":
            raise ValueError("method: tv is one fine-tuning, which processes cannot share; start it without torchrun")
        work = _Work(args, benchmark, instances, Path(config.output_dir), rank)
        processes.on_first(work.check_folder)
        work.run()
    return 0


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """A folder named by what the run is."""
    from gru_fast import benchmarks

    title = benchmarks.get(values["benchmark"]).title(argparse.Namespace(**values))
    return {"output_dir": f"runs/{title}-{values['method']}"}


def _check(args: argparse.Namespace, model: Any, config: Any) -> None:
    """Refuses options that do not go together."""
    if model.use_peft:
        raise ValueError("use_peft: a task vector is of the model's own weights, not of an adapter's; leave it out")
    if model.load_in_4bit:
        raise ValueError("load_in_4bit: a task vector is of all weights, and 4 bits cannot be trained; leave it out")
    if args.resume and args.overwrite_output_dir:
        raise ValueError("--resume: goes on in a folder that --overwrite-output-dir clears; give one of them")


@dataclass
class _Work:
    args: argparse.Namespace
    benchmark: Any
    instances: tuple[Any, ...]
    folder: Path
    rank: int

    def check_folder(self) -> None:
        """Refuses a folder that is not empty, or not of this command, before anything is loaded."""
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return
        ours = (self.folder / VECTOR).is_file() or (self.folder / _STATE).is_dir()
        if ours and (self.args.resume or self.args.overwrite_output_dir):
            return
        why = "there is no task vector in it; choose another --output-dir"
        if ours:
            why = "--resume goes on in it or adds strengths, --overwrite-output-dir clears it"
        raise FileExistsError(f"output folder {self.folder} is not empty: {why}")

    def run(self) -> None:
        """The vector, computed or read, then a model for each strength."""
        from gru_fast import models
        from gru_fast.cli import training
        from gru_fast.runs import processes
        from gru_fast.unlearn import task_vector, tru

        options, data, config = self.instances
        models.device_of(config.device)  # its message, before anything is loaded
        training.fit_lengths(self.benchmark, options, data, shown=self.rank == 0)
        tokenizer = models.load_tokenizer(options)
        template = models.load_template(options, tokenizer)
        options.template, options.template_options = template.name, dict(template.options) or None
        dataset = self.benchmark.unlearning(data, tokenizer, template, ["forget"], config.seed)
        if training.print_rows(self.args, dataset, tokenizer, self.rank):
            return
        rows = dataset.forget
        file = self.folder / VECTOR
        if file.is_file() and not self.args.overwrite_output_dir:
            found = task_vector.read_about(file)
            task_vector.check_source(file, found["source"], task_vector.source_without_model(rows, config))
            if self.rank == 0 and not self._missing():
                print(f"{self.folder}: there are models of all these strengths; nothing to do")
            if self.rank == 0 and self._missing():
                model = models.load_model(options)
                self._write_models(task_vector.TaskVector.load(file), model, tokenizer)
            return
        if config.method == "tru":
            tru.units_of(len(rows), config.num_units)
        model = models.load_model(options)
        models.check_vocabulary(model, tokenizer)
        models.limits_of(model).check_rows("forget", rows)
        finetuned = self._finetuned(model)
        # Only now, when nothing that was asked for can be refused any more, is the folder begun, or cleared; the others
        # wait for it, so that what they find there is what the first process left.
        processes.on_first(self._begin)
        vector = self._compute(model, rows, tokenizer, finetuned)
        if self.rank == 0:
            self._keep(vector)
            self._write_models(vector, model, tokenizer)

    def _begin(self) -> None:
        from gru_fast import runs
        from gru_fast.options import flags as options

        if self.args.overwrite_output_dir and self.folder.is_dir():
            runs.clear(self.folder)
        (self.folder / _STATE).mkdir(parents=True, exist_ok=True)
        runs.write_text(self.folder / runs.CONFIG, options.config_text(self.instances, self.args))

    def _compute(self, model: Any, rows: Any, tokenizer: Any, finetuned: Any) -> TaskVector:
        """The vector, and in its ``about`` what it took; the model is on the CPU afterwards."""
        import torch

        from gru_fast import models
        from gru_fast.runs.memory import resident_peak_bytes
        from gru_fast.unlearn import task_vector, tru

        config = self.instances[-1]
        device = models.device_of(config.device)
        if device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats()
        model.to(device)
        began = time.monotonic()
        pad = models.padding_id(model, tokenizer)
        if config.method == "tv":
            vector = task_vector.plain(model, rows, config, pad_token_id=pad, finetuned=finetuned)
        else:
            vector = tru.rectified(model, rows, config, pad_token_id=pad, state=self.folder / _STATE)
        on_device = device.type != "cpu"
        vector.about |= {
            "seconds": round(time.monotonic() - began, 3),
            "peak_memory_bytes": (torch.accelerator.max_memory_allocated() if on_device else resident_peak_bytes()),
            "memory_of": device.type if on_device else "process",
        }
        model.cpu()
        return vector

    def _finetuned(self, model: Any) -> Any:
        """The model of `--finetuned`, where that is given."""
        from gru_fast import models
        from gru_fast.unlearn import task_vector

        name = self.instances[-1].finetuned
        if name is None:
            return None
        found = models.load_model(dataclasses.replace(self.instances[0], model=name, revision=None))
        task_vector.check_finetuned(model, found)
        return found

    def _keep(self, vector: TaskVector) -> None:
        from gru_fast import runs
        from gru_fast.unlearn import tru

        runs.write_json(self.folder / _LOG, vector.about)
        vector.about.pop("log", None)
        vector.save(self.folder / VECTOR)
        shutil.rmtree(self.folder / _STATE)
        about = vector.about
        units = f"{tru.about_units(about)}, " if "units" in about else ""
        memory = f"peak memory {about['peak_memory_bytes'] / 2**20:.0f} MiB ({about['memory_of']})"
        print(f"{self.folder}: {self.instances[-1].title}, {units}{about['steps']} steps in {about['seconds']:.1f} s, "
              f"{memory}")  # fmt: skip

    # ---- a run folder a strength -------------------------------------------------------------------------------------

    def _missing(self) -> list[float]:
        """Strengths that have no whole run yet."""
        from gru_fast import runs
        from gru_fast.unlearn.task_vector_options import run_of

        return [stg for stg in self.instances[-1].stg if not (run_of(self.folder, stg) / runs.RESULT).is_file()]

    def _write_models(self, vector: TaskVector, model: Any, tokenizer: Any) -> None:
        from gru_fast import runs
        from gru_fast.options import flags as options
        from gru_fast.unlearn.task_vector_options import run_of

        options_of_model, data, config = self.instances
        with vector.subtracted(model) as set_strength:
            for stg in self._missing():
                folder = run_of(self.folder, stg)
                of_run = (options_of_model, data, dataclasses.replace(config, stg=[stg]))
                runs.start(folder, options.config_text(of_run), overwrite=True)
                set_strength(stg)
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                runs.write_json(folder / runs.RESULT, self._result(vector.about, stg))
                print(f"{folder}: {config.title} with strength {stg:g}")

    def _result(self, about: Mapping[str, Any], stg: float) -> dict[str, Any]:
        from gru_fast import runs

        options, data, config = self.instances
        names = (
            "steps", "seconds", "seconds_per_step", "peak_memory_bytes", "memory_of", "units", "kept", "projected",
            "degenerate",
        )  # fmt: skip
        return {
            "command": "tru",
            "benchmark": data.benchmark,
            "method": config.method,
            "title": config.title,
            "rectify": False,  # GRU is what this means elsewhere
            "split": data.split,
            "model": options.model,
            "stg": stg,
            **{name: about[name] for name in names if name in about},
            "skipped": about.get("nonfinite", 0) + about.get("degenerate", 0),
            "finished": runs.now(),
        }
