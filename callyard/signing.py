"""Signatures of registrations: a node can register itself, and nobody can in its name.

Each node has an Ed25519 key (RFC 8032; by the library ``cryptography``). Its hook signs what it says of a conference;
the stream knows the public keys and the hosts of all nodes from one file, a line for each key:

    # node id, public key (base64 of its 32 bytes), hosts that this node's SIP URIs may name
    node-1  b0Zm…=  192.0.2.7,bbb1.example.org

A node may have several lines: while its key is changed, the old one and the new one are both good.

What is signed is `LEAD` and the fields of `SIGNED` as canonical JSON (sorted, without what is empty), not the bytes on
the wire: fields that a newer sender adds don't break it. Among them are the time and the sender's sequence, so that
what was overheard can't be said again later. Neither files nor clocks are used here.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache
from typing import NamedTuple

import orjson
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from callyard.records import HOST_PATTERN, ID_PATTERN, ConferenceRegistered, ConferenceUnregistered, Sent, digest

LEAD = b"callyard registration 1\n"
"""So that a signature means nothing anywhere else."""
SIGNED = frozenset({
    "type", "conference", "source", "instance_id", "node_id", "sip_uri", "opened_at_ms", "reason",
    "sender", "sender_sequence", "sent_at_ms", "key_id",
})  # fmt: skip

Registration = ConferenceRegistered | ConferenceUnregistered


class SigningError(ValueError):
    """A key, or a line of the file of nodes, can't be used. The text says which, why, and what to do."""


class NodeKey(NamedTuple):
    """What the stream knows of a node."""

    node_id: str
    public_key: str
    """Base64 of its 32 bytes."""
    hosts: tuple[str, ...]

    @property
    def key_id(self) -> str:
        return key_id_of(base64.b64decode(self.public_key))

    @property
    def line(self) -> str:
        """Its line of the file of nodes, in the one form that the policy's digest is made of."""
        return f"{self.node_id} {self.public_key} {','.join(self.hosts)}"


def key_id_of(public_key: bytes) -> str:
    """The name of a public key: the first 16 hexadecimal digits of its SHA-256."""
    return digest(public_key)[:16]


def read_nodes(text: str) -> tuple[NodeKey, ...]:
    """The file of nodes, sorted. Raises `SigningError`, which names the line."""
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            found.add(_node(words))
        except SigningError as error:
            raise SigningError(f"line {number}: {error}") from None
    return tuple(sorted(found))


def _node(words: list[str]) -> NodeKey:
    if len(words) != 3:
        raise SigningError("a line has a node id, a public key and hosts (comma-separated), with spaces between them")
    node_id, public_key, hosts = words
    if not re.fullmatch(ID_PATTERN, node_id):
        raise SigningError(f"{node_id!r} is no node id")
    try:
        raw = base64.b64decode(public_key, validate=True)
        Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, binascii.Error):
        raise SigningError(
            f"{public_key!r} is no public key: 'callyard keys' prints the line of a node (base64 of 32 bytes)"
        ) from None
    named = tuple(sorted(set(hosts.split(","))))
    for host in named:
        if not re.fullmatch(HOST_PATTERN, host):
            raise SigningError(f"{host!r} is no host name or address")
    return NodeKey(node_id, base64.b64encode(raw).decode(), named)


def _signed(record: Registration) -> bytes:
    fields = record.model_dump(mode="json", exclude_none=True, include=set(SIGNED))
    return LEAD + orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)


class Signer:
    """A node's private key."""

    def __init__(self, pem: str) -> None:
        """``pem``: PKCS #8, as `make` gives it. Raises `SigningError`; nothing of the key stands in its text."""
        try:
            key = load_pem_private_key(pem.encode(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise SigningError("is no private key (PEM, not encrypted): make one with 'callyard keys'") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise SigningError("is no Ed25519 key: make one with 'callyard keys'")
        self._key = key
        self._public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_id = key_id_of(self._public)

    @classmethod
    def make(cls) -> tuple[Signer, str]:
        """A new key, and its PEM."""
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return cls(pem), pem

    @property
    def public_key(self) -> str:
        """Base64 of the public key's 32 bytes."""
        return base64.b64encode(self._public).decode()

    def sign(self, record: Sent) -> Sent:
        """A registration, signed as it stands (number and time included); any other record as it is."""
        if not isinstance(record, Registration):
            return record
        named = record.model_copy(update={"key_id": self.key_id, "signature": None})
        return named.model_copy(update={"signature": base64.b64encode(self._key.sign(_signed(named))).decode()})


@lru_cache(maxsize=4096)
def _public(key: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(key))


def is_signed_by(record: Registration, public_key: str) -> bool:
    """Whether the record's signature is of this key (base64)."""
    try:
        _public(public_key).verify(base64.b64decode(record.signature or "", validate=True), _signed(record))
    except (InvalidSignature, ValueError):
        return False
    return True
