"""What follows a talk, and what callers are told, on the real Asterisk: driven by a bare manager client and SIPp."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from callyard.parts import asterisk, sipp
from tests.support.asterisk import Message, RawAmi, conference_number, connected, parked, problems

pytestmark = pytest.mark.asterisk


@contextlib.asynccontextmanager
async def talking(
    gateway: asterisk.Gateway, client: RawAmi, directory: Path, number: str
) -> AsyncIterator[tuple[sipp.Sipp, sipp.Node, Message]]:
    """A caller who talks to a node: caller, node, and the event ParkedCall of the wait before."""
    async with (
        sipp.node(directory / "node") as node,
        parked(gateway, client, directory, number) as (callers, event),
    ):
        await client.redirect(event.channel, "1x1", node.uri(number))
        await client.event("DialEnd", CALLYARD_CONFERENCE=number, DialStatus="ANSWER")
        await node.saw("answered")
        yield callers, node, event


@pytest.mark.parametrize(
    ("cause", "after"),
    [
        (16, "ended/16"),  # normal call clearing: FreeSWITCH's word for a kick and for the end of a conference
        (31, "ended/31"),  # normal, unspecified
        (41, "lost/41"),  # temporary failure
        (38, "lost/38"),  # network out of order
        (102, "lost/102"),  # recovery on timer expiry: FreeSWITCH's word for dead media and sessions
    ],
)
async def test_a_talk_that_the_node_ends_is_followed_by_a_new_stay(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path, cause: int, after: str
) -> None:
    number = conference_number()
    async with talking(gateway, raw_ami, tmp_path, number) as (callers, node, event):
        await node.hang_up(cause=cause)
        again = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        assert again.channel == event.channel
        assert again.variables == {
            "CALLYARD_CONFERENCE": number, "CALLYARD_STAY": "2", "CALLYARD_STATE": "parked", "CALLYARD_MARK": "",
            "CALLYARD_FAILED": "", "CALLYARD_AFTER": after,
        }  # fmt: skip
        assert callers.talking(), "the caller's own leg is untouched"
        await raw_ami.redirect(event.channel, "2x1", node.uri(number))
        assert len(await node.saw("answered", 2)) == 2


async def test_a_node_without_audio_is_lost_and_the_caller_is_not(tmp_path: Path) -> None:
    number = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway", node_rtp_timeout_seconds=2) as gateway,
        connected(gateway.ami) as client,
        talking(gateway, client, tmp_path, number) as (_, node, _),
    ):
        again = await client.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        assert again.variables["CALLYARD_AFTER"] == "lost/44"
        await node.saw("ended")


@pytest.mark.parametrize("cause", [16, 41])
async def test_without_following_the_call_ends_with_the_talk(tmp_path: Path, cause: int) -> None:
    number = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway", follow_ended_seconds=0, follow_lost_seconds=0) as gateway,
        connected(gateway.ami) as client,
        talking(gateway, client, tmp_path, number) as (callers, node, _),
    ):
        await node.hang_up(cause=cause)
        await callers.saw("ended")
        assert len(client.named("ParkedCall")) == 1


async def test_who_follows_too_long_is_told(tmp_path: Path) -> None:
    number = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway", follow_ended_seconds=1, prompt_waited="beep") as gateway,
        connected(gateway.ami) as client,
        talking(gateway, client, tmp_path, number) as (callers, node, _),
    ):
        await node.hang_up()
        await callers.saw("ended")
        left = await client.event("Hangup", CALLYARD_STAY="2")
        assert left.variables["CALLYARD_STATE"] == "over"


async def test_who_is_told_that_it_cannot_be_reached_waits_on(tmp_path: Path) -> None:
    number = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway", prompt_unreachable="beep") as gateway,
        connected(gateway.ami) as client,
        sipp.node(tmp_path / "node") as node,
        parked(gateway, client, tmp_path, number) as (_, event),
    ):
        await client.tell(event.channel, "1x1", "unreachable")
        again = await client.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        told = (again.variables["CALLYARD_STAY"], again.variables["CALLYARD_MARK"], again.variables["CALLYARD_FAILED"])
        assert told == ("1", "1x1", "1x1/TOLD/0/0")
        await client.redirect(event.channel, "1x1", node.uri(number))  # that attempt is over
        await client.event("ParkedCall", CALLYARD_CONFERENCE=number, count=3)
        await client.redirect(event.channel, "1x2", node.uri(number))
        await node.saw("answered")
        assert not list(problems(gateway.log()))


@pytest.mark.parametrize("notice", ["given-up", "removed"])
async def test_who_is_told_the_end_is_hung_up(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path, notice: str
) -> None:
    number = conference_number()
    async with parked(gateway, raw_ami, tmp_path, number) as (callers, event):
        await raw_ami.tell(event.channel, "1x1", notice)
        left = await raw_ami.event("Hangup", CALLYARD_CONFERENCE=number)
        assert (left.variables["CALLYARD_STATE"], left.variables["CALLYARD_MARK"]) == (notice, "1x1")
        await callers.saw("ended")


@pytest.mark.parametrize(("dial", "notice", "failed"), [("1x1", "nonsense", "1x1/BADURI/0/0"), ("2x1", "removed", "")])
async def test_a_notice_that_is_none_or_stale_changes_nothing(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path, dial: str, notice: str, failed: str
) -> None:
    number = conference_number()
    async with parked(gateway, raw_ami, tmp_path, number) as (callers, event):
        await raw_ami.tell(event.channel, dial, notice)
        again = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        assert (again.variables["CALLYARD_STAY"], again.variables["CALLYARD_FAILED"]) == ("1", failed)
        assert callers.talking()
