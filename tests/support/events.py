"""Makers of records, short enough to read a history at a glance. Times are milliseconds of the broker's clock."""

from __future__ import annotations

from callyard.records import (
    AfterTalk,
    CallAlive,
    CallerConnected,
    CallerLeft,
    CallerParked,
    CallState,
    ConferenceRegistered,
    ConferenceUnregistered,
    DeadlinePassed,
    DialFailed,
    DialStarted,
    FailureReason,
    LeftReason,
    Source,
    UnregisterReason,
)

CONFERENCE = "49123"
GATEWAY = "gw-1"


def registered(instance: str = "a", node: str = "node-1", conference: str = CONFERENCE) -> ConferenceRegistered:
    host = f"192.0.2.{node.removeprefix('node-')}"
    return ConferenceRegistered(
        sender=f"hook:{node}", conference=conference, source=Source.FREESWITCH, instance_id=instance, node_id=node,
        sip_uri=f"sip:{conference}@{host}:5060;transport=tcp",
    )  # fmt: skip


def unregistered(
    instance: str = "a", node: str = "node-1", reason: str = "ended", conference: str = CONFERENCE
) -> ConferenceUnregistered:
    return ConferenceUnregistered(
        sender=f"hook:{node}", conference=conference, source=Source.FREESWITCH, instance_id=instance, node_id=node,
        reason=UnregisterReason(reason),
    )  # fmt: skip


def _call(call: str, stay: int, conference: str) -> dict[str, object]:
    return {
        "sender": f"agent:{GATEWAY}", "conference": conference, "gateway_id": GATEWAY, "call_id": f"{GATEWAY}/{call}",
        "stay": stay,
    }  # fmt: skip


def parked(call: str = "1", stay: int = 1, conference: str = CONFERENCE, after: str | None = None) -> CallerParked:
    talk = None if after is None else AfterTalk(after)
    return CallerParked.model_validate({**_call(call, stay, conference), "after": talk})


def alive(
    call: str = "1", state: str = "parked", attempt: int = 0, stay: int = 1, conference: str = CONFERENCE
) -> CallAlive:
    return CallAlive.model_validate({**_call(call, stay, conference), "state": CallState(state), "attempt": attempt})


def started(call: str = "1", attempt: int = 1, stay: int = 1, conference: str = CONFERENCE) -> DialStarted:
    return DialStarted.model_validate({**_call(call, stay, conference), "attempt": attempt})


def connected(call: str = "1", attempt: int = 1, stay: int = 1, conference: str = CONFERENCE) -> CallerConnected:
    return CallerConnected.model_validate({**_call(call, stay, conference), "attempt": attempt})


def failed(
    call: str = "1", attempt: int = 1, reason: str = "not-found", stay: int = 1, conference: str = CONFERENCE
) -> DialFailed:
    return DialFailed.model_validate(
        {**_call(call, stay, conference), "attempt": attempt, "reason": FailureReason(reason)}
    )


def left(call: str = "1", reason: str = "hangup", stay: int = 1, conference: str = CONFERENCE) -> CallerLeft:
    return CallerLeft.model_validate({**_call(call, stay, conference), "reason": LeftReason(reason)})


def timer(due_ms: int = 0, conference: str = CONFERENCE) -> DeadlinePassed:
    return DeadlinePassed(sender="stream:test", conference=conference, due_ms=due_ms)
