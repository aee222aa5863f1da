"""The dialplan on the real Asterisk, driven as an agent does it, by a bare manager client and SIPp."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from callyard.parts import asterisk, sipp
from tests.support.asterisk import Message, RawAmi, conference_number, connected, parked, problems
from tests.support.wait import until

pytestmark = pytest.mark.asterisk


def address(gateway: asterisk.Gateway) -> tuple[str, int]:
    return gateway.sip_host, gateway.sip_port


async def status(client: RawAmi, channel: str) -> Message:
    return (await client.listed("Status", Channel=channel))[0]


async def test_caller_is_parked_with_number_and_stay(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path
) -> None:
    number = conference_number()
    async with parked(gateway, raw_ami, tmp_path, number) as (_, event):
        expected = {
            "CALLYARD_CONFERENCE": number, "CALLYARD_STAY": "1", "CALLYARD_STATE": "parked", "CALLYARD_MARK": "",
            "CALLYARD_FAILED": "", "CALLYARD_AFTER": "",
        }  # fmt: skip
        assert event.variables == expected
        assert event["ParkeeCallerIDNum"] == "493012345678"
        snapshot = [m for m in await raw_ami.listed("ParkedCalls") if m.channel == event.channel]
        assert [m.variables for m in snapshot] == [expected]
        assert (await status(raw_ami, event.channel)).variables == expected

        async def hears_music() -> bool:
            # Columns: bridge, channel, up time, codec, received packets and loss, then transmitted packets.
            rows = (await gateway.cli("pjsip show channelstats")).splitlines()
            columns = next(row.split() for row in rows if event.channel.removeprefix("PJSIP/")[:18] in row)
            return int(columns[8]) > 25

        before = gateway.log()
        await until(hears_music, what="half a second of audio sent to the caller")
        assert not list(problems(gateway.log().removeprefix(before)))


async def test_redirect_connects_to_the_node_and_the_channel_says_so(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path
) -> None:
    number = conference_number()
    async with (
        sipp.node(tmp_path / "node", transport="tcp") as node,
        parked(gateway, raw_ami, tmp_path, number) as (
            callers,
            event,
        ),
    ):
        await raw_ami.redirect(event.channel, "1x1", node.uri(number))
        began = await raw_ami.event("DialBegin", CALLYARD_CONFERENCE=number)
        assert began.variables["CALLYARD_MARK"] == "1x1"
        assert began.variables["CALLYARD_STATE"] == "dialing"
        ended = await raw_ami.event("DialEnd", CALLYARD_CONFERENCE=number)
        assert (ended["DialStatus"], ended.variables["CALLYARD_STATE"]) == ("ANSWER", "connected")
        assert (await status(raw_ami, event.channel)).variables["CALLYARD_STATE"] == "connected"
        answered = await node.saw("answered")
        assert [(call.conference, call.caller) for call in answered] == [(number, "493012345xxx")]
        assert callers.talking()

        await callers.hang_up()
        left = await raw_ami.event("Hangup", CALLYARD_CONFERENCE=number)
        assert left.variables["CALLYARD_STATE"] == "connected"
        await node.saw("ended")
        assert len(raw_ami.named("Hangup", CALLYARD_STAY="1", Linkedid=left["Linkedid"])) == 1  # not the node's leg


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_nodes_are_called_by_the_transport_of_the_uri(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path, transport: Literal["udp", "tcp"]
) -> None:
    number = conference_number()
    async with (
        sipp.node(tmp_path / "node", transport=transport) as node,
        parked(gateway, raw_ami, tmp_path, number) as (_, event),
    ):
        await raw_ami.redirect(event.channel, "1x1", node.uri(number))
        assert [call.conference for call in await node.saw("answered")] == [number]


@pytest.mark.parametrize(
    ("behaviour", "failed"),
    [
        ("404 Not Found", "1x1/CHANUNAVAIL/1/404"),
        ("486 Busy Here", "1x1/BUSY/17/486"),
        ("503 Service Unavailable", "1x1/CONGESTION/34/503"),
        ("403 Forbidden", "1x1/CHANUNAVAIL/21/403"),
        ("603 Decline", "1x1/CHANUNAVAIL/21/603"),
    ],
)
async def test_refused_dial_parks_again_in_the_same_stay(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path, behaviour: str, failed: str
) -> None:
    number = conference_number()
    async with (
        sipp.node(tmp_path / "node", behaviour=behaviour) as node,
        parked(gateway, raw_ami, tmp_path, number) as (_, event),
    ):
        await raw_ami.redirect(event.channel, "1x1", node.uri(number))
        again = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        assert again.variables == {
            "CALLYARD_CONFERENCE": number, "CALLYARD_STAY": "1", "CALLYARD_STATE": "parked",
            "CALLYARD_MARK": "1x1", "CALLYARD_FAILED": failed, "CALLYARD_AFTER": "",
        }  # fmt: skip
        assert [call.conference for call in node.events("called")] == [number]


async def test_second_attempt_after_a_failure_connects(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path
) -> None:
    number = conference_number()
    async with (
        sipp.node(tmp_path / "bad", name="bad", behaviour="404 Not Found") as bad,
        sipp.node(tmp_path / "good", name="good") as good,
        parked(gateway, raw_ami, tmp_path, number) as (_, event),
    ):
        await raw_ami.redirect(event.channel, "1x1", bad.uri(number))
        await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        await raw_ami.redirect(event.channel, "1x2", good.uri(number))
        ended = await raw_ami.event("DialEnd", CALLYARD_CONFERENCE=number, DialStatus="ANSWER")
        assert ended.variables["CALLYARD_MARK"] == "1x2"
        assert ended.variables["CALLYARD_FAILED"] == ""
        assert [call.conference for call in await good.saw("answered")] == [number]


async def test_node_that_does_not_answer_is_given_up_after_the_time_out(tmp_path: Path) -> None:
    number = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway", dial_seconds=1) as gateway,
        connected(gateway.ami) as client,
        sipp.node(tmp_path / "node", behaviour=sipp.SILENT) as node,
        parked(gateway, client, tmp_path, number) as (_, event),
    ):
        await client.redirect(event.channel, "1x1", node.uri(number))
        again = await client.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        attempt, dial_status, _, _ = again.variables["CALLYARD_FAILED"].split("/")
        assert (attempt, dial_status) == ("1x1", "NOANSWER")
        await node.saw("cancelled")


async def test_node_that_is_not_there(gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path) -> None:
    number = conference_number()
    async with parked(gateway, raw_ami, tmp_path, number) as (_, event):
        async with sipp.node(tmp_path / "node") as node:
            uri = node.uri(number)
        await raw_ami.redirect(event.channel, "1x1", uri)
        again = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        assert again.variables["CALLYARD_FAILED"].startswith("1x1/")
        assert again.variables["CALLYARD_STATE"] == "parked"


@pytest.mark.parametrize(
    ("dial", "extension"),
    [
        ("1x1", "1x2"),  # not the attempt that the channel names
        ("2x1", "2x1"),  # of another stay
        ("1x1", "1y1"),  # of no form
        ("1x1", "nonsense"),
    ],
)
async def test_stale_redirect_leaves_the_caller_parked_unchanged(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path, dial: str, extension: str
) -> None:
    number = conference_number()
    async with sipp.node(tmp_path / "node") as node, parked(gateway, raw_ami, tmp_path, number) as (_, event):
        await raw_ami.redirect(event.channel, dial, node.uri(number), extension=extension)
        again = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        assert again.variables == event.variables
        assert node.events() == []


async def test_same_attempt_never_dials_twice(gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path) -> None:
    number = conference_number()
    async with (
        sipp.node(tmp_path / "node", behaviour="404 Not Found") as node,
        parked(gateway, raw_ami, tmp_path, number) as (_, event),
    ):
        await raw_ami.redirect(event.channel, "1x2", node.uri(number))
        await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        for count, stale in enumerate(("1x2", "1x1"), start=3):  # the same again, then an older one
            await raw_ami.redirect(event.channel, stale, node.uri(number))
            again = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=count)
            assert again.variables["CALLYARD_FAILED"] == "1x2/CHANUNAVAIL/1/404"
        assert len(node.events("called")) == 1


async def test_redirect_during_a_talk_is_told_as_a_failure(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path
) -> None:
    number = conference_number()
    async with sipp.node(tmp_path / "node") as node, parked(gateway, raw_ami, tmp_path, number) as (_, event):
        await raw_ami.redirect(event.channel, "1x1", node.uri(number))
        await raw_ami.event("DialEnd", CALLYARD_CONFERENCE=number, DialStatus="ANSWER")
        await raw_ami.redirect(event.channel, "1x1", node.uri(number))
        again = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        assert again.variables["CALLYARD_FAILED"] == "1x1/REDIRECTED/0/0"
        assert (again.variables["CALLYARD_STAY"], again.variables["CALLYARD_STATE"]) == ("1", "parked")


@pytest.mark.parametrize(
    "uri",
    [
        "sip:49123@127.0.0.1&PJSIP/callyard-node/sip:49124@127.0.0.1",
        "sip:49123@127.0.0.1,60,g",
        "sip:49123@127.0.0.1${SHELL(id)}",
        'sip:49123@127.0.0.1" | "1',
        "callyard-trunk/49123",
        "",
    ],
)
async def test_uri_that_is_none_is_refused_by_the_dialplan_too(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path, uri: str
) -> None:
    number = conference_number()
    async with parked(gateway, raw_ami, tmp_path, number) as (_, event):
        await raw_ami.redirect(event.channel, "1x1", uri)
        again = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        assert again.variables["CALLYARD_FAILED"] == "1x1/BADURI/0/0"
        assert raw_ami.named("DialBegin", CALLYARD_CONFERENCE=number) == []


async def test_wrong_number_is_told_and_asked_again(gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path) -> None:
    number = conference_number()
    # The second number's first digit comes while the prompt about the first one plays: it is taken all the same.
    calls = [sipp.Call("493012345678", f"123#{number}#")]
    async with sipp.calling(tmp_path / "caller", address(gateway), calls):
        event = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number)
        assert event.variables["CALLYARD_STAY"] == "1"
        tries = await raw_ami.action("Getvar", Channel=event.channel, Variable="CALLYARD_TRY")
        assert tries["Value"] == "2"


async def test_prompt_that_is_not_there_costs_nobody_the_call(tmp_path: Path) -> None:
    number = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway", prompt_greeting="", prompt_number="not-there") as gateway,
        connected(gateway.ami) as client,
        parked(gateway, client, tmp_path, number) as (_, event),
    ):
        assert event.variables["CALLYARD_STATE"] == "parked"
        assert any("not-there" in problem for problem in problems(gateway.log()))


async def test_after_the_last_wrong_number_the_call_ends(tmp_path: Path) -> None:
    async with asterisk.running(tmp_path / "gateway", tries=2, prompt_goodbye="beep", prompt_wrong="beep") as gateway:
        calls = [sipp.Call("493012345678", "12#34#")]
        async with sipp.calling(tmp_path / "caller", address(gateway), calls) as callers:
            assert await callers.saw("ended", timeout=20)
        assert not list(problems(gateway.log()))


async def test_number_without_hash_is_taken_after_a_while(tmp_path: Path) -> None:
    number = conference_number()
    calls = [sipp.Call("493012345678", number)]
    async with (
        asterisk.running(tmp_path / "gateway", digit_seconds=2) as gateway,
        connected(gateway.ami) as client,
        sipp.calling(tmp_path / "caller", address(gateway), calls),
    ):
        assert await client.event("ParkedCall", CALLYARD_CONFERENCE=number)


async def test_full_lot_is_told(tmp_path: Path) -> None:
    numbers = [conference_number() for _ in range(3)]
    calls = [sipp.Call(f"49301234567{i}", f"{number}#") for i, number in enumerate(numbers)]
    async with (
        asterisk.running(tmp_path / "gateway", lot_size=2, prompt_full="beep") as gateway,
        connected(gateway.ami) as client,
        sipp.calling(tmp_path / "callers", address(gateway), calls, rate=1) as callers,
    ):
        left = await client.event("Hangup", CALLYARD_STATE="full")
        assert left.variables["CALLYARD_CONFERENCE"] == numbers[2]
        assert [event.conference for event in await callers.saw("ended")] == [numbers[2]]
        assert len(client.named("ParkedCall")) == 2


async def test_longest_wait_is_told(tmp_path: Path) -> None:
    number = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway", longest_wait_seconds=1, prompt_waited="beep") as gateway,
        connected(gateway.ami) as client,
        parked(gateway, client, tmp_path, number) as (callers, _),
    ):
        left = await client.event("Hangup", CALLYARD_CONFERENCE=number)
        assert left.variables["CALLYARD_STATE"] == "over"
        await callers.saw("ended")


async def test_hanging_up_while_parked(gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path) -> None:
    number = conference_number()
    async with parked(gateway, raw_ami, tmp_path, number) as (callers, event):
        await callers.hang_up()
        left = await raw_ami.event("Hangup", CALLYARD_CONFERENCE=number)
        assert (left.channel, left.variables["CALLYARD_STATE"]) == (event.channel, "parked")
        assert [m.channel for m in await raw_ami.listed("ParkedCalls") if m.channel == event.channel] == []


async def test_each_number_begins_a_stay(gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path) -> None:
    number, corrected = conference_number(), conference_number()
    async with sipp.node(tmp_path / "node") as node, parked(gateway, raw_ami, tmp_path, number) as (_, event):
        await raw_ami.redirect(event.channel, "1x1", node.uri(number), extension="1x9")  # leaves URI and attempt behind
        await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
        await raw_ami.action(
            "Redirect", Channel=event.channel, Context="callyard-park", Exten=corrected, Priority="1"
        )  # fmt: skip
        again = await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=corrected)
        assert again.variables["CALLYARD_STAY"] == "2"
        # What was decided for the first number reaches nobody.
        await raw_ami.redirect(event.channel, "1x1", node.uri(number))
        await raw_ami.event("ParkedCall", CALLYARD_CONFERENCE=corrected, count=2)
        assert node.events() == []


@pytest.mark.parametrize(
    ("setting", "caller", "shown"),
    [
        ("masked", "493012345678", "493012345xxx"),
        ("full", "493012345678", "493012345678"),
        ("none", "493012345678", "unknown"),
        ("masked", "anonymous", "unknown"),
        ("full", "anonymous", "unknown"),
    ],
)
async def test_how_the_node_sees_the_caller(tmp_path: Path, setting: str, caller: str, shown: str) -> None:
    number = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway", caller_id=setting) as gateway,
        connected(gateway.ami) as client,
        sipp.node(tmp_path / "node") as node,
        parked(gateway, client, tmp_path, number, caller=caller) as (_, event),
    ):
        await client.redirect(event.channel, "1x1", node.uri(number))
        assert [call.caller for call in await node.saw("answered")] == [shown]
