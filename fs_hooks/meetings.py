"""Which meetings BigBlueButton has, from its messages and its list. Pure: no IO, no clock.

What BigBlueButton's sources say, and this relies on (github.com/bigbluebutton/bigbluebutton):

* ``bbb-common-message/…/msgs/SystemMsgs.scala`` and ``…/domain/Meeting2x.scala``: the messages' form. A message is
  ``{"envelope": {"name": …}, "core": {"header": {"name": …}, "body": …}}``. The body of ``MeetingCreatedEvtMsg`` is
  ``props``, with ``meetingProp.intId``, ``voiceProp.voiceConf`` and ``durationProps.createdTime`` (milliseconds); that
  of ``MeetingEndedEvtMsg`` and ``MeetingDestroyedEvtMsg`` is ``meetingId``, the same internal id.
* ``akka-bbb-apps/…/core2/message/senders/MsgBuilder.scala`` makes them. ``MeetingEndedEvtMsg`` goes out when a meeting
  ends; ``MeetingDestroyedEvtMsg`` 2.5 s after it was removed (``…/core/BigBlueButtonActor.scala``). Either ends it.
* ``…/api/MeetingService.java``: bbb-web puts a meeting into its list before it asks akka-apps to create it, and takes
  it out after akka-apps said that it has ended. So the list is never behind a creation, but behind an end.
* ``BreakoutRoomsUtil.createVoiceConfId``: a breakout room's number is its parent's and its own digits. It is a meeting
  of its own here, with messages of its own.
* An internal id is a hash of the external one and the time of creation: never used twice.

All else that is said on the channel, most of it, is passed over without being parsed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from callyard.records import Source
from fs_hooks.instances import NOTHING_EXCLUDED, REMEMBERED, Change, Conference, Instances, Listed, is_instance

CHANNEL = "from-akka-apps-redis-channel"
CREATED = "MeetingCreatedEvtMsg"
OVER = frozenset({"MeetingEndedEvtMsg", "MeetingDestroyedEvtMsg"})

_OF_INTEREST = re.compile(rb'"Meeting(?:Created|Ended|Destroyed)EvtMsg"')


class MessageError(ValueError):
    """A message about a meeting's beginning or end that can't be read."""


class Meetings:
    """What is known of this node's meetings; each method returns what changed by it."""

    def __init__(self, excluded: re.Pattern[str] = NOTHING_EXCLUDED, remembered: int = REMEMBERED) -> None:
        self._instances = Instances(Source.BIGBLUEBUTTON, excluded, remembered)

    @property
    def live(self) -> Mapping[str, Conference]:
        """The meetings that run, by internal meeting id."""
        return self._instances.live

    @property
    def left_out(self) -> Counter[str]:
        """How many meetings were not registered, by reason."""
        return self._instances.left_out

    def message(self, data: bytes) -> list[Change]:
        """Apply one message of the channel. Raises `MessageError` where one that matters can't be read."""
        if _OF_INTEREST.search(data) is None:
            return []
        try:
            core = _object(json.loads(data), "core")
        except (ValueError, RecursionError):
            raise MessageError("a message that is not JSON") from None
        name, body = _object(core, "header").get("name"), _object(core, "body")
        if name == CREATED:
            props = _object(body, "props")
            instance = _text(_object(props, "meetingProp"), "intId")
            number = _text(_object(props, "voiceProp"), "voiceConf")
            duration = props.get("durationProps")
            created = duration.get("createdTime") if isinstance(duration, dict) else None
            return self._instances.open(number, _checked(instance), created if _is_time(created) else None)
        if name in OVER:
            return self._instances.end(_checked(_text(body, "meetingId")))
        return []

    def ask(self) -> int:
        """Note that the list is about to be asked for; the number goes into `reconcile` with its answer."""
        return self._instances.ask()

    def reconcile(self, question: int, listed: Iterable[Listed]) -> list[Change]:
        """Reconcile with the answer to ``getMeetings``."""
        return self._instances.reconcile(question, listed)

    def lost(self) -> list[Change]:
        """BigBlueButton can't be reached: vouch for none."""
        return self._instances.lost()


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 < value < 10**15


def _object(container: Any, name: str) -> dict[str, Any]:
    found = container.get(name) if isinstance(container, dict) else None
    if not isinstance(found, dict):
        raise MessageError(f"a message about a meeting has no object {name!r}")
    return found


def _text(container: dict[str, Any], name: str) -> str:
    found = container.get(name)
    if not isinstance(found, str):
        raise MessageError(f"a message about a meeting has no text {name!r}")
    return found


def _checked(instance: str) -> str:
    if not is_instance(instance):
        raise MessageError(f"{instance!r:.60} is no meeting's internal id")
    return instance
