"""What of an unlearning beside a 4-bit base is left in each model that can be made of it.

    python bench/merge_survival.py --data ../shared/tofu --folder /tmp/survival
    python bench/merge_survival.py --data ../shared/tofu --folder /tmp/other --model MODEL --learn-epochs 6 --rate 2e-4

Teaches a model some of TOFU (whole, as gru-fast finetune does), takes a part out again with --load-in-4bit --use-peft
--rectify, and prints the mean probability per answer token, of rows to forget and of rows to keep, by each:

original            the model that knows the rows
original, nf4       in 4 bits
trained             4 bits and the adapter beside them: what gru-fast eval evaluates
into base           gru-fast merge: the adapter merged into the original's weights
into 4 bits         gru-fast merge --into-4bit: into what the 4 bits stand for
..., bf16           that written in bfloat16
..., nf4            that in 4 bits again

"back": how much of what the unlearning took from the log-probability of the rows to forget is there again, of what it
took from "original, nf4"; below 0 where even more is gone.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from gru_fast.cli import main as gru_fast


def rows_of(args: argparse.Namespace) -> Path:
    """A folder in TOFU's layout with the first rows of forget05 and retain95, and both as full."""
    folder = Path(args.folder) / "data"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name, count in (("forget05", args.forget), ("retain95", args.retain)):
        lines = (Path(args.data) / f"{name}.json").read_text(encoding="utf-8").splitlines()[:count]
        parts[name] = "".join(line + "\n" for line in lines)
    for name, text in {**parts, "full": "".join(parts.values())}.items():
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def small_model(folder: Path, data: Path) -> Path:
    """A Llama of 2 layers and 256 features that knows nothing, with a tokenizer of the rows' own."""
    from gru_fast.data.templates import TEMPLATES
    from gru_fast.demo.model import make_model, make_tokenizer

    rows = [json.loads(line) for line in (data / "full.json").read_text(encoding="utf-8").splitlines()]
    tokenizer = make_tokenizer([(row["question"], row["answer"]) for row in rows], TEMPLATES["plain"])
    for made in (make_model(tokenizer, 0, 256, 2), tokenizer):
        made.save_pretrained(folder / "small")
    return folder / "small"


def run(*argv: Any) -> None:
    if gru_fast([str(word) for word in argv]):
        raise SystemExit(f"gru-fast {argv[0]} failed")


def probability(options: Any, data: Path) -> tuple[float, float]:
    """Mean over the rows of exp(mean log p of an answer's tokens), of forget05 and of retain95."""
    from gru_fast.benchmarks.tofu.rows import finetuning_data
    from gru_fast.models.forward import of_each_row
    from gru_fast.models.head import label_scores_of
    from gru_fast.models.load import load_model, load_template, load_tokenizer

    tokenizer, model = load_tokenizer(options), load_model(options)
    found = []
    for split in ("forget05", "retain95"):
        rows = finetuning_data(tokenizer, load_template(options, tokenizer), split, str(data), 256)
        rows = [rows[index] for index in range(len(rows))]
        sums = of_each_row(
            model,
            rows,
            lambda batch: label_scores_of(model, batch).sequence_log_probs.tolist(),
            batch_size=8,
            pad_token_id=tokenizer.pad_token_id,
        )
        counts = [sum(label != -100 for label in row["labels"][1:]) for row in rows]
        found.append(sum(math.exp(total / count) for total, count in zip(sums, counts, strict=True)) / len(rows))
    return found[0], found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, hub name or file.gguf, which knows no TOFU; by default a small one")
    parser.add_argument("--data", required=True, help="folder with TOFU's files")
    parser.add_argument("--folder", required=True, help="for the models")
    parser.add_argument("--forget", type=int, default=40, help="rows")
    parser.add_argument("--retain", type=int, default=60, help="rows")
    parser.add_argument("--learn-epochs", type=int, default=40)
    parser.add_argument("--learn-rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the unlearning")
    parser.add_argument("--method", default="npo_gd")
    parser.add_argument("--json", help="write the figures there")
    args = parser.parse_args()
    from gru_fast.models.load import ModelOptions

    folder, data = Path(args.folder), rows_of(args)
    original, trained = folder / "original", folder / "trained"
    how = ["--data", data, "--use-cpu", "--disable-tqdm", "--per-device-train-batch-size", 4, "--save-strategy", "no"]
    if not (original / "run.json").is_file():
        base = args.model or small_model(folder, data)
        run("finetune", "--model", base, "--output-dir", original, *how, "--num-train-epochs", args.learn_epochs,
            "--learning-rate", args.learn_rate, "--gradient-accumulation-steps", 2)  # fmt: skip
    if not (trained / "run.json").is_file():
        run("unlearn", "--model", original, "--output-dir", trained, *how, "--split", "forget05", "--load-in-4bit",
            "--use-peft", "--method", args.method, "--rectify", "--max-steps", args.steps, "--learning-rate", args.rate,
            "--gradient-accumulation-steps", 2)  # fmt: skip
    for name, more in (("base", []), ("4bit", ["--into-4bit"])):
        for dtype in ("float32", "bfloat16"):
            target = folder / f"into-{name}-{dtype}"
            if not target.is_dir():
                run("merge", "--model", trained, "--output-dir", target, "--dtype", dtype, *more)
    template = _template(trained)
    rows = []
    for name, path, four in (
        ("original", original, False),
        ("original, nf4", original, True),
        ("trained", trained, True),
        ("into base", folder / "into-base-float32", False),
        ("into base, bf16", folder / "into-base-bfloat16", False),
        ("into base, nf4", folder / "into-base-float32", True),
        ("into 4 bits", folder / "into-4bit-float32", False),
        ("into 4 bits, bf16", folder / "into-4bit-bfloat16", False),
        ("into 4 bits, nf4", folder / "into-4bit-float32", True),
    ):
        forget, retain = probability(ModelOptions(str(path), load_in_4bit=four, template=template), data)
        rows.append({"model": name, "forget": forget, "retain": retain})
        by = {row["model"]: math.log(row["forget"]) for row in rows}
        if "trained" in by:
            rows[-1]["back"] = (by[name] - by["trained"]) / (by["original, nf4"] - by["trained"])
        back = f"{rows[-1]['back']:8.1%}" if "back" in rows[-1] else ""
        print(f"{name:<18} {forget:8.4f} {retain:8.4f} {back}", flush=True)
    if args.json:
        Path(args.json).write_text(
            json.dumps({**vars(args), "torch": torch.__version__, "rows": rows}, indent=1) + "\n"
        )
    return 0


def _template(folder: Path) -> str:
    from gru_fast.runs.folder import read_config

    return str(read_config(folder)["template"])


if __name__ == "__main__":
    raise SystemExit(main())
