"""Documents as rows of tokens: long ones cut into pieces that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gru_fast.data.own.chats import encode_chat
from gru_fast.data.own.documents import Document
from gru_fast.data.sequences import IGNORE_INDEX, Encoded
from gru_fast.data.templates import Template, encode_prompt, encode_rows

AS_IS = Template("text")  # a text as it is, after what the tokenizer itself puts in front
_WHOLE = 2**62  # a length that cuts nothing
_OVERLAP = 8  # of max_length, one part in so many


@dataclass
class Piece:
    """Some tokens of a document, one after another.

    Args:
        document: its id.
        index: of the piece in the document, from 0.
        row: the tokens. Those that the piece before has scored are not scored again: every token of a document counts
            once.
        start, stop: which tokens of the document they are, what the tokenizer puts in front (``head``) not counted.
        head: how many tokens of the row stand before them: BOS, where the tokenizer has it.
        count: of pieces in the document.
    """

    document: str
    index: int
    row: Encoded
    start: int
    stop: int
    head: int
    count: int


def pieces(
    documents: Sequence[Document],
    tokenizer: Any,
    template: Template,
    max_length: int,
    overlap: int | None = None,
) -> list[Piece]:
    """All documents as pieces of at most ``max_length`` tokens, in order.

    A text is its tokens behind what the tokenizer puts in front (BOS), all scored, without EOS: a document is seldom
    all that there was. Of a pair the answer is scored, and EOS behind it. Of a chat, what the assistant says and the
    sign that ends its turn.

    What is longer is cut. Each piece but the first begins with at least ``overlap`` tokens of the one before, which are
    not scored again; the last one reaches back so far that it is as long as the others. Pieces in which nothing is
    scored are left out.

    Args:
        template: the words around a question (:func:`gru_fast.data.templates.resolve_template`).
        max_length: tokens of a piece, from 2.
        overlap: tokens; None: an eighth of ``max_length``. At least one where the tokenizer puts nothing in front.

    Raises:
        ValueError: a document of fewer than two tokens; a pair whose question alone fills ``max_length``; a chat that
            the tokenizer has no template for; an overlap that leaves no room. Each with the document.
    """
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 2:
        raise ValueError(f"max_length: expected a whole number of at least 2, got {max_length!r}")
    overlap = max_length // _OVERLAP if overlap is None else overlap
    head = encode_prompt(tokenizer, AS_IS, "")
    most = max_length - 1 - len(head)
    if not 0 <= overlap <= most:
        raise ValueError(
            f"overlap: expected 0 to {most}, so that a piece of max_length {max_length} has a new token behind what it "
            f"repeats and the {len(head)} that the tokenizer puts in front, got {overlap}"
        )
    found: list[Piece] = []
    for document in documents:
        if document.kind == "text":
            row, before = _text(document, tokenizer), head
        else:
            row, before = _pair_or_chat(document, tokenizer, template, max_length), []
        # Where nothing stands in front, the first token of a piece is predicted from nothing: it cannot be a new one.
        found += _cut(document, row, before, max_length - len(before), max(overlap, 0 if before else 1))
    return found


def _text(document: Document, tokenizer: Any) -> Encoded:
    # verbose: no warning that the text is longer than the model's context; it is cut.
    tokens = tokenizer(document.text, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids = list(tokens["input_ids"])
    if len(ids) < 2:
        raise ValueError(
            f"{document.where}: expected a text of two tokens and more, got {document.text!r}; leave it out"
        )
    return {"input_ids": ids, "labels": list(ids)}


def _pair_or_chat(document: Document, tokenizer: Any, template: Template, max_length: int) -> Encoded:
    try:
        if document.messages is not None:
            return encode_chat(tokenizer, template, document.messages)
        around = AS_IS if document.raw else template
        row = encode_rows(tokenizer, around, [(str(document.question), str(document.answer))], _WHOLE)[0]
    except ValueError as error:
        raise ValueError(f"{document.where}: {error}") from None
    before = sum(label == IGNORE_INDEX for label in row["labels"])
    if before >= max_length - 1:
        raise ValueError(
            f"{document.where}: the {before} tokens before the answer leave too few of max_length {max_length} for it; "
            "raise --max-length or leave the row out"
        )
    return row


def _cut(document: Document, row: Encoded, head: Sequence[int], room: int, overlap: int) -> list[Piece]:
    ids, labels = row["input_ids"], row["labels"]
    spans = [
        (start, new, stop)
        for start, new, stop in _windows(len(ids), room, overlap)
        # The very first token has nothing before it, and is never predicted.
        if any(label != IGNORE_INDEX for label in labels[new if start or head else new + 1 : stop])
    ]
    if not spans:
        raise ValueError(f"{document.where}: none of its {len(ids)} tokens can be scored; leave it out")
    found = []
    for index, (start, new, stop) in enumerate(spans):
        unscored = [IGNORE_INDEX] * (len(head) + new - start)
        # Labels of what the tokenizer puts in front would be of no token of the document.
        piece: Encoded = {"input_ids": [*head, *ids[start:stop]], "labels": [*unscored, *labels[new:stop]]}
        found.append(Piece(document.id, index, piece, start, stop, len(head), len(spans)))
    return found


def _windows(length: int, room: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(start, first new token, stop) of windows of ``room`` over ``length`` tokens, each new token in one of them.

    >>> list(_windows(10, 6, 2))
    [(0, 0, 6), (4, 6, 10)]
    >>> list(_windows(11, 6, 2))
    [(0, 0, 6), (4, 6, 10), (5, 10, 11)]
    """
    new = 0
    while new < length:
        stop = min(max(new - overlap, 0) + room, length)
        yield (max(stop - room, 0) if new else 0), new, stop
        new = stop
