"""Have a model write documents to keep, for --retain, where nobody has any.

    gru-fast write-retain --model MODEL --forget leak/ --output retain.jsonl
    gru-fast unlearn --benchmark own --model MODEL --forget leak/ --retain retain.jsonl --method npo --rectify

A model with a chat template answers questions, any other one writes texts (where a text is to be forgotten, both write
texts too). What shares a long run of words with the documents to forget is dropped and counted, and so is what repeats
itself. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse

HELP = "have a model write documents to keep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    options.add(parser, *commands.write_retain())


def run(args: argparse.Namespace) -> int:
    import sys
    from dataclasses import asdict

    from gru_fast.cli import evaluating
    from gru_fast.data import self_written
    from gru_fast.data.own import load
    from gru_fast.models.identity import fingerprint
    from gru_fast.models.load import device_of
    from gru_fast.options import commands
    from gru_fast.options import flags as options

    how, model = options.resolve(args, *commands.write_retain())
    if args.print_config:
        print(options.config_text((how, model), args), end="")
        return 0
    device_of(how.device)  # its message, before anything is read
    forget = load(how.forget, columns=how.columns)
    loaded, tokenizer, template = evaluating.load(model, how.device)
    documents, counts = self_written.write_retain(
        loaded,
        tokenizer,
        template,
        how.count,
        how.seed,
        forget=forget,
        batch_size=how.batch_size,
        sampling=self_written.Sampling(how.max_new_tokens, how.top_k, how.temperature, how.decay_tokens),
        openings=how.openings,
        questions=how.questions,
        file=how.output,
        about={"model": fingerprint(loaded), "template": asdict(template)},
    )
    print(f"{how.output}: {len(documents)} documents; of {counts['written']} written, {self_written.describe(counts)}")
    if len(documents) < how.count:
        print(f"fewer than the {how.count} that were asked for: too many were dropped", file=sys.stderr)
    return 0
