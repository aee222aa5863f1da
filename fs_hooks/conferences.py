"""Which conferences FreeSWITCH has, from its events and snapshots. Pure: no IO, no clock, no Kafka.

What this must never do: lose a conference that runs, or bring back one that ended. Three facts about FreeSWITCH make
that hard, and decide the rules, most of which are in `instances` (mod_conference and mod_event_socket):

* Conferences are known by ``Conference-Unique-ID``. Events of several threads are not in order: a destroy can come
  before the last events, even before the create, of the same instance.
* An answer to ``conference json_list`` is older than the events around it.
* An instance is put into the list before its create event is sent and is taken from it before its destroy event: one
  that is absent from a newer list can't be reached by dialling any more, whatever late events still say of it. Dialling
  one that is listed with ``destruct`` would create a new conference: it counts as absent.

Any maintenance event of an instance that isn't known, except its destroy, proves that it exists and registers it: its
create event was before our subscription, or is late. To wait for the next snapshot would keep its callers waiting.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from callyard.records import Source
from fs_hooks.esl import Event
from fs_hooks.instances import (
    NOTHING_EXCLUDED,
    REMEMBERED,
    Change,
    Conference,
    Ended,
    Instances,
    Listed,
    Opened,
    is_instance,
)

__all__ = ["Change", "Conference", "Conferences", "Ended", "EventError", "MAINTENANCE", "Opened", "SnapshotError"]

MAINTENANCE = "conference::maintenance"

_NOTHING_LISTED = re.compile(r"-ERR \S+ Command not found!|-ERR Conference .* not found|\+OK No active conferences\.")
"""Answers other than JSON that mean: there is no conference (mod_conference isn't loaded; older FreeSWITCH)."""


class EventError(ValueError):
    """A maintenance event that doesn't say which conference it is about."""


class SnapshotError(ValueError):
    """An answer to ``conference json_list`` that can't be read: it decides nothing."""


class Conferences:
    """What is known of this node's FreeSWITCH; each method returns what changed by it."""

    def __init__(self, excluded: re.Pattern[str] = NOTHING_EXCLUDED, remembered: int = REMEMBERED) -> None:
        self._instances = Instances(Source.FREESWITCH, excluded, remembered)

    @property
    def live(self) -> Mapping[str, Conference]:
        """The conferences that are there, by instance id."""
        return self._instances.live

    @property
    def left_out(self) -> Counter[str]:
        """How many instances were not registered, by reason."""
        return self._instances.left_out

    def event(self, event: Event) -> list[Change]:
        """Apply one event. Raises `EventError` for a maintenance event without a usable instance id or name."""
        headers = event.headers
        if headers.get("Event-Subclass") != MAINTENANCE:
            return []
        instance, name = headers.get("Conference-Unique-ID", ""), headers.get("Conference-Name", "")
        if not is_instance(instance) or not name:
            raise EventError(
                f"a maintenance event of Conference-Unique-ID {instance!r:.60}, Conference-Name {name!r:.60}"
            )
        action = headers.get("Action")
        if action == "conference-destroy":
            return self._instances.end(instance)
        opened_at_us = headers.get("Event-Date-Timestamp", "") if action == "conference-create" else ""
        return self._instances.open(name, instance, int(opened_at_us) // 1000 if _is_number(opened_at_us) else None)

    def ask(self) -> int:
        """Note that a snapshot is about to be asked for; the number goes into `snapshot` with its answer."""
        return self._instances.ask()

    def snapshot(self, question: int, answer: str, now_ms: int) -> list[Change]:
        """Reconcile with the answer to ``conference json_list``; ``now_ms`` is the time at which it came.

        Raises `SnapshotError` for an answer that can't be read, and changes nothing then.
        """
        return self._instances.reconcile(question, _listed(answer, now_ms))

    def lost(self) -> list[Change]:
        """FreeSWITCH can't be reached: vouch for none. The same instances may be found again."""
        return self._instances.lost()


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,18}", text) is not None


def _listed(answer: str, now_ms: int) -> list[Listed]:
    if _NOTHING_LISTED.fullmatch(answer.strip()):
        return []
    try:
        entries = json.loads(answer)
    except (ValueError, RecursionError):
        raise SnapshotError(f"the answer to 'conference json_list' is not JSON: {answer!r:.200}") from None
    if not isinstance(entries, list):
        raise SnapshotError(f"the answer to 'conference json_list' is no list: {answer!r:.200}")
    return [
        _entry(entry, now_ms) for entry in entries if not (isinstance(entry, dict) and entry.get("destruct") is True)
    ]


def _entry(entry: Any, now_ms: int) -> Listed:
    # One entry that can't be read spoils the answer: absence from it would prove nothing any more.
    fields = entry if isinstance(entry, dict) else {}
    name, instance, run_time = (fields.get(key) for key in ("conference_name", "conference_uuid", "run_time"))
    if not isinstance(name, str) or not isinstance(instance, str) or not is_instance(instance):
        raise SnapshotError(f"'conference json_list' has an entry without conference_name or _uuid: {entry!r:.200}")
    return Listed(name, instance, now_ms - 1000 * run_time if isinstance(run_time, int) and run_time >= 0 else None)
