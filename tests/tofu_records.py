"""Records of an evaluation on TOFU that no model has made."""

from __future__ import annotations

from gru_fast.metrics.records import Record, Records


def records(num_rows: int = 3) -> Records:
    """All four sets, every field filled, losses different in every row."""
    found: Records = {}
    for number, name in enumerate(("forget", "retain", "real_authors", "world_facts")):
        has_paraphrase = name in {"forget", "retain"}
        answer = [0.5 + 0.1 * i + number for i in range(num_rows)]
        found[name] = [
            Record(
                index=i,
                question=f"Who is {name} {i}?",
                answer=f"It is {i}.",
                answer_loss=answer[i],
                num_tokens=4,
                paraphrase_loss=answer[i] + 0.25 if has_paraphrase else answer[i],
                perturbed_losses=(answer[i] + 0.5, answer[i] + 0.125),
                generation="It\u2028is.",
                rouge1_recall=0.75,
                rougeL_recall=0.5,
                paraphrase_num_tokens=5 if has_paraphrase else 4,
                perturbed_num_tokens=(3, 6),
            )
            for i in range(num_rows)
        ]
    return found
