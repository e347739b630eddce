"""WMDP: hazardous knowledge to be forgotten (Li et al. 2024, arXiv 2403.03218): its corpora, for training.

On the hub, or a folder with one JSON-lines file a corpus, whose lines are texts or objects with a ``text``:

bio-forget-corpus      papers; not for everybody, see BIO_FORGET. Also under its first name, bio_remove_dataset
cyber-forget-corpus    passages from repositories
bio-retain-corpus, cyber-retain-corpus      of the same fields, without what is hazardous
wikitext-2-raw-v1      any texts to keep; where the folder has none, those of wikitext on the hub
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gru_fast.data.rows import check_row, find_folder, load_rows, names_in_folder, read_json_rows
from gru_fast.runs.messages import nearest

if TYPE_CHECKING:
    from gru_fast.data.pairs import UnlearnDataset
    from gru_fast.data.sequences import Encoded, LazyRows
    from gru_fast.data.templates import Template

HUB = "cais/wmdp-corpora"
BIO_FORGET = "cais/wmdp-bio-forget-corpus"  # on the hub, gated
WIKITEXT = "Salesforce/wikitext"
TOPICS = ("bio", "cyber")
SPLITS = (*TOPICS, "bio-cyber")
RETAINS = ("wikitext", "corpora")
MAX_LENGTH = 1024
WIKITEXT_MAX_LENGTH = 2048
_WIKITEXT_CONFIG = "wikitext-2-raw-v1"
_WIKITEXT_MIN_CHARS = 50  # what is not longer is a heading, or nothing
_OTHER_NAMES = {"bio-forget-corpus": ("bio_remove_dataset",), _WIKITEXT_CONFIG: ("wikitext",)}
_PARTS = ("forget", "retain")
_HOW_TO_GET_IT = (
    f"the bio forget corpus is given out on request: ask on https://huggingface.co/datasets/{BIO_FORGET} and log in "
    "(hf auth login), or put its bio_remove_dataset.jsonl, or bio-forget-corpus.jsonl, into the folder of --data"
)


@dataclass
class WmdpOptions:
    """Which corpora are forgotten and kept, where they come from, and how much of a document is read."""

    data: str = field(
        default=HUB, metadata={"help": "the corpora on the hub, or a folder with cyber-forget-corpus.jsonl, ..."}
    )
    split: str = field(
        default="cyber",
        metadata={
            "help": f"what to forget: {', '.join(SPLITS)}; that of bio is given out on request",
            "choices": SPLITS,
        },
    )
    retain: str = field(
        default="wikitext",
        metadata={"help": "what to keep: wikitext, or the retain corpora of the same topics", "choices": RETAINS},
    )
    documents: int = field(
        default=0,
        metadata={"help": "how many documents to forget are used, drawn at random; the epoch is so long. 0 for all"},
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": f"tokens of a document, its first ones; by default {MAX_LENGTH}, or as many as the model has "
            "positions"
        },
    )
    retain_max_length: int | None = field(
        default=None,
        metadata={
            "help": f"tokens of a text to keep; by default {WIKITEXT_MAX_LENGTH} of wikitext, or as many as the model "
            "has positions, else max_length"
        },
    )
    benchmark: str = field(default="wmdp", metadata={"help": "what to forget from", "choices": ("wmdp",)})

    def __post_init__(self) -> None:
        problems = []
        if self.split not in SPLITS:
            problems.append(
                f'split: expected one of {", ".join(SPLITS)}, got "{self.split}"{nearest(str(self.split), SPLITS)}'
            )
        if self.retain not in RETAINS:
            problems.append(f'retain: expected one of {", ".join(RETAINS)}, got "{self.retain}"')
        least = {"documents": 0, "max_length": 2, "retain_max_length": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and name != "documents":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                problems.append(f"{name}: expected a whole number of at least {low}, got {value!r}")
        if problems:
            raise ValueError("; ".join(problems))


def topics_of(split: str) -> list[str]:
    """The topics of a split.

    >>> topics_of("bio-cyber")
    ['bio', 'cyber']
    """
    if split not in SPLITS:
        raise ValueError(f'split: expected one of {", ".join(SPLITS)}, got "{split}"{nearest(str(split), SPLITS)}')
    return split.split("-")


def load(corpus: str, data: str | Path = HUB) -> list[str]:
    """The texts of a corpus in their published order; empty ones are left out.

    Args:
        corpus: bio-forget-corpus, bio-retain-corpus, cyber-forget-corpus, cyber-retain-corpus, wikitext-2-raw-v1 (of
            which texts of up to 50 characters are left out, as in the public code).
        data: name on the hub, or a folder.

    Raises:
        FileNotFoundError, ConnectionError: no such corpus there; of the one that is given out on request, how to get
            it. ValueError: no texts in it, a line that is none.
    """
    folder = find_folder(data)
    if folder is not None:
        path = _file_of(folder, corpus)
        # A line may be a text by itself, as in the archive of the corpora.
        lines = [{"text": row} if isinstance(row, str) else row for row in read_json_rows(path)]
        for index, row in enumerate(lines):
            check_row(row, {"text": str}, f"{path}, row {index}")
        source = str(path)
    else:
        source, config, split = _on_the_hub(str(data), corpus)
        try:
            lines = load_rows(source, config, {"text": str}, split=split)
        except (FileNotFoundError, ConnectionError) as error:
            if source == BIO_FORGET:
                raise type(error)(f"{error}; {_HOW_TO_GET_IT}") from None
            raise
    shortest = _WIKITEXT_MIN_CHARS if corpus == _WIKITEXT_CONFIG else 0
    found = [row["text"] for row in lines if row["text"].strip() and len(row["text"]) > shortest]
    if not found:
        raise ValueError(f'{source}: expected texts of more than {shortest} characters in "{corpus}", got none')
    return found


def encode(tokenizer: Any, text: str, max_length: int) -> Encoded:
    """The first ``max_length`` tokens of a text, every one a label.

    What the tokenizer puts in front counts and is a label too. Padding comes later and is none: the public code pads
    to the full length and scores the padding, which is not followed.
    """
    ids = tokenizer(text, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
    return {"input_ids": ids, "labels": list(ids)}


def unlearning_data(
    tokenizer: Any,
    split: str = "cyber",
    data: str | Path = HUB,
    *,
    retain: str = "wikitext",
    documents: int = 0,
    max_length: int = MAX_LENGTH,
    retain_max_length: int | None = None,
    seed: int = 0,
    parts: Collection[str] = _PARTS,
) -> UnlearnDataset:
    """The paired documents of an unlearning run: each to forget with one to keep, drawn at random in every epoch.

    As in the public code: documents, not a stream of their tokens (as the unified framework has it); of each the first
    tokens; those of several topics together. They are tokenized when they are read.

    Args:
        split: "bio", "cyber" or "bio-cyber".
        data: hub name or folder of the corpora. Where the folder has no wikitext, it is that on the hub.
        retain: "wikitext", or "corpora": the retain corpora of the topics.
        documents: how many documents to forget are drawn (without replacement, by ``seed``); 0 for all. The paper's 20
            steps of 32 read 640: only these need reference log-probabilities.
        max_length, retain_max_length: tokens of a document to forget, and to keep. None: 2048 of wikitext, as in the
            public code, else ``max_length``.
        seed: of the documents and of the pairing.
        parts: what the run needs: "forget" (always there) and "retain". Others are not read.

    Raises:
        ValueError: parts that WMDP does not have, such as "idk"; more documents than there are.
    """
    from gru_fast.data.pairs import UnlearnDataset
    from gru_fast.data.sequences import LazyRows

    WmdpOptions(str(data), split, retain, documents, max_length, retain_max_length)  # its checks
    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        raise ValueError(
            f'parts: expected some of {", ".join(_PARTS)}, got "{unknown[0]}": WMDP is texts, not questions that could '
            "be answered otherwise; choose another method"
        )

    def rows(texts: Sequence[str], length: int, name: str, option: str) -> LazyRows:
        return LazyRows(texts, _Encode(tokenizer, length), name, length, option)

    forget = [text for topic in topics_of(split) for text in load(f"{topic}-forget-corpus", data)]
    if documents > len(forget):
        raise ValueError(f"documents: expected at most the {len(forget)} of {split}, got {documents}; 0 for all")
    if documents:
        forget = random.Random(seed).sample(forget, documents)
    kept = None
    if "retain" in parts:
        length = retain_max_length or (WIKITEXT_MAX_LENGTH if retain == "wikitext" else max_length)
        kept = rows(_retain_texts(split, retain, data), length, "retain", "--retain-max-length")
    return UnlearnDataset(rows(forget, max_length, "forget", "--max-length"), kept, seed=seed)


# ---- for gru-fast unlearn --------------------------------------------------------------------------------------------

Options = WmdpOptions


def title(options: WmdpOptions) -> str:
    """Names what is forgotten, for a run's folder."""
    return f"wmdp-{options.split}"


def default_lengths(options: WmdpOptions) -> dict[str, int]:
    """The lengths that were not chosen."""
    default = WIKITEXT_MAX_LENGTH if options.retain == "wikitext" else options.max_length or MAX_LENGTH
    lengths = {"max_length": MAX_LENGTH, "retain_max_length": default}
    return {name: length for name, length in lengths.items() if getattr(options, name) is None}


def retain_of(split: str) -> str:
    """What is kept beside any split, unless asked otherwise."""
    return RETAINS[0]


def unlearning(
    options: WmdpOptions, tokenizer: Any, template: Template, parts: Collection[str], seed: int
) -> UnlearnDataset:
    """The data of a run; texts have no prompts, so the template is not used."""
    return unlearning_data(
        tokenizer,
        options.split,
        options.data,
        retain=options.retain,
        documents=options.documents,
        max_length=options.max_length or MAX_LENGTH,
        retain_max_length=options.retain_max_length,
        seed=seed,
        parts=parts,
    )


# ---- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Encode:
    """:func:`encode` of a text, picklable."""

    tokenizer: Any
    max_length: int

    def __call__(self, text: str) -> Encoded:
        return encode(self.tokenizer, text, self.max_length)


def _retain_texts(split: str, retain: str, data: str | Path) -> list[str]:
    if retain == "corpora":
        return [text for topic in topics_of(split) for text in load(f"{topic}-retain-corpus", data)]
    folder = find_folder(data)
    has_own = folder is not None and any(name in names_in_folder(folder) for name in _names(_WIKITEXT_CONFIG))
    return load(_WIKITEXT_CONFIG, data if has_own else WIKITEXT)


def _names(corpus: str) -> tuple[str, ...]:
    return (corpus, *_OTHER_NAMES.get(corpus, ()))


def _on_the_hub(data: str, corpus: str) -> tuple[str, str, str]:
    """Data set, config and split. The bio forget corpus has a data set of its own beside the others'."""
    if corpus == "bio-forget-corpus" and data == HUB:
        return BIO_FORGET, "default", "train"
    return data, corpus, "test" if corpus == _WIKITEXT_CONFIG else "train"


def _file_of(folder: Path, corpus: str) -> Path:
    candidates = [folder / f"{name}{suffix}" for name in _names(corpus) for suffix in (".jsonl", ".json")]
    path = next((path for path in candidates if path.is_file()), None)
    if path is not None:
        return path
    known = names_in_folder(folder)
    how = f"; {_HOW_TO_GET_IT}" if corpus == "bio-forget-corpus" else nearest(corpus, known)
    raise FileNotFoundError(f'data: {folder} has {", ".join(known) or "no JSON files"}, but no "{corpus}"{how}')
