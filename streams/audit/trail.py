"""Follows the journal as it stands in Kafka, partition by partition: what counts, what was repeated, what is broken.

A desk's records form a chain: each names the hash of the one before it, and decisions have numbers without a gap. What
a new owner says again is the same bytes, shortly after the first time. What an older owner says after a newer one's
epoch began is void. Everything else is a finding.

This is an audit's inner loop, so it reads JSON and not models: nothing here is acted upon, and what isn't as the
contract says is a finding or unreadable. Pure.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import orjson

from callyard.records import SCHEMA_VERSION, NewerSchemaError, RecordError
from streams.audit.findings import Findings
from streams.audit.shapes import require_counted, require_epoch, require_policy, require_snapshot

REMEMBERED = 10_000
"""Records remembered for each partition: twice the most inputs of one group (`StreamSettings.group_limit`)."""


class Trail:
    """One partition of the journal."""

    def __init__(
        self,
        topic: str,
        partition: int,
        findings: Findings,
        declared: Callable[[str, dict[str, Any]], None] = lambda _digest, _policy: None,
    ) -> None:
        """``declared``: called with the digest and the content of each policy that is declared."""
        self.decisions = 0
        self.snapshots = 0
        self.repeated = 0
        self.void = 0
        self._place = f"{topic}-{partition}@"
        self._partition = partition
        self._findings = findings
        self._declared = declared
        self._epoch = 0
        self._heads: dict[str, tuple[int, bytes]] = {}
        self._applied: dict[str, int] = {}
        self._recent: OrderedDict[bytes, None] = OrderedDict()

    def take(self, offset: int, value: bytes | None) -> dict[str, Any] | None:
        """The decision or snapshot that this record holds, as JSON; None where it is neither, void or was said before.

        Raises `RecordError` where it cannot be read, `NewerSchemaError` where a newer version wrote it.
        """
        content = read(value)
        kind = content["type"]
        if kind in {"decision", "desk-snapshot"}:
            assert value is not None  # noqa: S101 - it was read
            decision = kind == "decision"
            (require_counted if decision else require_snapshot)(content)
            return self._chained(offset, content, hashlib.sha256(value).digest(), decision)
        if kind == "epoch-began":
            require_epoch(content)
            self._epoch = max(self._epoch, content["epoch"])
        elif kind == "policy-declared":
            require_policy(content)
            self._declared(content["digest"], content["policy"])
        else:
            raise RecordError(f"type {kind!r:.60} is none of the journal's record types")
        return None

    def _chained(self, offset: int, content: dict[str, Any], head: bytes, decision: bool) -> dict[str, Any] | None:
        conference, version = content["conference"], content["version"]
        epoch = content["epoch"]
        known = self._heads.get(conference)
        named = content.get("previous_hash")
        follows = version if not decision else version - 1
        if known is None:
            # The first that is read of this desk: what was before it is not looked at.
            fits = True
            if version == 1 and decision and named is not None:
                self._broken(offset, conference, "its first decision names one before it")
        else:
            fits = known[0] == follows and named is not None and named == known[1].hex()
        if not fits or epoch < self._epoch:
            if head in self._recent:
                self.repeated += 1
                return None
            if epoch < self._epoch:
                self.void += 1
                self._findings.add(
                    "void", f"{self._place}{offset}", f"epoch {epoch} spoke after epoch {self._epoch} had begun"
                )
                return None
            assert known is not None  # noqa: S101 - whatever is first fits
            self._say_break(offset, conference, known[0], follows, version)
        elif known is None and head in self._recent:  # the last of a desk that was retired
            self.repeated += 1
            return None
        self._remember(head)
        self._epoch = epoch
        if not decision:
            self.snapshots += 1
        else:
            self.decisions += 1
            self._follow_position(offset, content["position"])
            if content["changes"] and content["changes"][-1].get("forgotten") == "desk":
                self._heads.pop(conference, None)
                return content
        self._heads[conference] = (version, head)
        return content

    def _say_break(self, offset: int, conference: str, known: int, follows: int, version: int) -> None:
        if follows > known:
            self._broken(offset, conference, f"decisions {known + 1} to {follows} are missing")
        elif follows < known:
            self._broken(offset, conference, f"version {version} comes after {known}")
        else:
            self._broken(offset, conference, f"version {version} does not name the hash of the record before it")

    def _broken(self, offset: int, conference: str, text: str) -> None:
        self._findings.add("chain", f"{self._place}{offset}", f"conference {conference}: {text}")

    def _follow_position(self, offset: int, position: dict[str, Any]) -> None:
        topic, at = position["topic"], position["offset"]
        if position["partition"] != self._partition:
            self._findings.add(
                "position", f"{self._place}{offset}", f"it decides an input of another partition: {position}"
            )
        if at <= self._applied.get(topic, -1):
            self._findings.add(
                "position",
                f"{self._place}{offset}",
                f"{topic} offset {at} is decided after {self._applied[topic]}: twice, or the topic was made anew",
            )
        self._applied[topic] = at

    def _remember(self, head: bytes) -> None:
        self._recent[head] = None
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)


def read(value: bytes | None) -> dict[str, Any]:
    """A journal record as JSON. Raises `RecordError`, and `NewerSchemaError` for a newer version's."""
    try:
        content = orjson.loads(value or b"")
    except orjson.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error}; begins with {(value or b'')[:60]!r}") from None
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        raise RecordError(f"a JSON object with a type is expected, this begins with {(value or b'')[:60]!r}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise NewerSchemaError(
                f"schema version {version} is newer than this program's ({SCHEMA_VERSION}): upgrade this program first"
            )
        raise RecordError(f"schema version {version!r:.20} is none")
    return content
