"""What a request came to, in plain words: the verdict with the guarantee that it names, and what it does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {
    "removed": "Removed, by the measures below",
    "not removed": "Not removed",
    "unknown": "Nothing to forget: the model does not know these documents",
}


def headline(manifest: Mapping[str, Any]) -> str:
    """The verdict in one sentence."""
    measures, count = manifest["measures"], len(manifest["measures"]["before"]["forget"])
    kept = f"{measures['kept']:.1%} of the probability per token of the texts to keep is left"
    if manifest["verdict"] == "unknown":
        return f"{TITLES['unknown']}. Nothing was trained."
    known = measures["known_before"]
    if manifest["verdict"] == "removed":
        what = "The document is" if count == 1 else f"All {count} documents are"
        return f"{what} known no better than text that the model has never seen; {kept}."
    after = measures["known_after"]
    how = f"{after} of {known} documents are still known" if after else "the documents together are still known"
    return f"Not removed: {how}. This is the strongest removal found at which {kept}."


def guarantee(manifest: Mapping[str, Any]) -> list[str]:
    """What is said, and what is not."""
    said = [f"The rule: {manifest['rule']}"]
    source = manifest["level"]["source"]
    if source == "self-written":
        said.append(
            "The level is that of text which the model wrote itself. Such text is more predictable than most that a "
            "person wrote, so the level is a mild one: --holdout, with text like the documents that the model has "
            "never seen, gives a better one."
        )
    if manifest["verdict"] == "not removed":
        said.append(
            "With this --keep it was not reached. The curves show what each removal cost; a lower --keep, more text to "
            "keep (--retain), or another --method may go further."
        )
    said += [
        (
            "Measured is what the model gives away when it is asked for the text: how probable it finds it, and what "
            "it writes after its beginning, greedily. That is empirical and holds for these measures."
        ),
        (
            "It does not say that the model is one that never saw the documents, nor that no attack brings them back: "
            "not retraining on a part of them, other prompts, sampling many times, or quantization. It says nothing of "
            "what follows from the documents, or repeats them in other words."
        ),
    ]
    return said


def quality(manifest: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """A row a kept set: name, perplexity before and after, share of the probability per token that is left."""
    before, after = (manifest["measures"][when]["perplexities"] for when in ("before", "after"))
    names = {"retain": "text to keep that was not trained on", "neutral": "neutral text"}
    return [(names.get(name, name), value, after[name], value / after[name]) for name, value in before.items()]


def attacks(manifest: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """A row a membership attack: name, AUC before and after."""
    before, after = (manifest["measures"][when]["membership"] for when in ("before", "after"))
    return [(name.removeprefix("mia_").replace("_", " "), value, after[name]) for name, value in before.items()]
