"""The instructions that wait: the newest of each stay, none of an epoch that is over."""

from __future__ import annotations

import pytest

from agents.inbox import Inbox, Taken
from callyard.records import DialInstruction, RecordError, Source


def instruction(
    attempt: int = 1, *, stay: int = 1, uniqueid: str = "1.0", gateway: str = "gw-1", epoch: int = 1, partition: int = 0
) -> DialInstruction:
    return DialInstruction(
        gateway_id=gateway,
        call_id=f"{gateway}/{uniqueid}",
        conference="49123",
        stay=stay,
        attempt=attempt,
        sip_uri="sip:49123@192.0.2.7:5060;transport=tcp",
        node_id="node-1",
        source=Source.FREESWITCH,
        instance_id="abc",
        issued_at_ms=1,
        deadline_ms=2,
        partition=partition,
        epoch=epoch,
    )


def waiting(inbox: Inbox) -> list[DialInstruction]:
    return [held.instruction for held in inbox.drain()]


def test_only_the_newest_attempt_of_each_stay_waits() -> None:
    inbox = Inbox("gw-1")
    records = [instruction(1), instruction(1, uniqueid="2.0"), instruction(3), instruction(2), instruction(1, stay=2)]
    taken = [inbox.take(record.encode(), offset, 0) for offset, record in enumerate(records)]
    assert taken == [Taken.HELD, Taken.HELD, Taken.HELD, Taken.SUPERSEDED, Taken.HELD]
    assert waiting(inbox) == [instruction(1, uniqueid="2.0"), instruction(3), instruction(1, stay=2)]
    assert waiting(inbox) == []


def test_what_an_older_epoch_of_a_partition_says_is_void_also_when_the_newer_spoke_to_another_gateway() -> None:
    inbox = Inbox("gw-1")
    assert inbox.take(instruction(gateway="gw-2", epoch=5).encode(), 0, 0) is Taken.OTHER_GATEWAY
    assert inbox.take(instruction(epoch=4).encode(), 1, 0) is Taken.VOID
    assert inbox.take(instruction(epoch=4, partition=1).encode(), 2, 0) is Taken.HELD
    assert inbox.take(instruction(epoch=5).encode(), 3, 0) is Taken.HELD


def test_what_a_new_epoch_says_replaces_what_waits_from_the_old_one_whatever_its_attempt() -> None:
    inbox = Inbox("gw-1")
    inbox.take(instruction(3, epoch=1).encode(), 0, 0)
    assert inbox.take(instruction(2, epoch=2).encode(), 1, 0) is Taken.HELD
    assert waiting(inbox) == [instruction(2, epoch=2)]


def test_epochs_are_learnt_from_what_was_applied_before_and_outlive_a_takeover() -> None:
    inbox = Inbox("gw-1")
    assert inbox.take(instruction(epoch=5).encode(), 0, 0, applied_before=True) is Taken.APPLIED_BEFORE
    inbox.restart(1)
    assert inbox.take(instruction(2, epoch=4).encode(), 1, 0) is Taken.VOID
    assert waiting(inbox) == []


@pytest.mark.parametrize("value", [None, b"", b"{}", b"[]", b"\xff", b'{"type":"dial-instruction"}'])
def test_rubbish_is_an_error_and_is_passed_by(value: bytes | None) -> None:
    inbox = Inbox("gw-1")
    with pytest.raises(RecordError):
        inbox.take(value, 7, 0)
    assert inbox.committable == 8


def test_what_is_not_applied_yet_is_not_committed() -> None:
    inbox = Inbox("gw-1")
    inbox.restart(10)
    assert inbox.committable == 10
    inbox.take(instruction().encode(), 10, 0)
    inbox.take(instruction(uniqueid="2.0").encode(), 11, 0)
    inbox.take(instruction(gateway="gw-2").encode(), 12, 0)
    assert inbox.committable == 10
    first, second = inbox.drain()
    assert inbox.committable == 10
    inbox.done(second)
    assert inbox.committable == 10
    inbox.done(first)
    assert inbox.committable == 13
