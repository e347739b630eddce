"""Which families of models work: each as a tiny random model, with the commands that a user would give.

    python bench/model_families.py                  all that results/families.json lacks, then the page docs/families.md
    python bench/model_families.py --anew           all of them; some minutes on two cores
    python bench/model_families.py rwkv gpt2        these, whatever is there
    python bench/model_families.py --page           only the page

Needs no network. Every family runs in a process of its own: one that crashes or hangs is said to, and the rest goes on.
What is known is written after each trial, so that a stopped run goes on where it was. `families.py` lists the families,
`family_trials.py` what is tried.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # of a checkout that is not installed

import families
import family_trials

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "families.json"
PAGE = ROOT / "docs" / "families.md"
# Imported once, by the process that all others are forked from.
_PRELOAD = [
    "torch",
    "transformers",
    "peft",
    "gru_fast.unlearn",
    "gru_fast.benchmarks.tofu",
    "families",
    "family_trials",
]
_DEATHS = {-9: "killed, perhaps for its memory", -11: "it crashed (segmentation fault)"}
_context = multiprocessing.get_context("forkserver")


# ---- running ---------------------------------------------------------------------------------------------------------


def run_family(family: str, limit: float) -> dict[str, Any]:
    """All trials of a family: {"model", "parameters", "trials": {trial: {"works", "says", "seconds"}}}.

    A process takes the trials one after the other and notes each. If it ends early, or takes longer than ``limit``
    seconds, the trial that it was at is noted as failed, and another process takes the rest.
    """
    with tempfile.TemporaryDirectory(prefix="families-") as name:
        folder = Path(name)
        notes = folder / "notes.json"
        _write(notes, {"trials": {}})
        while len(_read(notes)["trials"]) < len(family_trials.TRIALS):
            process = _context.Process(target=try_rest, args=(family, folder))
            process.start()
            process.join(limit)
            if process.is_alive():
                process.kill()
                process.join()
                _note_failure(notes, f"it takes longer than {limit:g} s")
            elif process.exitcode:
                _note_failure(notes, _DEATHS.get(process.exitcode, f"it ended with status {process.exitcode}"))
        return _read(notes)


def try_rest(family: str, folder: Path) -> None:
    """The trials that ``folder``'s notes lack; run in a process of its own."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    notes = folder / "notes.json"
    found = _read(notes)
    if not (folder / "model").is_dir():
        try:
            found |= family_trials.prepare(family, folder)
        except Exception as error:  # noqa: BLE001  whatever a family raises is a result
            reason = f"no tiny model: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            found["trials"] = {name: {"works": False, "says": reason, "seconds": 0.0} for name in family_trials.TRIALS}
            return _write(notes, found)
        _write(notes, found)
    for name, trial in family_trials.TRIALS.items():
        if name not in found["trials"]:
            found["trials"][name] = _outcome(trial, folder)
            _write(notes, found)
    return None


def _outcome(trial: family_trials.Trial, folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        says, works = trial(folder), True
    except family_trials.TrialError as error:
        says, works = str(error), False
    except Exception as error:  # noqa: BLE001  whatever a family raises is a result
        says, works = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", False
    return {"works": works, "says": says, "seconds": round(time.perf_counter() - began, 2)}


def _note_failure(notes: Path, reason: str) -> None:
    """Of the trial that was going on: the first that is not noted."""
    found = _read(notes)
    at = next((name for name in family_trials.TRIALS if name not in found["trials"]), None)
    if at is not None:
        found["trials"][at] = {"works": False, "says": reason, "seconds": None}
        _write(notes, found)


def run_all(names: Sequence[str], results: Path, limit: float, processes: int) -> None:
    """Runs families, and puts each into ``results`` as soon as it is done."""
    lock = Lock()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the server begins, which inherits it
    _context.set_forkserver_preload(_PRELOAD)

    def one(family: str) -> None:
        found = run_family(family, limit)
        with lock:
            known = _read(results) if results.is_file() else {"families": {}}
            known["versions"] = {name: version(name) for name in ("torch", "transformers", "peft")}
            known["families"][family] = found
            known["families"] = {
                name: known["families"][name] for name in families.FAMILIES if name in known["families"]
            }
            results.parent.mkdir(parents=True, exist_ok=True)
            _write(results, known)
            print(
                f"{family:<20}" + "  ".join(f"{name} {_mark(of)}" for name, of in found["trials"].items()), flush=True
            )

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(one, names))


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, content: Mapping[str, Any]) -> None:
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    new.replace(file)


# ---- the page --------------------------------------------------------------------------------------------------------

_HEAD = """\
# Model families

{count} families of `transformers`, each as a random model of some ten thousand weights, have been tried with this
project's commands, on a CPU in float32. That shows whether a family can be used here, not how well it unlearns.

| column | tried |
| --- | --- |
| unlearn | two steps of `gru-fast unlearn --method gd --rectify`; weights have changed |
| eval | `gru-fast eval tofu --batch-size 8` |
| batch | the same with `--batch-size 1`: equal answers, and losses equal to rounding |
| LoRA | two steps with `--use-peft` and its defaults, and an evaluation of the merged model |
| RMU | two steps of `--method rmu` with its defaults |

"yes *" of a batch: in this family a row depends on the rows beside it, or on padding. Evaluation notices, says so once,
and runs only rows of equal length together, or one row at a time, which is slower. That is tried on your model itself,
and does not rest on this table.

Of Llama 4 saved whole the text is loaded, trained and saved; a warning says so. Gemma 3 is loaded whole, and its vision
stays as it was.

Made with {versions}. To see what holds with others, in some eight minutes
and without a network:

    python bench/model_families.py --anew
"""


def page(results: Mapping[str, Any]) -> str:
    """docs/families.md."""
    found = results["families"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [_HEAD.format(count=len(found), versions=versions)]
    for title, names in families.GROUPS.items():
        rows = [_row(name, found[name]) for name in names if name in found]
        lines += [f"## {title}\n", f"| family | model | {' | '.join(family_trials.TRIALS)} |"]
        lines += ["| --- " * (2 + len(family_trials.TRIALS)) + "|", *rows, ""]
    lines += ["## What does not work, or only in part\n"]
    lines += _reasons(found)
    return "\n".join(lines) + "\n"


def _row(family: str, found: Mapping[str, Any]) -> str:
    marks = [_mark(found["trials"][name]) for name in family_trials.TRIALS]
    return f"| {family} | {found.get('model', '-')} | {' | '.join(marks)} |"


def _mark(outcome: Mapping[str, Any]) -> str:
    return ("yes *" if outcome["says"] else "yes") if outcome["works"] else "no"


def _reasons(found: Mapping[str, Any]) -> list[str]:
    """One line for each reason of a trial, with the families that it holds for."""
    families_of: dict[tuple[str, str], list[str]] = {}
    in_full: dict[tuple[str, str], str] = {}
    for family, of in found.items():
        for trial, outcome in of["trials"].items():
            if outcome["says"]:
                reason = re.sub(r" \([^()]{30,}\)", "", outcome["says"])  # lists of a model's own names
                same = trial, re.sub(r"\d+|'[^']*'", "", reason)[:100]
                in_full.setdefault(same, reason)
                families_of.setdefault(same, []).append(family)
    order = sorted(in_full, key=lambda same: list(family_trials.TRIALS).index(same[0]))
    return [f"- **{same[0]}**, {', '.join(families_of[same])}: {_as_text(in_full[same])}" for same in order]


def _as_text(reason: str) -> str:
    """A reason in Markdown, with nothing in it taken for a mark."""
    return "`` " + reason.replace("`", "'") + " ``" if any(sign in reason for sign in "`*_<[|") else reason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="by default all that are not in the results")
    parser.add_argument("--anew", action="store_true", help="all, also what is there")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    parser.add_argument("--limit", type=float, default=180, help="seconds for the trials of a family (default: 180)")
    parser.add_argument("--processes", type=int, default=1, help="families at a time (default: 1)")
    args = parser.parse_args()
    unknown = [name for name in args.families if name not in families.FAMILIES]
    if unknown:
        parser.error(f"unknown family {', '.join(unknown)}; known: {', '.join(families.FAMILIES)}")
    known = _read(RESULTS)["families"] if RESULTS.is_file() and not args.anew else {}
    names = args.families or [name for name in families.FAMILIES if name not in known]
    if not args.page:
        run_all(names, RESULTS, args.limit, args.processes)
    PAGE.write_text(page(_read(RESULTS)), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} and {RESULTS.relative_to(ROOT)} are written")


if __name__ == "__main__":
    main()
