"""Is this the model that was measured, and does it measure the same?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gru_fast.data.own import load
from gru_fast.evaluation.asking import Scorer
from gru_fast.forget import manifest
from gru_fast.forget.exam import Findings, Standard, examine
from gru_fast.forget.level import Level, name_of
from gru_fast.forget.measures import MEASURES, of_set
from gru_fast.forget.options import ForgetOptions
from gru_fast.forget.request import WRITTEN, Documents, make, read
from gru_fast.models.adapters import base_of, is_adapter
from gru_fast.models.load import find

_TOLERANCE = 0.01  # relative, of measures on another machine


@dataclass(frozen=True)
class Check:
    """A line of the answer.

    Args:
        what: was checked.
        is_so: whether it holds; None: it could not be checked.
        found: in words.
    """

    what: str
    is_so: bool | None
    found: str

    def __str__(self) -> str:
        verdict = {True: "ok  ", False: "NOT ", None: "not checked"}[self.is_so]
        return f"{verdict} {self.what}: {self.found}"


def check_files(folder: Path, model: str) -> list[Check]:
    """The files of a model against those of the manifest: the result's, or, if they are those, the original's.

    Of an adapter the model below it is checked too, since both together are what was measured.
    """
    said = manifest.read(folder)
    found = manifest.files_of(model)
    if not found:
        return [Check("files", False, f"{model} is a name on the hub; give the folder that it is in")]
    weights = {name for name in found if name.endswith((".safetensors", ".bin", ".gguf"))}
    wanted, before = said["result"]["files"], said["model"]["files"]
    if weights and found != wanted and all(before.get(name) == found[name] for name in weights):
        return [Check("files", False, "the weights are those of the model BEFORE the request")]
    place = find(model)
    return [_same("files", found, wanted), *(_base(said, place) if place is not None and is_adapter(place) else [])]


def _same(what: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> Check:
    """Whether files are those of a manifest, all of them and no others."""
    if not wanted:
        return Check(what, False, "the manifest has no hashes to compare with: the model was a name on the hub")
    lacking = sorted(name for name, hash_ in wanted.items() if found.get(name) != hash_)
    added = sorted({*found} - {*wanted})
    said = [f"{len(lacking)} of {len(wanted)} differ or are not there: {', '.join(lacking[:5])}"] if lacking else []
    said += [f"{len(added)} more that were not there: {', '.join(added[:5])}"] if added else []
    return Check(what, not said, "; ".join(said) or f"all {len(wanted)} are those that were measured")


def _base(said: Mapping[str, Any], adapter: Path) -> list[Check]:
    """The model that an adapter lies on; where it is an adapter itself, by its own manifest what that lies on."""
    what = "files of the model below the adapter"
    try:
        base = base_of(adapter)
        checks = [_same(what, manifest.files_of(base), said["model"]["files"])]
        place = find(base)
        if place is not None and is_adapter(place):
            checks += check_files(place, base)
    except (OSError, ValueError) as error:
        return [Check(what, False, str(error))]
    return checks


def documents_of(folder: Path, given: Sequence[str] | None) -> tuple[Documents | None, list[Check]]:
    """All documents of a request, those to forget as given or where they were; None where some are not at hand."""
    said = manifest.read(folder)
    options = _options(said)
    sources = list(given or options.forget or ())
    try:
        found = load(sources, columns=options.columns)
    except (OSError, ValueError, ImportError) as error:
        if given:
            raise
        return None, [Check("documents", None, f"not at hand, so nothing is measured again: give --forget ({error})")]
    differing = manifest.differing(said, found)
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return None, [Check("documents", False, f"are not those of the request: {'; '.join(differing[:3])}{more}")]
    checks = [Check("documents", True, f"all {len(found)} are those of the request")]
    try:
        return read(options, forget=found), checks
    except (OSError, ValueError, ImportError) as error:
        why = f"the texts to compare with are not at hand, so nothing is measured again ({error})"
        return None, [*checks, Check("measures", None, why)]


def measure(folder: Path, documents: Documents, scorer: Scorer, template: Any) -> tuple[Findings, list[Check]]:
    """Measures a model as the run did, and holds it against the manifest."""
    said = manifest.read(folder)
    options = _options(said)
    request = make(documents, options, scorer.model, scorer.tokenizer, template, folder, as_written=folder / WRITTEN)
    found = examine(
        scorer,
        request.texts,
        prefix=options.prefix,
        length=options.length,
        generate=options.generate,
        keep_text=options.text,
    )
    return found, compare(said, found)


def compare(said: Mapping[str, Any], found: Findings) -> list[Check]:
    """The measures of a model, held against those of a manifest."""
    then = Findings.from_json(_with_texts(said["measures"]["after"]))
    ours, theirs = of_set("forget", found.forget), of_set("forget", then.forget)
    checks = [_close(f"forget: {name_of(measure)}", ours[measure], theirs[measure]) for measure in MEASURES]
    checks += [
        _close(f"perplexity: {name}", found.perplexities[name], value) for name, value in then.perplexities.items()
    ]
    level = Level.from_json(said["level"])
    verdict = "removed" if level.judge(found.forget).removed else "not removed"
    wanted = said["verdict"] if said["verdict"] != "unknown" else "removed"
    kept = Standard(level, said["measures"]["before"]["perplexities"]).kept(found.perplexities)
    checks.append(Check("verdict", verdict == wanted, f"{verdict} (then: {said['verdict']}), kept {kept:.1%}"))
    return checks


def _close(what: str, now: float, then: float) -> Check:
    return Check(what, abs(now - then) <= _TOLERANCE * max(abs(then), 0.01), f"{now:.4g} (then {then:.4g})")


def _options(said: Mapping[str, Any]) -> ForgetOptions:
    import dataclasses

    names = {field.name for field in dataclasses.fields(ForgetOptions)}
    return ForgetOptions(**{name: value for name, value in said["options"].items() if name in names})


def _with_texts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Measures of a manifest, which has no texts, in the form that has."""
    empty = {"prefix": "", "truth": "", "written": ""}
    return {**content, "extractions": [{**each, **empty} for each in content["extractions"]]}
