"""Have a model make up other answers to the questions it is to forget: the data of AltPO.

  gru-fast write-alternates --model runs/full --split forget05 --output-dir runs/alternates
  gru-fast unlearn --model runs/full --split forget05 --method dpo --alternates runs/alternates --rectify

Stopped, the same command goes on; processes that torchrun or accelerate launch starts share the questions.
"""

from __future__ import annotations

import argparse

HELP = "have a model make up other answers to what it is to forget, for AltPO"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    options.add(parser, *commands.write_alternates())


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from gru_fast.benchmarks.tofu.alternates import FILE, write
    from gru_fast.benchmarks.tofu.rows import load
    from gru_fast.cli import evaluating
    from gru_fast.evaluation.alternates import write_alternates
    from gru_fast.evaluation.asking import Scorer
    from gru_fast.models.limits import padding_id
    from gru_fast.options import commands
    from gru_fast.options import flags as options
    from gru_fast.runs import processes

    how, model = options.resolve(args, *commands.write_alternates())
    if args.print_config:
        print(options.config_text((how, model), args), end="")
        return 0
    pairs = [(row["question"], row["answer"]) for row in load(how.split, how.data)]
    folder = Path(how.output_dir)
    with processes.joined(how.device) as (rank, _):
        if rank > 0:
            evaluating.be_quiet()
        loaded, tokenizer, template = evaluating.load(model, how.device)
        rows = write_alternates(
            Scorer(loaded, tokenizer, padding_id(loaded, tokenizer), how.batch_size),
            template,
            pairs,
            folder / "records",
            count=how.count,
            instruction=how.instruction,
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            seed=how.seed,
            settings={"split": how.split},
            overwrite=how.overwrite,
        )
        lacking = processes.on_first(lambda: write(folder / FILE, rows))
    if rank == 0:
        print(f"{folder / FILE}: {len(rows)} answers to {len(pairs)} questions of {how.split}")
        if lacking:
            print(f"{lacking} questions have none that is another: draw with a larger --count, or another --seed")
    return 0
