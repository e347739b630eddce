"""manifest.json: what a request was, on which model, with what result, so that it can be checked without the documents.

It holds hashes of the model's files before and after, and of the documents, salted, so that nobody can try texts from a
list against several manifests at once; no text.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gru_fast import runs
from gru_fast.core.sharded.shards import whole
from gru_fast.data.own import Document
from gru_fast.models.load import find

MANIFEST = "manifest.json"
FORMAT = 1
_MODEL_FILES = (  # all that says what a model computes, or what it is asked with
    *("*.safetensors", "*.bin", "*.gguf", "*.index.json", "config.json", "adapter_config.json"),
    *("generation_config.json", "*.py", "chat_template*", "tokenizer*", "*.model", "vocab.*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "additional_chat_templates/*"),
)
EARLIER = "earlier.json"  # beside a model that gru-fast restore gave back: the requests before it
_OTHERS = ("delta.safetensors", "task_vector.safetensors", "training_args.bin")  # beside a model, but no part of it
_BLOCK = 2**22


def files_of(model: str | Path) -> dict[str, str]:
    """SHA-256 of the files of a model in a folder, or of its GGUF file, by name; none of a name on the hub."""
    found = find(str(model))
    if found is None:
        return {}
    if found.is_file():
        return {found.name: _sha256(found)}
    files = sorted({file for form in _MODEL_FILES for file in found.glob(form) if file.is_file()})
    return {str(file.relative_to(found).as_posix()): _sha256(file) for file in files if file.name not in _OTHERS}


def weights_hash(model: nn.Module) -> str:
    """128-bit hash of all parameters of a model: names, dtypes, shapes, bits."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, param in model.named_parameters():
        value = whole(param.detach()).cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def new_salt() -> str:
    """32 random hex digits."""
    return secrets.token_hex(16)


def document_hash(salt: str, document: Document) -> str:
    """256-bit hash of what a document says, with a salt."""
    digest = hashlib.blake2b(bytes.fromhex(salt), digest_size=32)
    for text in document.texts:
        digest.update(hashlib.blake2b(text.encode(), digest_size=32).digest())
    return digest.hexdigest()


def entries(salt: str, documents: Iterable[Document]) -> list[dict[str, str]]:
    """Documents as a manifest has them."""
    return [{"id": document.id, "hash": document_hash(salt, document)} for document in documents]


def differing(manifest: Mapping[str, Any], documents: Sequence[Document]) -> list[str]:
    """What distinguishes documents at hand from those of a manifest, in words; by content, whatever their names."""
    said = manifest["documents"]
    wanted = {each["hash"]: each["id"] for each in said["forget"]}
    found = {document_hash(said["salt"], document): document.id for document in documents}
    missing = [name for hash_, name in wanted.items() if hash_ not in found]
    added = [name for hash_, name in found.items() if hash_ not in wanted]
    return [f"{name} is not there, or says something else" for name in missing] + [
        f"{name} was not in the request" for name in added
    ]


def read(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        FileNotFoundError: none there. ValueError: not one of ours, or of a later version.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder}: no {MANIFEST} in it; expected the --output-dir of gru-fast forget, finished"
        )
    content = runs.read_json(file)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{file}: expected a manifest of format {FORMAT}; upgrade gru_fast")
    return content


def earlier(model: str) -> list[dict[str, Any]]:
    """The requests that a model has been through, oldest first: its own manifest's and those before it."""
    folder = find(model)
    if folder is None or not (folder / MANIFEST).is_file():
        given_back = None if folder is None else folder / EARLIER
        return list(runs.read_json(given_back)) if given_back is not None and given_back.is_file() else []
    last = read(folder)
    said = {
        "run": str(folder.resolve()),
        "finished": last["finished"],
        "verdict": last["verdict"],
        "documents": last["documents"],
        "options": last["options"],
        "level": last["level"],
        "before": {each["document"]: each["probability"] for each in last["measures"]["before"]["forget"]},
    }
    return [*last["earlier"], said]


def make(work: Any, outcome: Any) -> dict[str, Any]:
    """The manifest of a run that has saved its model: of a :class:`gru_fast.forget.run.Run` and what came of it."""
    before = work.identity
    environment = runs.read_json(work.folder / runs.ENVIRONMENT)
    salt = new_salt()
    measured = outcome.reason != ""
    return {
        "format": FORMAT,
        "command": environment["command"],
        "started": environment["started"],
        "finished": runs.now(),
        "verdict": outcome.verdict,
        "rule": outcome.level.rule(),
        "level": outcome.level.to_json(),
        "model": {"name": work.of_model.model, **before},
        "result": {
            "files": files_of(work.folder) if measured else before["files"],
            "weights": weights_hash(work.model) if measured and before["weights"] else before["weights"],
        },
        "documents": {"salt": salt, "forget": entries(salt, work.documents.forget)},
        "options": options_of(work),
        "versions": environment["versions"],
        "environment": {name: environment[name] for name in ("python", "platform", "devices", "commit", "processes")},
        "measures": {
            "before": _measures(outcome.before),
            "after": _measures(outcome.after),
            "kept": outcome.kept,
            "known_before": len(outcome.before.forget) - len(outcome.never_known),
            "known_after": len(outcome.still_known),  # those that were not known before with them
        },
        "training": {**outcome.facts, "ended_by": outcome.reason},
        "chosen": outcome.chosen.to_json() if outcome.chosen else None,
        "edge": [point.to_json() for point in outcome.edge],
        "still_known": {name: list(by) for name, by in outcome.still_known.items()},
        "never_known": outcome.never_known,
        "earlier": work.earlier(),
    }


def options_of(work: Any) -> dict[str, Any]:
    """The options of a run by name, without where it was written to."""
    from gru_fast.runs.folder import read_config

    return read_config(work.folder)


def _measures(found: Any) -> dict[str, Any]:
    """All measures without any text."""
    content = found.to_json()
    for each in content["extractions"]:
        for name in ("prefix", "truth", "written"):
            del each[name]
    return dict(content)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
