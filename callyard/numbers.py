"""Callers' numbers in the forms in which records may carry them: full, masked, as a keyed hash, or not at all. Pure.

The hash is HMAC-SHA-256 under a key that only the operator has: all calls of one number have the same, and who reads
Kafka without the key can't try out numbers. Who has the key can: it is a pseudonym and no anonymity. Without its key
(thrown away, or changed) nothing connects a hash with a number any more.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from callyard.records import CallerForm

MASKED_CHARACTERS = 4
"""So many of a caller's last characters are replaced by ``*`` in the form ``masked``."""
LEAST_KEY_CHARACTERS = 16
_HASH_CHARACTERS = 32
_HASH_PREFIX = "hash:"


def shown(number: str, form: CallerForm, key: str = "") -> tuple[str | None, CallerForm]:
    """A caller's number in the form that goes into records.

    ``masked`` keeps country and area and replaces the last four characters: ``+4930123456`` is ``+493012****``; of a
    number of four characters or fewer nothing is kept. Raises `ValueError` for ``hashed`` without a key.
    """
    if not number or form is CallerForm.NONE:
        return None, CallerForm.NONE
    if form is CallerForm.MASKED:
        return number[:-MASKED_CHARACTERS] + "*" * min(len(number), MASKED_CHARACTERS), form
    if form is CallerForm.HASHED:
        return hashed(number, key), form
    return number, form


def hashed(number: str, key: str) -> str:
    """The keyed hash of a number; what isn't a digit (``+``, blanks, hyphens) doesn't count, if there is any digit."""
    if not key:
        raise ValueError("a caller's number can't be hashed without a key")
    digits = re.sub(r"[^0-9]", "", number) or number
    return _HASH_PREFIX + hmac.new(key.encode(), digits.encode(), hashlib.sha256).hexdigest()[:_HASH_CHARACTERS]


def forms(number: str, key: str = "") -> frozenset[str]:
    """All that records may hold of this number: for a full one, every form; for a masked one or a hash, itself."""
    if "*" in number or number.startswith(_HASH_PREFIX):
        return frozenset({number})
    masked, _ = shown(number, CallerForm.MASKED)
    found = {number, masked or ""}
    if key:
        found.add(hashed(number, key))
    return frozenset(found - {""})
