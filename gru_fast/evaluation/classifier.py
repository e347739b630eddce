"""What a classifier says of texts that a model wrote: are they language?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gru_fast.metrics.fluency import CLEAN_LABEL, GIBBERISH_TOKENS
from gru_fast.models.forward import by_length
from gru_fast.models.frozen import frozen
from gru_fast.runs.messages import first_line


def load_classifier(name: str, device: Any) -> tuple[Any, Any]:
    """A text classifier, with its tokenizer. FileNotFoundError where there is none to be had."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        classifier = AutoModelForSequenceClassification.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"gibberish_model: cannot get {name} ({first_line(error)}); check the connection, or give "
            "--gibberish-model a folder"
        ) from None
    return classifier.to(device).eval(), tokenizer


def clean_probabilities(
    classifier: Any, tokenizer: Any, texts: Sequence[str], *, batch_size: int, max_tokens: int = GIBBERISH_TOKENS
) -> list[float]:
    """Probability of the label "clean" for each text, of its first ``max_tokens`` tokens.

    Raises:
        ValueError: a classifier without that label.
    """
    labels = {str(label).lower(): int(i) for i, label in classifier.config.id2label.items()}
    if CLEAN_LABEL not in labels:
        raise ValueError(
            f'gibberish_model: expected a classifier with a label "{CLEAN_LABEL}", got {", ".join(labels) or "none"}'
        )
    found: list[float] = [0.0] * len(texts)
    with frozen(classifier):
        for rows in by_length([len(text) for text in texts], batch_size):
            batch = tokenizer(
                [texts[i] for i in rows],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=max_tokens,
            ).to(classifier.device)
            probs = classifier(**batch).logits.float().softmax(dim=-1)[:, labels[CLEAN_LABEL]]
            for i, prob in zip(rows, probs.tolist(), strict=True):
                found[i] = prob
    return found
