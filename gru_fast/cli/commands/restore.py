"""Take a request back: the model as it was before, bit for bit.

    gru-fast restore runs/takedown-1 --output-dir models/before

Needs a run of gru-fast forget --keep-delta. The result is checked against the hash of the original's weights; where
these were 16 bits, it is saved in 16 bits. Requests one after another are taken back one after another, the last first;
those before it are named in earlier.json beside the model, so that the next request still knows them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "take a request of gru-fast forget back, bit for bit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="the folder of a run of gru-fast forget --keep-delta")
    parser.add_argument("--output-dir", metavar="FOLDER", required=True, help="for the model; a new or an empty folder")


def run(args: argparse.Namespace) -> int:
    from gru_fast import runs
    from gru_fast.forget import delta, manifest
    from gru_fast.models.load import ModelOptions, load_model, load_tokenizer

    folder, target = Path(args.folder), Path(args.output_dir)
    said = manifest.read(folder)
    if not (folder / delta.DELTA).is_file():
        raise FileNotFoundError(f"{folder / delta.DELTA}: no such file; gru-fast forget writes it with --keep-delta")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"--output-dir: expected a new or an empty folder, got {target}")
    options = ModelOptions(model=str(folder), dtype=said["options"]["dtype"])
    model = load_model(options)
    delta.restore_(model, folder)
    delta.in_its_dtype(model).save_pretrained(target)
    load_tokenizer(options).save_pretrained(target)
    if said["earlier"]:  # the next request asks whether these are still forgotten
        runs.write_json(target / manifest.EARLIER, said["earlier"])
    print(f"{target}: the model before {folder}, bit for bit (weights {said['model']['weights'][:12]})")
    return 0
