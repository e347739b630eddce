"""Take documents of yours out of a model of yours, with a dossier that shows how far they are gone.

    gru-fast forget --model MODEL --forget leak/ --output-dir runs/takedown-1
    gru-fast forget --model MODEL --forget rows.jsonl --retain ours.jsonl --holdout similar.jsonl --keep 0.95
    gru-fast forget --model MODEL --forget leak/ --dry-run
    gru-fast forget --output-dir runs/takedown-1 --resume
    gru-fast forget --model MODEL --forget leak/ --attack --attacks quantize relearn

Without --retain the model writes the text itself by which it is kept. Training (NPO+GD with GRU) ends when the
documents are known no better than text that the model has never seen (--holdout; without it, text of its own, a mild
level), or when less than --keep of the quality would be left; then the strongest removal that keeps it is taken. The
run folder has the model, report.html, report.md and manifest.json; with --attack also what attacks bring back of it.
gru-fast verify checks a model against it; gru-fast restore, after --keep-delta, takes it back.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HELP = "take documents of yours out of a model, with a report that shows it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.cli import training
    from gru_fast.options import flags as options

    training.add_flags(parser)
    training.add_print_rows(parser)
    options.add(parser, *_classes())


def run(args: argparse.Namespace) -> int:
    from gru_fast import runs
    from gru_fast.cli import training
    from gru_fast.forget import dossier, manifest, request
    from gru_fast.forget.run import Run
    from gru_fast.options import flags as options
    from gru_fast.runs.processes import on_first

    training.take_saved_config(args)
    instances = training.ready(args, _classes(), fill, after=_attack)
    if instances is None:
        return 0
    of_model, asked, config = instances
    _check(of_model, asked, config)
    training.fit_lengths(_Lengths, of_model, asked, shown=config.process_index == 0)
    documents = request.read(asked)
    tokenizer, template = training.load_tokenizer(args, instances)
    if training.print_rows(
        args, request.to_show(documents, asked, tokenizer, template), tokenizer, config.process_index
    ):
        return 0
    model = training.load_model(instances, tokenizer)
    if asked.dry_run:
        print(_forecast(instances, documents, model, tokenizer, template))
        return 0
    text = options.config_text(instances, args)
    folder = Path(config.output_dir)
    checkpoint = on_first(lambda: runs.start(folder, text, resume=args.resume, overwrite=args.overwrite_output_dir))
    work = Run(instances, documents, model, tokenizer, template, checkpoint)
    outcome = work.run()
    content = manifest.make(work, outcome)
    on_first(lambda: dossier.write(folder, content))
    work.finish()
    del work, outcome, model  # attacks load it again
    _attack(instances)
    if config.process_index == 0:
        print(dossier.last_word(folder))
    return 0


def _attack(instances: tuple[Any, ...]) -> bool:
    """With --attack, attacks the result; what is done of it is found again. Whether there is something to attack."""
    from gru_fast.cli.commands import attack
    from gru_fast.forget import attacked, manifest
    from gru_fast.forget.run import UNKNOWN
    from gru_fast.runs.processes import on_first

    of_model, asked, config = instances
    folder = Path(config.output_dir)
    if not asked.attack or manifest.read(folder)["verdict"] == UNKNOWN:
        return False
    own = {name: getattr(of_model, name) for name in ("dtype", "attn_implementation", "trust_remote_code")}
    flags = {"config": None, "print_config": False, "dry_run": False, "json": False, "model": str(folder)}
    attack.run(argparse.Namespace(**own, **flags, **_of_attacks(asked, config)))
    if not asked.text:
        on_first(lambda: attacked.forget_texts(folder))
    return True


def _of_attacks(asked: Any, config: Any) -> dict[str, Any]:
    """The options of the attacks: those that were given, and what follows from the run's."""
    from gru_fast.forget.options import NONE

    found: dict[str, Any] = {"batch_size": asked.eval_batch_size}
    if config.use_cpu:
        found["device"] = "cpu"
    if asked.retain == [NONE]:
        found["relearn_on"] = ["forget"]  # there is no text to keep that could be near, or harmless
    if asked.attacks:
        found["attacks"] = asked.attacks
    return {**found, **(asked.attack_options or {})}


def _forecast(instances: Any, documents: Any, model: Any, tokenizer: Any, template: Any) -> str:
    """What --dry-run says; nothing is written."""
    from gru_fast.evaluation.asking import Scorer
    from gru_fast.forget import forecast, request
    from gru_fast.models.limits import padding_id

    _, asked, config = instances
    made = request.make(documents, asked, model.to(config.device), tokenizer, template, None)
    scorer = Scorer(model, tokenizer, padding_id(model, tokenizer), batch_size=asked.eval_batch_size)
    return str(forecast.forecast(scorer, made, asked, config))


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """A folder named by the first of the documents."""
    names = values.get("forget") or ["documents"]
    first = names[0] if isinstance(names, list) else str(names)
    return {"output_dir": f"runs/forget-{Path(first.rstrip('/')).stem or 'documents'}"}


class _Lengths:
    """What :func:`gru_fast.cli.training.fit_lengths` asks of a benchmark."""

    @staticmethod
    def default_lengths(asked: Any) -> dict[str, int]:
        return {"max_length": asked.max_length}


def _classes() -> tuple[type, ...]:
    from gru_fast.forget.options import ForgetConfig, ForgetOptions
    from gru_fast.models.load import ModelOptions

    return ModelOptions, ForgetOptions, ForgetConfig


def _check(of_model: Any, asked: Any, config: Any) -> None:
    """Refuses options that do not go together."""
    from gru_fast.cli.commands import attack
    from gru_fast.forget import manifest
    from gru_fast.forget.options import NONE

    if "output_dir" in (asked.attack_options or {}):
        raise ValueError(
            "attack_options: output_dir is not to be chosen there: the report is made of what lies in the run's "
            "folder; leave it out, or give it to gru-fast attack afterwards"
        )
    if asked.attack:
        attack.check(_of_attacks(asked, config))
    if asked.keep_delta and of_model.use_peft:
        raise ValueError(
            "keep_delta: with LoRA the adapter is the difference, and the model it lies on is as it was; leave it out"
        )
    if asked.retain == [NONE] and of_model.use_peft:
        raise ValueError("use_peft: without text to keep (TRU) the model's own weights are changed; leave it out")
    if asked.also_keep_forgotten and (asked.retain == [NONE] or not config.method.startswith("npo")):
        what = "--retain none" if asked.retain == [NONE] else f"--method {config.method}"
        raise ValueError(
            f"also_keep_forgotten: expected NPO, which is pushed by how much of a text is back, got {what}; take "
            "npo_gd, or name the earlier documents in --forget"
        )
    if asked.also_keep_forgotten and not manifest.earlier(of_model.model):
        raise ValueError(
            f"also_keep_forgotten: {of_model.model} is no run of gru-fast forget, so that there is nothing earlier; "
            "leave it out"
        )
    if config.fsdp or config.deepspeed_plugin is not None:
        raise ValueError(
            "fsdp, deepspeed: gru-fast forget needs the whole model in every process; give --use-peft for large ones"
        )
