"""People's own documents, for training.

Named one by one (``--forget leak/ --retain ours.jsonl``), or a folder (``--data``) with them:

forget      what to forget: a folder of documents, or a file of that name (forget.jsonl, forget.csv, ...)
retain      what to keep; not there for methods that need none
holdout     documents of the same kind that no model has seen, for the evaluation

Other names than forget are further splits: ``--data leaks --split letters``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.data.own import Document, Piece, check_apart, hold_out, load, pieces
from gru_fast.runs.messages import nearest

if TYPE_CHECKING:
    from gru_fast.data.pairs import UnlearnDataset
    from gru_fast.data.sequences import Encoded, NamedEncoded
    from gru_fast.data.templates import Template

SPLITS = ("forget",)
RETAIN, HOLDOUT = "retain", "holdout"
MAX_LENGTH = 512
HOLD_OUT = 0.1
_PARTS = ("forget", "retain")
_SELF, _NONE = "self", "none"
_WRITTEN = "self_written.jsonl"  # where gru-fast forget keeps what the model wrote
_SEED = 0  # of what is held out: the evaluation must find the same

_FILES = "files (.txt, .md, .pdf, .docx, .jsonl, .json, .csv, .tsv, .parquet), folders, globs, or org/name:config:split"


@dataclass
class OwnSources:
    """Where the documents are."""

    forget: list[str] | None = field(default=None, metadata={"help": f"what to forget: {_FILES}"})
    retain: list[str] | None = field(default=None, metadata={"help": f"what to keep: {_FILES}"})
    data: str | None = field(
        default=None, metadata={"help": "in place of --forget and --retain: a folder with forget, retain and holdout"}
    )
    split: str = field(default="forget", metadata={"help": "which part of --data is to be forgotten"})
    columns: dict[str, str] | None = field(
        default=None,
        metadata={"help": "where fields have other names: --columns question=frage answer=antwort"},
    )
    hold_out: float = field(
        default=HOLD_OUT,
        metadata={"help": "share of the documents to keep that is not trained on, for gru-fast eval own"},
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": f"tokens of a piece of a document; by default {MAX_LENGTH}, or as many as the model has positions"
        },
    )
    overlap: int | None = field(
        default=None,
        metadata={"help": "tokens that a piece has of the one before, not scored again; by default an eighth of it"},
    )

    def problems(self) -> list[str]:
        """What is wrong with them, for messages."""
        found = []
        if self.forget and self.data:
            found.append("forget: named beside --data, which has them; give one of the two")
        if self.retain and self.data:
            found.append("retain: named beside --data, which has them; give one of the two")
        if not 0 <= self.hold_out < 1:
            found.append(f"hold_out: expected a share from 0 to below 1, got {self.hold_out}")
        for name, least in (("max_length", 2), ("overlap", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < least):
                found.append(f"{name}: expected at least {least}, got {value}")
        return found

    def sources(self, part: str) -> list[str] | None:
        """Files and folders of a part: "forget", "retain", "holdout"; None: there is none.

        Raises:
            FileNotFoundError: no ``--data``, or no such split in it.
        """
        if self.data is None:
            given: list[str] | None = getattr(self, part, None)
            if part == RETAIN and given == [_SELF] and not Path(_SELF).exists():
                raise ValueError(
                    "retain: self: the model writes first, by gru-fast write-retain --output retain.jsonl; then give "
                    "--retain retain.jsonl"
                )
            return given or None
        folder = Path(self.data).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"data: expected a folder with forget, retain and holdout, got {self.data}")
        name = self.split if part == "forget" else part
        there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        found = [str(path) for path in there if name in {path.name, path.stem}]
        if part == "forget" and not found:
            known = [path.stem for path in there]
            raise FileNotFoundError(
                f'data: {folder} has {", ".join(known) or "nothing"}, but no "{name}"{nearest(name, known)}'
            )
        return found or None

    def documents(self, part: str) -> list[Document]:
        """The documents of a part, none where there is none."""
        sources = self.sources(part)
        return [] if sources is None else load(sources, columns=self.columns)

    def retained(self, forget: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        """Documents to keep: those to train on, and those held out, the same ones every time.

        Raises:
            ValueError: too many are to be forgotten as well; one alone, of which none can be held out.
        """
        found = self.documents(RETAIN)
        if not found:
            return [], []
        check_apart(forget, found)
        return hold_out(found, self.hold_out, _SEED)


@dataclass
class OwnOptions(OwnSources):
    """Which documents are forgotten and kept, and how they are cut."""

    benchmark: str = field(default="own", metadata={"help": "what to forget from", "choices": ("own",)})

    def __post_init__(self) -> None:
        problems = self.problems()
        if not self.forget and not self.data:
            problems.append("forget: no documents; give --forget FILES, or --data FOLDER")
        if problems:
            raise ValueError("; ".join(problems))


def unlearning_data(
    options: OwnSources, tokenizer: Any, template: Template, parts: Collection[str] = _PARTS, seed: int = 0
) -> UnlearnDataset:
    """The paired pieces of an unlearning run: each to forget with one to keep, drawn at random in every epoch.

    Args:
        options: which documents, and how they are cut; ``max_length`` None: 512.
        template: the words around a question.
        parts: what the run needs: "forget" (always there) and "retain". Others are not read.
        seed: of the pairing.

    Raises:
        ValueError: parts that documents do not have, such as "idk"; nothing to keep where it is needed; documents that
            cannot be read or cut.
    """
    from gru_fast.data.pairs import UnlearnDataset

    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        raise ValueError(
            f'parts: expected some of {", ".join(_PARTS)}, got "{unknown[0]}": documents have no other answer to be '
            "taught; choose another method"
        )

    def rows(documents: Sequence[Document]) -> list[Encoded]:
        found = pieces(documents, tokenizer, template, options.max_length or MAX_LENGTH, options.overlap)
        of = {document.id: document for document in documents}
        return [_named(piece, of[piece.document], template) for piece in found]

    forget = options.documents("forget")
    kept = None
    if "retain" in parts:
        kept, _ = options.retained(forget)
        if not kept:
            raise ValueError(
                "retain: no documents, and the method needs some to keep; give --retain FILES (gru-fast write-retain "
                "has the model write some), or take gru-fast tru, which needs none"
            )
    return UnlearnDataset(rows(forget), None if kept is None else rows(kept), seed=seed)


def _named(piece: Piece, document: Document, template: Template) -> Encoded:
    part = f", piece {piece.index + 1} of {piece.count}" if piece.count > 1 else ""
    row: NamedEncoded = {
        "input_ids": piece.row["input_ids"],
        "labels": piece.row["labels"],
        "document": piece.document + part,
        "piece_of": piece.document,
        "index": piece.index,
        "kind": document.kind,
    }
    question = _question(document, template)
    if question is not None:
        row["question"] = question
    return row


def _question(document: Document, template: Template) -> str | None:
    """What of a document the template puts its words around; None: nothing."""
    if document.messages is not None:  # a chat template writes the conversation itself
        return None if template.chat else str(document.messages[0]["content"])
    return None if document.raw else document.question


# ---- for gru-fast unlearn --------------------------------------------------------------------------------------------

Options = OwnOptions


def config_of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run on own documents by the names of this benchmark; empty for a run on anything else.

    That of `gru-fast forget` names no benchmark. What the model wrote itself to be kept by lies in the run folder, and
    what is not trained on has another name (held_out).
    """
    if config.get("benchmark") == "own":
        return dict(config)
    if "benchmark" in config or "forget" not in config:
        return {}
    retain = config.get("retain") or [_SELF]
    if retain == [_SELF]:
        retain = [str(Path(config.get("output_dir") or "") / _WRITTEN)]
    found = {**config, "benchmark": "own", "retain": None if retain == [_NONE] else retain}
    return {**found, "hold_out": config.get("held_out", HOLD_OUT)}


def title(options: Any) -> str:
    """Names what is forgotten, for a run's folder: the split of a folder, or the first file."""
    if options.data:
        return f"own-{options.split}"
    first = options.forget[0] if isinstance(options.forget, list) else str(options.forget or "")
    name = Path(first.partition(":")[0]).stem.strip("*.") or "documents"
    return f"own-{name}"


def default_lengths(options: OwnOptions) -> dict[str, int]:
    """The length, if it was not chosen."""
    return {"max_length": MAX_LENGTH} if options.max_length is None else {}


def retain_of(split: str) -> str:
    """What is kept beside any split."""
    return RETAIN


def unlearning(
    options: OwnOptions, tokenizer: Any, template: Template, parts: Collection[str], seed: int
) -> UnlearnDataset:
    """The data of a run."""
    return unlearning_data(options, tokenizer, template, parts, seed)
