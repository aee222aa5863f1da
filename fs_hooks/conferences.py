"""Which registrations follow from FreeSWITCH's events and snapshots. Pure: no IO, no clock, no Kafka.

Conferences are known by instance (``Conference-Unique-ID``), never by number alone: a number can be re-created at
once, and its old instance's end must not end the new one.

What this must never do: lose a conference that runs, or bring back one that ended. Three facts about FreeSWITCH make
that hard, and decide the rules (mod_conference and mod_event_socket):

* Events of several threads are not in order: a destroy can come before the last events, even before the create, of
  the same instance. So an ended instance is remembered as ended (`REMEMBERED` of them) and nothing brings it back;
  instance ids are UUIDs and never used twice.
* An answer to ``conference json_list`` is older than the events around it. So only an instance that was known before
  the question was sent can end by being absent from its answer; the next answer decides about the others.
* An instance is put into the list before its create event is sent and is taken from it before its destroy event: one
  that is absent from a newer list can't be reached by dialling any more, whatever late events still say of it. Dialling
  one that is listed with ``destruct`` would create a new conference: it counts as absent.

Any maintenance event of an instance that isn't known, except its destroy, proves that it exists and registers it: its
create event was before our subscription, or is late. To wait for the next snapshot would keep its callers waiting.
"""

from __future__ import annotations

import json
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from callyard.records import CONFERENCE_PATTERN, UnregisterReason
from fs_hooks.esl import Event

MAINTENANCE = "conference::maintenance"
REMEMBERED = 10_000
"""How many ended instances, and how many left out, are remembered: some days of a busy node, a few megabytes."""

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_NOTHING_LISTED = re.compile(r"-ERR \S+ Command not found!|-ERR Conference .* not found|\+OK No active conferences\.")
"""Answers other than JSON that mean: there is no conference (mod_conference isn't loaded; older FreeSWITCH)."""


class EventError(ValueError):
    """A maintenance event that doesn't say which conference it is about."""


class SnapshotError(ValueError):
    """An answer to ``conference json_list`` that can't be read: it decides nothing."""


@dataclass(frozen=True)
class Conference:
    """One instance of a conference on this node."""

    number: str
    instance_id: str
    opened_at_ms: int | None = None
    """FreeSWITCH's clock; from a snapshot to the second only."""


@dataclass(frozen=True)
class Opened:
    """A conference is there that wasn't known."""

    conference: Conference


@dataclass(frozen=True)
class Ended:
    """A conference that was known is no longer there, or (``lost``) can't be vouched for."""

    conference: Conference
    reason: UnregisterReason


Change = Opened | Ended


class Conferences:
    """What is known of this node's conferences; each method returns what changed by it."""

    def __init__(self, excluded: frozenset[str] = frozenset(), remembered: int = REMEMBERED) -> None:
        self._excluded = excluded
        self._live: dict[str, Conference] = {}
        self._known_since: dict[str, int] = {}
        self._question = 0
        self._ended = _Memory(remembered)
        self._left_out = _Memory(remembered)
        self.left_out: Counter[str] = Counter()
        """How many instances were not registered: ``excluded`` by the settings, ``not-a-number``."""

    @property
    def live(self) -> Mapping[str, Conference]:
        """The conferences that are there, by instance id."""
        return self._live

    def event(self, event: Event) -> list[Change]:
        """Apply one event. Raises `EventError` for a maintenance event without a usable instance id or name."""
        headers = event.headers
        if headers.get("Event-Subclass") != MAINTENANCE:
            return []
        instance, name = headers.get("Conference-Unique-ID", ""), headers.get("Conference-Name", "")
        if _INSTANCE.fullmatch(instance) is None or not name:
            raise EventError(
                f"a maintenance event of Conference-Unique-ID {instance!r:.60}, Conference-Name {name!r:.60}"
            )
        action = headers.get("Action")
        if action == "conference-destroy":
            return self._end(instance, UnregisterReason.ENDED)
        opened_at_us = headers.get("Event-Date-Timestamp", "") if action == "conference-create" else ""
        return self._open(name, instance, int(opened_at_us) // 1000 if _is_number(opened_at_us) else None)

    def ask(self) -> int:
        """Note that a snapshot is about to be asked for; the number goes into `snapshot` with its answer."""
        self._question += 1
        return self._question

    def snapshot(self, question: int, answer: str, now_ms: int) -> list[Change]:
        """Reconcile with the answer to ``conference json_list``; ``now_ms`` is the time at which it came.

        Raises `SnapshotError` for an answer that can't be read, and changes nothing then.
        """
        listed = _listed(answer)
        changes: list[Change] = []
        for entry in listed:
            opened_at_ms = None if entry.run_time is None else now_ms - 1000 * entry.run_time
            changes += self._open(entry.name, entry.instance_id, opened_at_ms)
        there = {entry.instance_id for entry in listed}
        for instance in [i for i, since in self._known_since.items() if since < question and i not in there]:
            changes += self._end(instance, UnregisterReason.ENDED)
        return changes

    def lost(self) -> list[Change]:
        """FreeSWITCH can't be reached: vouch for none. The same instances may be found again."""
        changes: list[Change] = [Ended(conference, UnregisterReason.LOST) for conference in self._live.values()]
        self._live.clear()
        self._known_since.clear()
        return changes

    def _open(self, name: str, instance: str, opened_at_ms: int | None) -> list[Change]:
        if instance in self._live or instance in self._ended:
            return []
        if re.fullmatch(CONFERENCE_PATTERN[1:-1], name) is None or name in self._excluded:
            if self._left_out.add(instance):
                self.left_out["excluded" if name in self._excluded else "not-a-number"] += 1
            return []
        conference = Conference(name, instance, opened_at_ms if opened_at_ms is None or opened_at_ms > 0 else None)
        self._live[instance] = conference
        self._known_since[instance] = self._question
        return [Opened(conference)]

    def _end(self, instance: str, reason: UnregisterReason) -> list[Change]:
        self._ended.add(instance)
        conference = self._live.pop(instance, None)
        self._known_since.pop(instance, None)
        return [] if conference is None else [Ended(conference, reason)]


class _Memory:
    """The newest so many of what was added."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, item: str) -> bool:
        return item in self._held

    def add(self, item: str) -> bool:
        """Remember it; whether it is new."""
        new = item not in self._held
        self._held[item] = None
        self._held.move_to_end(item)
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return new


@dataclass(frozen=True)
class _Listed:
    name: str
    instance_id: str
    run_time: int | None


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,18}", text) is not None


def _listed(answer: str) -> list[_Listed]:
    if _NOTHING_LISTED.fullmatch(answer.strip()):
        return []
    try:
        entries = json.loads(answer)
    except (ValueError, RecursionError):
        raise SnapshotError(f"the answer to 'conference json_list' is not JSON: {answer!r:.200}") from None
    if not isinstance(entries, list):
        raise SnapshotError(f"the answer to 'conference json_list' is no list: {answer!r:.200}")
    return [_entry(entry) for entry in entries if not (isinstance(entry, dict) and entry.get("destruct") is True)]


def _entry(entry: Any) -> _Listed:
    # One entry that can't be read spoils the answer: absence from it would prove nothing any more.
    fields = entry if isinstance(entry, dict) else {}
    name, instance, run_time = (fields.get(key) for key in ("conference_name", "conference_uuid", "run_time"))
    if not isinstance(name, str) or not isinstance(instance, str) or _INSTANCE.fullmatch(instance) is None:
        raise SnapshotError(f"'conference json_list' has an entry without conference_name or _uuid: {entry!r:.200}")
    return _Listed(name, instance, run_time if isinstance(run_time, int) and run_time >= 0 else None)
