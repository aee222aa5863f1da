"""Signed checkpoints: files that say what the journal held, kept where who can write to Kafka can't.

One file for each checkpoint, numbered: the range that each partition grew by since the one before, the hash of that
file, and an Ed25519 signature over all of it. So no file can be changed, and none can be taken from between two others.
Key pairs are made by OpenSSL:

    openssl genpkey -algorithm ed25519 -out audit.key && openssl pkey -in audit.key -pubout -out audit.pub
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import SecretStr

from callyard.errors import CommandError
from callyard.settings import AuditSettings, SettingsError
from streams.audit.seal import Range

TYPE = "journal-checkpoint"
FIRST = 1


class CheckpointError(CommandError):
    """Checkpoints cannot be read or written, or don't belong together. The text names the file and says why."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint."""

    number: int
    taken_ms: int
    topic: str
    previous: str | None
    """SHA-256 of the file before it; None: the first."""
    ranges: Mapping[int, Range]
    hash: str = ""
    """SHA-256 of its own file."""


def private_key(settings: AuditSettings) -> Ed25519PrivateKey:
    """The key to sign with. Raises `SettingsError` where it isn't set or isn't an Ed25519 key in PEM."""
    name = settings.variable("signing_key")
    pem = _pem(name, settings.signing_key)
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SettingsError([f"{name} is no private key in PEM without a password"]) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError([f"{name} is no Ed25519 key"])
    return key


def public_key(settings: AuditSettings) -> Ed25519PublicKey:
    """The key to check signatures by: the public one, or that of the private one where only that is set.

    Raises `SettingsError` as `private_key`.
    """
    if settings.verify_key is None and settings.signing_key is not None:
        return private_key(settings).public_key()
    name = settings.variable("verify_key")
    pem = _pem(name, settings.verify_key)
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError([f"{name} is no public key in PEM"]) from None
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError([f"{name} is no Ed25519 key"])
    return key


def _pem(name: str, value: SecretStr | None) -> bytes:
    if value is None:
        raise SettingsError([f"{name} (or {name}_FILE) is not set: an Ed25519 key in PEM; see docs/audit-proof.md"])
    return value.get_secret_value().encode()


def key_id(key: Ed25519PublicKey) -> str:
    """Names a key: the first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def write(
    directory: Path,
    key: Ed25519PrivateKey,
    topic: str,
    taken_ms: int,
    ranges: Iterable[Range],
    after: Checkpoint | None,
) -> Path:
    """Write the checkpoint that follows ``after``; returns its file.

    Raises `CheckpointError` where another one was written meanwhile, or the directory cannot be written to.
    """
    number = FIRST if after is None else after.number + 1
    content: dict[str, Any] = {
        "type": TYPE, "schema_version": 1, "number": number, "taken_ms": taken_ms, "topic": topic,
        "previous": None if after is None else after.hash,
        "ranges": [dataclasses.asdict(one) for one in sorted(ranges, key=lambda one: one.partition)],
        "key_id": key_id(key.public_key()),
    }  # fmt: skip
    content["signature"] = key.sign(_signed(content)).hex()
    path, draft = directory / f"{number:08d}.json", directory / f".{number:08d}.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as file:
            file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # unlike a rename, refuses to replace what is there
        finally:
            draft.unlink()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from None
    return path


def read(directory: Path, key: Ed25519PublicKey, topic: str) -> list[Checkpoint]:
    """All checkpoints of a directory, the oldest first; none where it doesn't exist. Old ones may be put away.

    Raises `CheckpointError` for a file that cannot be read, whose signature isn't the key's, or that doesn't follow
    the one before it.
    """
    if not directory.exists():
        return []
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}") from None
    found = [_one(path, key, topic) for path in paths]
    for before, after in itertools.pairwise(found):
        if after.number != before.number + 1 or after.previous != before.hash:
            raise CheckpointError(
                f"{directory}: checkpoint {after.number} does not follow {before.number}: files are missing or replaced"
            )
        _require_seamless(directory, before, after)
    return found


def _require_seamless(directory: Path, before: Checkpoint, after: Checkpoint) -> None:
    for number, sealed in before.ranges.items():
        if number not in after.ranges or after.ranges[number].begin != sealed.end:
            raise CheckpointError(
                f"{directory}: partition {number} of checkpoint {after.number} doesn't begin where {before.number} ends"
            )


def _one(path: Path, key: Ed25519PublicKey, topic: str) -> Checkpoint:
    try:
        value = path.read_bytes()
        content = orjson.loads(value)
        signature = bytes.fromhex(content["signature"])
        if content["type"] != TYPE or content["schema_version"] != 1:
            raise CheckpointError(f"{path} is no checkpoint that this version can read")
        if content["key_id"] != key_id(key):
            raise CheckpointError(f"{path} is signed by key {content['key_id']}, this one is {key_id(key)}")
        key.verify(signature, _signed(content))
        made = Checkpoint(
            content["number"], content["taken_ms"], content["topic"], content["previous"],
            {one["partition"]: Range.of(one) for one in content["ranges"]}, hashlib.sha256(value).hexdigest(),
        )  # fmt: skip
    except InvalidSignature:
        raise CheckpointError(f"{path}: the signature is wrong: the file was changed") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no checkpoint: {error!r:.200}") from None
    if made.topic != topic:
        raise CheckpointError(f"{path} is of {made.topic}, not of {topic}: check CALLYARD_KAFKA_TOPIC_PREFIX")
    return made


def _signed(content: Mapping[str, Any]) -> bytes:
    """What is signed: the content without the signature, canonical."""
    return orjson.dumps({k: v for k, v in content.items() if k != "signature"}, option=orjson.OPT_SORT_KEYS)
