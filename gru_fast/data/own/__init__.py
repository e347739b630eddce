"""People's own documents: files, folders and data sets on the hub, as documents, and cut into rows.

    documents = load("leak/")                                             # or rows.jsonl, *.csv, org/name:config:split
    rows = [piece.row for piece in pieces(documents, tokenizer, template, max_length=512)]

documents.py  what a document is, and how documents are loaded
sources.py    names to files; reading.py  files to rows; fields.py  a row's fields to a document
cutting.py    documents to pieces of tokens; chats.py  conversations to tokens
parts.py      forget and retain side by side: what they share, what is held out
showing.py    what would be trained, for people to read
"""

from gru_fast.data.own.cutting import Piece, pieces
from gru_fast.data.own.documents import Document, load, save
from gru_fast.data.own.parts import MAX_SHARED, check_apart, hold_out
from gru_fast.data.own.showing import show

__all__ = ["MAX_SHARED", "Document", "Piece", "check_apart", "hold_out", "load", "pieces", "save", "show"]
