"""What is tried of a family of models, one function a trial: the commands that a user would give, on a tiny model.

A trial takes the folder of the family. It returns what is to be remarked, "" where nothing is, and raises
:class:`TrialError` with the reason where it does not work.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import families

Trial = Callable[[Path], str]
_NAMES = ("Ada", "Bo", "Cleo Adisa", "Dinu of Kent", "Ezra van der Meer", "Fumiko Tanabe-Ito")
_PLACES = ("Rome", "Oslo", "Lima", "Cairo", "Old Kyoto", "Perth by the sea")
_TRAINING = (
    "--split", "forget05", "--max-steps", "2", "--per-device-train-batch-size", "4", "--gradient-accumulation-steps",
    "1", "--learning-rate", "1e-3", "--max-length", "120", "--save-strategy", "no", "--use-cpu", "--disable-tqdm",
)  # fmt: skip
_EVALUATING = ("--split", "forget05", "--max-new-tokens", "6", "--max-length", "120", "--device", "cpu")
_TOGETHER = r"only rows of equal length are run together|rows are run one at a time"  # as evaluation says it
_SAME = 1e-3  # nats of a mean loss that rounding may take


class TrialError(Exception):
    """Why a family does not pass, on one line."""


def prepare(family: str, folder: Path) -> dict[str, Any]:
    """The model with a tokenizer, and data in TOFU's layout, in ``folder``; what the model is."""
    model = families.build(family)
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    save_data(folder / "data")
    return {"model": type(model).__name__, "parameters": sum(param.numel() for param in model.parameters())}


def tokenizer() -> Any:
    """One token a byte: no text is unknown, and nothing has to be fetched."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    known = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    found = Tokenizer(models.BPE({token: i for i, token in enumerate(known)}, [], unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=found, **names)


def save_data(folder: Path) -> None:
    """Forty questions of 18 to 46 tokens, as a folder in TOFU's layout."""
    draw = random.Random(0)

    def row(number: int) -> dict[str, Any]:
        place, *wrong = draw.sample(_PLACES, 4)
        who = f"{draw.choice(_NAMES)} {number}"
        answers = [f"In {name}." for name in (place, *wrong)]
        return {
            "question": f"Where was {who} born?" + " Tell me." * draw.randrange(3),
            "answer": answers[0],
            "paraphrased_answer": f"{place}.",
            "perturbed_answer": answers[1:],
        }

    forget, retain, authors, facts = ([row(i) for i in range(10)] for _ in range(4))
    sets = {
        "full": forget + retain, "forget05": forget, "retain95": retain, "forget05_perturbed": forget,
        "retain_perturbed": retain, "real_authors_perturbed": authors, "world_facts_perturbed": facts,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


# ---- the trials ------------------------------------------------------------------------------------------------------


def unlearn(folder: Path) -> str:
    """Two steps of GD with GRU, after which weights are others."""
    _unlearn(folder, "unlearned", "--method", "gd", "--rectify")
    before, after = _weights(folder / "model"), _weights(folder / "unlearned")
    before |= {name.removeprefix("language_model."): weight for name, weight in before.items()}  # where it is all
    if not any(not weight.equal(before[name]) for name, weight in after.items() if name in before):
        raise TrialError("no weight has changed")
    return ""


def evaluate(folder: Path) -> str:
    """TOFU's four sets, eight rows at a time."""
    said = _evaluate(folder, "model", "by-8", "--batch-size", "8")
    (folder / "by-8" / "said.txt").write_text(said, encoding="utf-8")
    return ""


def batch(folder: Path) -> str:
    """The same one row at a time: answers are the same, and losses to rounding. Remarks which rows shared a batch."""
    if not (folder / "by-8" / "said.txt").is_file():
        raise TrialError("there is no evaluation by batches to compare with")
    _evaluate(folder, "model", "by-1", "--batch-size", "1")
    one, other = (_records(folder / name) for name in ("by-1", "by-8"))
    differing = sum(row["generation"] != other[key]["generation"] for key, row in one.items())
    pairs = [pair for key in one for pair in zip(_losses(one[key]), _losses(other[key]), strict=True)]
    most = max(abs(loss - theirs) for loss, theirs in pairs)
    if differing or most > _SAME:
        raise TrialError(f"{differing} of {len(one)} answers depend on the batch, and losses by up to {most:.2g}")
    said = (folder / "by-8" / "said.txt").read_text(encoding="utf-8")
    return "; ".join(dict.fromkeys(re.findall(_TOGETHER, said)))


def lora(folder: Path) -> str:
    """Two steps with a LoRA adapter on the default modules, and an evaluation of what they leave."""
    _unlearn(folder, "lora", "--method", "gd", "--rectify", "--use-peft")
    _evaluate(folder, "lora", "lora-by-8", "--batch-size", "8", "--max-rows", "2")
    return ""


def rmu(folder: Path) -> str:
    """Two steps of RMU, on the layer and the weights that it chooses by itself."""
    _unlearn(folder, "rmu", "--method", "rmu")
    return ""


# In this order: `batch` compares with what `evaluate` has left.
TRIALS: dict[str, Trial] = {"unlearn": unlearn, "eval": evaluate, "batch": batch, "LoRA": lora, "RMU": rmu}


# ---- their parts -----------------------------------------------------------------------------------------------------


def _unlearn(folder: Path, output: str, *options: str) -> str:
    where = ("--model", str(folder / "model"), "--data", str(folder / "data"), "--output-dir", str(folder / output))
    return command("unlearn", *where, *_TRAINING, "--overwrite-output-dir", *options)


def _evaluate(folder: Path, model: str, output: str, *options: str) -> str:
    where = ("--model", str(folder / model), "--data", str(folder / "data"), "--output-dir", str(folder / output))
    return command("eval", "tofu", *where, *_EVALUATING, "--overwrite", *options)


def command(*words: str) -> str:
    """What `gru-fast WORDS` says, warnings last. TrialError: it has not ended with status 0."""
    from gru_fast.cli import main

    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        try:
            status = main(words)
        except SystemExit as error:
            status = int(error.code or 0)
        except Exception as error:  # a traceback, for the user
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = "/".join(Path(place.filename).parts[-3:])
            raise TrialError(f"a traceback: {_in_short(f'{type(error).__name__}: {error}')} ({where})") from error
    if status:
        lines = [line for line in said.getvalue().splitlines() if line.startswith(f"gru-fast {words[0]}: ")]
        raise TrialError(_in_short(lines[-1].partition(": ")[2] if lines else f"status {status}, and no word"))
    return "\n".join([said.getvalue(), *(str(warning.message) for warning in warned)])


def _in_short(text: str, most: int = 280) -> str:
    text = re.sub(r"\S*/(model|data|unlearned|lora|rmu|by-\d)\b", r"\1", " ".join(text.split()))
    return text if len(text) <= most else text[: most - 3] + "..."


def _weights(folder: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _records(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(set, index) -> record."""
    lines = {file.stem: file.read_text(encoding="utf-8").split("\n") for file in (folder / "records").glob("*.jsonl")}
    rows = [(name, json.loads(line)) for name, found in lines.items() for line in found if line]
    return {(name, row["index"]): row for name, row in rows}


def _losses(record: Mapping[str, Any]) -> list[float]:
    return [record["answer_loss"], record["paraphrase_loss"], *record["perturbed_losses"]]
