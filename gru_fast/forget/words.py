"""What a request came to, in plain words: the verdict with the guarantee that it names, and what it does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gru_fast.forget import attacked

_TITLES = {
    "removed": "Removed, by the measures below",
    "not removed": "Not removed",
    "unknown": "Nothing to forget: the model does not know these documents",
}
_BY_ITS_OWN_TEXT = {  # nothing was compared with text that the model has never seen
    "removed": "Removed, by a mild level: that of the model's own text",
    "not removed": "Not removed",
    "unknown": "Nothing to forget that could be seen: not told apart from the model's own text",
}


def title(manifest: Mapping[str, Any]) -> str:
    """The verdict in some words."""
    return (_BY_ITS_OWN_TEXT if _is_own(manifest) else _TITLES)[manifest["verdict"]]


def headline(manifest: Mapping[str, Any]) -> str:
    """The verdict in one sentence, and what came of attacks in another."""
    return " ".join(filter(None, [_verdict(manifest), attacked.sentence(manifest.get("attacks", ()))]))


def _verdict(manifest: Mapping[str, Any]) -> str:
    measures, count = manifest["measures"], len(manifest["measures"]["before"]["forget"])
    kept = f"{measures['kept']:.1%} of the probability per token of the texts to keep is left"
    if manifest["verdict"] == "unknown":
        more = "; give --holdout, with text like the documents that it has never seen" if _is_own(manifest) else ""
        return f"{title(manifest)}{more}. Nothing was trained."
    if manifest["verdict"] == "removed":
        what = "The document is" if count == 1 else f"All {count} documents are"
        if _is_own(manifest):
            return f"{what} no better known than text the model writes itself (a mild level); {kept}."
        return f"{what} known no better than text that the model has never seen; {kept}."
    return f"Not removed: {_left(manifest)}. This is the strongest removal found at which {kept}."


def _left(manifest: Mapping[str, Any]) -> str:
    """Which documents are known after: of those known before, and others."""
    known, never = {*manifest["still_known"]}, {*manifest["never_known"]}
    said = []
    if known - never:
        said.append(f"{len(known - never)} of {manifest['measures']['known_before']} documents are still known")
    if new := len(known & never):
        said.append(f"{new} that {'was' if new == 1 else 'were'} not known before {'is' if new == 1 else 'are'} now")
    return "; ".join(said) or "the documents together are still known"


def _is_own(manifest: Mapping[str, Any]) -> bool:
    return bool(manifest["level"]["source"] == "self-written")


def guarantee(manifest: Mapping[str, Any]) -> list[str]:
    """What is said, and what is not."""
    said = [f"The rule: {manifest['rule']}"]
    if _is_own(manifest):
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
            f"It does not say that the model is one that never saw the documents, nor that no attack brings them back: "
            f"{_attacked(manifest)} It says nothing of what follows from the documents, or repeats them in other words."
        ),
    ]
    return said


def _attacked(manifest: Mapping[str, Any]) -> str:
    """Which attacks have been made, and which have not."""
    made = [each["attack"] for each in manifest.get("attacks", ())]
    if made:
        return f"made were {', '.join(made)}, below, and the same with more effort, or others, may bring back more."
    asked_for = manifest["options"].get("attack") and manifest["verdict"] != "unknown"
    if asked_for:
        return "those that were asked for are not done yet; the same command with --resume goes on."
    return "not retraining on a part of them, other prompts, sampling many times, or quantization."


def attacks(manifest: Mapping[str, Any]) -> str:
    """What the numbers of attacks are; "" where there are none."""
    found = manifest.get("attacks", ())
    if not found:
        return ""
    beside = (
        "Beside it the same of the retrained model, which never saw the documents: only what is above that came back."
        if attacked.has_retrained(found)
        else "What the same attack would do to a model that never saw the documents is not known here: a part of it "
        "may be what the attack itself teaches."
    )
    return f"Back: the share of the way from the model to the original that the attack made. {beside}"


def quality(manifest: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """A row a kept set: name, perplexity before and after, share of the probability per token that is left."""
    before, after = (manifest["measures"][when]["perplexities"] for when in ("before", "after"))
    names = {"retain": "text to keep that was not trained on", "neutral": "neutral text"}
    return [(names.get(name, name), value, after[name], value / after[name]) for name, value in before.items()]


def membership(manifest: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """A row a membership attack: name, AUC before and after."""
    before, after = (manifest["measures"][when]["membership"] for when in ("before", "after"))
    return [(name.removeprefix("mia_").replace("_", " "), value, after[name]) for name, value in before.items()]
