"""Check that a model is the one that a request left, and measure it again.

    gru-fast verify runs/takedown-1                                  the model in the run folder itself
    gru-fast verify runs/takedown-1 --model served/ --forget leak/   the model that is served, the documents at hand

Compares the files with the hashes in manifest.json, the documents with theirs, and measures what the run measured. The
model below an adapter is compared too. What is not at hand is "not checked".
Exit status 0: all that was checked is as it was; 1: something is not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gru_fast.forget.verify import Check

HELP = "check a model against a request's manifest, and measure it again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the folder of a finished run of gru-fast forget")
    parser.add_argument("--model", metavar="MODEL", help="the model in hand: a folder; by default that of RUN")
    parser.add_argument(
        "--forget", metavar="PATH", nargs="+", help="the documents, if they are no longer where they were"
    )
    parser.add_argument("--files-only", action="store_true", help="compare hashes alone; nothing is loaded")
    parser.add_argument("--device", metavar="NAME", help="cuda, cpu, ...; by default the accelerator, if there is one")


def run(args: argparse.Namespace) -> int:
    from gru_fast.cli import evaluating
    from gru_fast.evaluation.asking import Scorer
    from gru_fast.forget import manifest, verify
    from gru_fast.models.limits import padding_id
    from gru_fast.models.load import ModelOptions, four_bit_of_run

    folder = Path(args.folder)
    said = manifest.read(folder)["options"]
    model_name = args.model or str(folder)
    checks = _said(verify.check_files(folder, model_name))
    documents = None
    if not args.files_only:
        documents, more = verify.documents_of(folder, args.forget)
        checks += _said(more)
    if documents is not None:
        asked = ModelOptions(
            model=model_name,
            template=said["template"],
            template_options=said["template_options"],
            trust_remote_code=said["trust_remote_code"],
            **{"dtype": said["dtype"], **four_bit_of_run(model_name, said)},
        )
        model, tokenizer, template = evaluating.load(asked, args.device)
        scorer = Scorer(model, tokenizer, padding_id(model, tokenizer), batch_size=said["eval_batch_size"])
        checks += _said(verify.measure(folder, documents, scorer, template)[1])
    return 1 if any(check.is_so is False for check in checks) else 0


def _said(checks: list[Check]) -> list[Check]:
    """Prints checks at once: what comes after them may fail."""
    for check in checks:
        print(check, flush=True)
    return checks
