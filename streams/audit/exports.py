"""What is exported: rows of documented columns, made from the journal as it is read. Pure; memory is what lives.

Times are milliseconds since 1970-01-01 UTC here; `streams.audit.writers` puts them into each format.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple, Protocol

import orjson

from streams.audit.entries import Told
from streams.audit.find import Gathering
from streams.audit.happenings import Telling, What
from streams.audit.story import BEHIND, DIALED, HELD, NOT_REGISTERED, PAUSED, Stay, Story
from streams.rows import ACTIVE, RegistrationRow, RegistrationState, StayState


class Kind(str, Enum):
    """What a column holds."""

    TEXT = "text"
    NUMBER = "number"
    TIME = "time"
    TRUTH = "truth"


class Column(NamedTuple):
    """One column of an export."""

    name: str
    kind: Kind
    meaning: str


Row = dict[str, Any]
T, N, AT, B = Kind.TEXT, Kind.NUMBER, Kind.TIME, Kind.TRUTH


class Rows(Protocol):
    """Makes the rows of one export."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What they hold."""
        ...

    def take(self, told: Told) -> Iterator[Row]:
        """Take the next decision; gives the rows that it completes."""
        ...

    def rest(self, until_ms: int) -> Iterator[Row]:
        """The rows that are still open at the end, ``until_ms``."""
        ...


class CallRows:
    """Call detail records: a row for each stay (a call's wait for one number, and the talk that it led to)."""

    columns = (
        Column("call_id", T, "the call: gateway and Asterisk's uniqueid"),
        Column("gateway_id", T, "the gateway that it came to"),
        Column("conference", T, "the number that the caller entered"),
        Column("stay", N, "counts the waits of one call, over all numbers"),
        Column("caller", T, "the caller's number, in the form it is kept in; null: not kept"),
        Column("caller_form", T, "full, masked, hashed or none"),
        Column("follows", T, "how the talk before it ended (ended, lost); null: the caller had entered the number"),
        Column("parked_at", AT, "when the wait began"),
        Column("registered_at_entry", B, "whether the conference ran anywhere then, as far as was known"),
        Column("connected_at", AT, "when the caller came into the conference; null: never"),
        Column("ended_at", AT, "when the stay was over; null: it goes on at the end of the range"),
        Column("outcome", T, "why it ended (hangup, conference-left, new-number, timed-out, given-up, removed, gone,"
               " lapsed), or the state it is in (parked, dialing, connected)"),
        Column("node_id", T, "the node that it talked at"),
        Column("waited_ms", N, "milliseconds from parked_at to connected_at, or to the end"),
        Column("waited_unregistered_ms", N, "of these: the conference was not registered anywhere"),
        Column("waited_dialing_ms", N, "of these: being dialled, or told something"),
        Column("waited_paused_ms", N, "of these: the pause after a dial that failed"),
        Column("waited_held_ms", N, "of these: after a talk, until it was known whether the conference was over"),
        Column("waited_stream_ms", N, "of these: the stream had yet to come to it"),
        Column("talked_ms", N, "milliseconds in the conference; null: never in it"),
        Column("instructions", N, "how often the gateway was told to dial, or to tell the caller something"),
        Column("failed_dials", N, "how many of these failed, or brought no outcome"),
        Column("last_failure", T, "why the last one failed; null: none did"),
        Column("complete", B, "whether the journal's range holds the stay from its beginning"),
    )  # fmt: skip

    def __init__(self, start_ms: int) -> None:
        self._gathering = Gathering(None)
        self._start_ms = start_ms
        self._decided = 0

    def take(self, told: Told) -> Iterator[Row]:
        for call_id in self._gathering.take(told):
            story = self._gathering.stories[call_id]
            if story.stays and story.last.state is StayState.LEFT:
                yield from self._done(story)
        self._decided += 1
        if self._decided % 10_000 == 0:
            # Written off and not taken up again for as long as that is possible.
            for story in list(self._gathering.stories.values()):
                if story.last.state not in ACTIVE and story.last.until_ms < told.entry.now_ms:
                    yield from self._done(story)

    def rest(self, until_ms: int) -> Iterator[Row]:
        for story in list(self._gathering.stories.values()):
            story.close(until_ms)
            yield from self._done(story, until_ms)

    def _done(self, story: Story, until_ms: int = 0) -> Iterator[Row]:
        self._gathering.drop(story.call_id)
        for stay in story.stays:
            if stay.ended_ms is None or stay.ended_ms >= self._start_ms:
                yield _call_row(story, stay, until_ms or stay.ended_ms or stay.row.until_ms)


def _call_row(story: Story, stay: Stay, until_ms: int) -> Row:
    row, waits = stay.row, stay.waits
    return {
        "call_id": story.call_id, "gateway_id": story.gateway_id, "conference": stay.conference, "stay": stay.stay,
        "caller": row.caller, "caller_form": row.caller_form.value, "follows": stay.follows,
        "parked_at": stay.since_ms, "registered_at_entry": bool(stay.registered), "connected_at": stay.connected_ms,
        "ended_at": stay.ended_ms, "outcome": stay.outcome, "node_id": stay.node_id,
        "waited_ms": stay.waited_ms(until_ms), "waited_unregistered_ms": waits.get(NOT_REGISTERED, 0),
        "waited_dialing_ms": waits.get(DIALED, 0), "waited_paused_ms": waits.get(PAUSED, 0),
        "waited_held_ms": waits.get(HELD, 0), "waited_stream_ms": waits.get(BEHIND, 0),
        "talked_ms": stay.talked_ms(until_ms), "instructions": stay.attempts, "failed_dials": len(stay.failures),
        "last_failure": stay.failures[-1] if stay.failures else None, "complete": stay.complete,
    }  # fmt: skip


class RegistrationRows:
    """A row for each life of a registration: from when a node vouched for it until it did no longer."""

    columns = (
        Column("conference", T, "the conference number"),
        Column("node_id", T, "the node"),
        Column("source", T, "which of the node's voices said so"),
        Column("instance_id", T, "the conference's instance there"),
        Column("sip_uri", T, "where gateways reach it"),
        Column("registered_at", AT, "when it was first registered"),
        Column("live_from", AT, "when this life began; later than registered_at where it came back"),
        Column("live_to", AT, "when it ended; null: it lives at the end of the range"),
        Column("end", T, "ended, lost (its hook could not vouch for it), lapsed (its hook was silent); null: lives"),
        Column("renewals", N, "how often it was renewed in the range"),
    )

    def __init__(self, start_ms: int) -> None:
        self._telling = Telling()
        self._start_ms = start_ms
        self._open: dict[tuple[str, str], tuple[int, int, RegistrationRow]] = {}

    def take(self, told: Told) -> Iterator[Row]:
        for happening in self._telling.take(told):
            row = happening.registration
            if row is None:
                continue
            key = (happening.conference, row.key)
            began, renewals, _ = self._open.get(key, (row.since_ms, 0, row))
            if row.state is RegistrationState.LIVE:
                if happening.what is What.REGISTRATION_BACK:
                    began, renewals = happening.at_ms, 0
                renewals += happening.what is What.REGISTRATION_RENEWED and told.at_ms >= self._start_ms
                self._open[key] = (began, renewals, row)
            elif key in self._open or row.sip_uri:
                self._open.pop(key, None)
                if happening.at_ms >= self._start_ms:
                    yield _registration_row(key[0], row, began, renewals, happening.at_ms)

    def rest(self, until_ms: int) -> Iterator[Row]:
        del until_ms
        for (conference, _), (began, renewals, row) in sorted(self._open.items()):
            yield _registration_row(conference, row, began, renewals, None)


def _registration_row(conference: str, row: RegistrationRow, began: int, renewals: int, ended: int | None) -> Row:
    return {
        "conference": conference, "node_id": row.node_id, "source": row.source.value, "instance_id": row.instance_id,
        "sip_uri": row.sip_uri, "registered_at": row.since_ms, "live_from": began, "live_to": ended,
        "end": None if ended is None else row.state.value, "renewals": renewals,
    }  # fmt: skip


class JournalRows:
    """A row for each decision."""

    columns = (
        Column("partition", N, "the journal's partition"),
        Column("offset", N, "the entry's offset there"),
        Column("journalled_at", AT, "when Kafka took the entry"),
        Column("conference", T, "the conference number"),
        Column("version", N, "number of the decision at this conference"),
        Column("event_type", T, "the input that was decided"),
        Column("input_topic", T, "where the input stands: topic"),
        Column("input_offset", N, "where the input stands: offset, in the same partition"),
        Column("happened_at", AT, "the broker's time of the input"),
        Column("outcome", T, "what it meant"),
        Column("why", T, "why, in a sentence"),
        Column("call_id", T, "the call that the input spoke of; null: none, or an older version wrote the entry"),
        Column("instructions", N, "how many instructions followed"),
        Column("changes", T, "the changed rows, as JSON"),
        Column("epoch", N, "the epoch of the partition's owner"),
        Column("policy_digest", T, "the policy that decided"),
        Column("hash", T, "SHA-256 of the entry's bytes"),
        Column("previous_hash", T, "that of the conference's entry before it"),
    )

    def __init__(self, start_ms: int) -> None:
        self._start_ms = start_ms

    def take(self, told: Told) -> Iterator[Row]:
        if told.at_ms < self._start_ms:
            return
        entry = told.entry
        yield {
            "partition": told.partition, "offset": told.offset, "journalled_at": told.at_ms,
            "conference": entry.conference, "version": entry.version, "event_type": entry.event_type,
            "input_topic": entry.position.topic, "input_offset": entry.position.offset,
            "happened_at": entry.broker_ms, "outcome": entry.outcome, "why": entry.why,
            "call_id": (entry.said or {}).get("call_id"), "instructions": len(entry.instructions),
            "changes": orjson.dumps(entry.changes).decode(), "epoch": entry.epoch,
            "policy_digest": entry.policy_digest, "hash": told.hash, "previous_hash": entry.previous_hash,
        }  # fmt: skip

    def rest(self, until_ms: int) -> Iterator[Row]:
        del until_ms
        return iter(())
