"""Hashes of texts, by which it is noticed that rows are others. That of a sequence is beside :class:`Encoded`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def joined_hash(texts: Iterable[str], num_bytes: int = 8) -> str:
    """Hash of texts one after another, as if they were one, in hex digits: for texts that cannot be cut otherwise."""
    digest = hashlib.blake2b(digest_size=num_bytes)
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


def hash_of(texts: Iterable[str]) -> str:
    """64-bit hash of texts in their order, as 16 hex digits: it counts where one ends."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(hashlib.blake2b(text.encode(), digest_size=16).digest())
    return digest.hexdigest()
