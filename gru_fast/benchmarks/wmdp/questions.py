"""Questions of one's own in the layout of cais/wmdp and cais/mmlu, as tasks of lm-eval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gru_fast.data.hashes import joined_hash
from gru_fast.data.rows import load_rows

_SUBJECTS = {"wmdp_bio": "biology", "wmdp_chem": "chemistry", "wmdp_cyber": "cybersecurity"}
_LETTERS = ("A", "B", "C", "D")
_FIELDS: dict[str, type] = {"question": str, "choices": list}


def prompt(row: Mapping[str, Any], subject: str | None) -> str:
    """A question as lm-eval's own wmdp and mmlu tasks put it; what follows is " A", " B", " C" or " D"."""
    choices = "".join(f"{letter}. {text}\n" for letter, text in zip(_LETTERS, row["choices"], strict=True))
    about = f"The following are multiple choice questions (with answers) about {subject}.\n\n" if subject else ""
    return f"{about}{row['question'].strip()}\n{choices}Answer:"


def local_task(name: str, folder: Path) -> dict[str, Any]:
    """The questions of ``folder/NAME.jsonl`` (or .json) as they are asked, and a hash of them.

    Raises:
        FileNotFoundError, ValueError: no such file or field, with its row.
    """
    rows = load_rows(folder, name, _FIELDS)
    asked = []
    for index, row in enumerate(rows):
        where = f"{folder / name}, row {index}"
        if len(row["choices"]) != len(_LETTERS):
            raise ValueError(f'{where}: field "choices": expected {len(_LETTERS)} texts, got {len(row["choices"])}')
        if row.get("answer") not in range(len(_LETTERS)):
            raise ValueError(f'{where}: field "answer": expected 0, 1, 2 or 3, got {row.get("answer")!r}')
        subject = _SUBJECTS.get(name, row.get("subject"))
        asked.append({"prompt": prompt(row, subject and subject.replace("_", " ")), "answer": row["answer"]})
    return {"name": name, "rows": asked, "content": joined_hash([json.dumps(asked)])}


def contents(specs: Mapping[str, Any]) -> dict[str, str | None]:
    """Hash of the questions of each task; None of lm-eval's own."""
    return {name: spec["content"] if isinstance(spec, dict) else None for name, spec in specs.items()}


def definition(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A task of our own rows as lm-eval takes it."""
    import datasets

    rows = datasets.Dataset.from_list(spec["rows"])
    return {
        "task": spec["name"],
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": list(_LETTERS),
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
