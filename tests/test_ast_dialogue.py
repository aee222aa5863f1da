"""What callers hear and may do, on the real Asterisk: SIPp presses keys, Asterisk's log says which file is played."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from callyard.parts import asterisk, sipp
from tests.support.asterisk import Message, RawAmi, conference_number, connected, parked, problems
from tests.support.wait import until

pytestmark = pytest.mark.asterisk

LOGGER = """\
[general]
dateformat = %F %T.%3q
[logfiles]
messages.log => notice,warning,error,verbose(3),debug
"""
_PLAYING = re.compile(r"<(?P<channel>[^>]+)> Playing '(?P<file>[^']+)\.\w+' \(language '(?P<language>\w+)'\)")
_ANNOUNCED = re.compile(r"(?P<channel>\S+) Opened announcement '(?P<file>[^']+)'")


@contextlib.asynccontextmanager
async def gateway_with(directory: Path, **changes: Any) -> AsyncIterator[tuple[asterisk.Gateway, RawAmi]]:
    """A gateway of these settings that logs what it plays, and a manager client."""
    files = {"logger.conf": LOGGER}
    async with asterisk.running(directory / "gateway", files=files, **changes) as gateway:
        await gateway.cli("core set debug 1 res_musiconhold.so")
        async with connected(gateway.ami) as client:
            yield gateway, client


def calling(
    gateway: asterisk.Gateway, directory: Path, *calls: sipp.Call, **more: Any
) -> contextlib.AbstractAsyncContextManager[sipp.Sipp]:
    return sipp.calling(directory / "callers", (gateway.sip_host, gateway.sip_port), list(calls), **more)


def heard(gateway: asterisk.Gateway) -> list[str]:
    """The files that were played so far, announcements within the music included, in order."""
    found = (_PLAYING.search(line) or _ANNOUNCED.search(line) for line in gateway.log().splitlines())
    return [match["file"] for match in found if match]


async def hears(gateway: asterisk.Gateway, *files: str, timeout: float = 20) -> None:
    """Wait until these files were played, in this order (others may lie between them)."""

    def in_order() -> bool:
        rest = iter(heard(gateway))
        return all(any(file == played for played in rest) for file in files)

    await until(in_order, timeout, lambda: f"{files} heard; there were {heard(gateway)}")


async def test_a_caller_is_greeted_told_what_is_wrong_and_ends_with_a_goodbye(tmp_path: Path) -> None:
    async with gateway_with(
        tmp_path, tries=2, digit_seconds=1, prompt_greeting="beep", prompt_number="beeperr", prompt_nothing="sorry",
        prompt_wrong="invalid", prompt_goodbye="goodbye",
    ) as (gateway, _):  # fmt: skip
        async with calling(gateway, tmp_path, sipp.Call("4930123", "")) as callers:
            await callers.saw("ended", timeout=30)
        assert heard(gateway) == ["beep", "beeperr", "sorry", "sorry", "goodbye"]
        async with calling(gateway, tmp_path / "second", sipp.Call("4930123", "12#1#")) as callers:
            await callers.saw("ended", timeout=30)
        assert heard(gateway)[-2:] == ["invalid", "goodbye"]
        assert list(problems(gateway.log())) == []


async def test_the_number_ends_with_hash_is_read_back_and_begins_anew_with_star(tmp_path: Path) -> None:
    number = conference_number()
    async with (
        gateway_with(tmp_path, read_back=True) as (gateway, client),
        calling(gateway, tmp_path, sipp.Call("4930123", f"99*{number}#")),
    ):
        await client.event("ParkedCall", CALLYARD_CONFERENCE=number, timeout=30)
        await hears(gateway, "you-entered", *(f"digits/{digit}" for digit in number), "conf-waitforleader")


async def test_a_number_outside_the_pattern_is_told_at_once(tmp_path: Path) -> None:
    async with gateway_with(tmp_path, tries=1, number_pattern="[1-6][0-9]+", direct_prefixes="4930") as (
        gateway,
        client,
    ):
        calls = [sipp.Call("4930123", "71234#"), sipp.Call("4930123", "", dials="493071234")]
        async with calling(gateway, tmp_path, *calls) as callers:
            await callers.saw("ended", timeout=30)
        await hears(gateway, "conf-invalid", "vm-goodbye")
        assert client.named("ParkedCall") == []


@pytest.mark.parametrize(
    ("dials", "conference"),
    [("4930123", "51234"), ("+4930123", "51234"), ("493055561234", "61234"), ("+493055561234", "61234")],
)
async def test_a_number_dialled_directly_is_not_asked_for(
    direct: tuple[asterisk.Gateway, RawAmi], tmp_path: Path, dials: str, conference: str
) -> None:
    gateway, client = direct
    before = len(client.named("ParkedCall"))
    async with calling(gateway, tmp_path, sipp.Call("4930123", "", dials=dials)):
        await until(lambda: len(client.named("ParkedCall")) > before)
    assert client.named("ParkedCall")[-1].variables["CALLYARD_CONFERENCE"] == conference
    assert "conf-getconfno" not in heard(gateway)


@pytest.fixture
async def direct(tmp_path: Path) -> AsyncIterator[tuple[asterisk.Gateway, RawAmi]]:
    async with gateway_with(tmp_path, direct_numbers="4930123=51234", direct_prefixes="4930555") as pair:
        yield pair


async def test_who_waits_is_told_so_then_warned_then_told_the_end(tmp_path: Path) -> None:
    number = conference_number()
    async with gateway_with(
        tmp_path, longest_wait_seconds=4, warn_seconds=2, prompt_waited="beep", prompt_waiting="hello",
        prompt_warning="queue-thankyou",
    ) as (gateway, client):  # fmt: skip
        async with parked(gateway, client, tmp_path, number) as (callers, _):
            await callers.saw("ended", timeout=20)
        await hears(gateway, "hello", "queue-thankyou", "beep")
        left = await client.event("Hangup", CALLYARD_CONFERENCE=number)
        assert left.variables["CALLYARD_STATE"] == "over"
        # The warning is part of the music: the caller was in the lot, but for a moment.
        assert [event.variables["CALLYARD_STAY"] for event in client.named("ParkedCall")] == ["1", "1"]
        assert list(problems(gateway.log())) == []


async def test_without_an_agent_who_waits_is_told_after_a_while(tmp_path: Path) -> None:
    number = conference_number()
    async with gateway_with(tmp_path, outage_seconds=3, prompt_outage="beep") as (gateway, client):
        async with parked(gateway, client, tmp_path, number) as (callers, _):
            # An agent that says that it is there: the wait goes on, to three seconds after the last time it did.
            now = int(float((await client.action("Ping"))["Timestamp"]))
            await client.action("Setvar", Variable="CALLYARD_AGENT", Value=str(now + 3))
            await client.event("ParkedCall", CALLYARD_CONFERENCE=number, count=2)
            assert "beep" not in heard(gateway)
            await callers.saw("ended", timeout=20)
        await hears(gateway, "beep")


async def test_star_of_who_waits_is_told_and_no_other_key_is(tmp_path: Path) -> None:
    number, corrected = conference_number(), conference_number()
    async with gateway_with(tmp_path, prompt_greeting="", prompt_number="beep") as (gateway, client):  # noqa: SIM117
        async with calling(gateway, tmp_path, sipp.Call("4930123", f"{number}#1234567890#*")):
            star: Message = await client.event("DTMFEnd", CALLYARD_CONFERENCE=number, timeout=30)
            assert star["Digit"] == "*"
            assert {event["Digit"] for event in client.named("DTMFEnd")} == {"*"}
            await client.action("Redirect", Channel=star.channel, Context="callyard-again", Exten="s", Priority="1")
            await until(lambda: heard(gateway).count("beep") == 2)
            # A dial for the number before is refused, and the question goes on.
            await client.redirect(star.channel, "1x1", "sip:1@127.0.0.1:9")
            await until(lambda: heard(gateway).count("beep") == 3)
            assert client.named("DialBegin") == []
            await client.action(
                "Redirect", Channel=star.channel, Context="callyard-park", Exten=corrected, Priority="1"
            )
            again = await client.event("ParkedCall", CALLYARD_CONFERENCE=corrected)
            assert again.variables["CALLYARD_STAY"] == "2"


async def test_the_trunk_chooses_the_language_where_the_number_dialled_does_not(tmp_path: Path) -> None:
    async with gateway_with(
        tmp_path, language_trunks="callyard-trunk=de", language_numbers="55=en", direct_prefixes="55,66"
    ) as (gateway, client):
        for prefix, language in (("55", "en"), ("66", "de")):
            number = conference_number()
            async with calling(gateway, tmp_path / prefix, sipp.Call("4930123", "", dials=f"{prefix}{number}")):
                waits = await client.event("ParkedCall", CALLYARD_CONFERENCE=number, timeout=30)
                shown = await gateway.cli(f"core show channel {waits.channel}")
                assert re.search(rf"(?m)^\s*Language: {language}$", shown), shown


async def test_limits_by_caller_and_by_trunk(tmp_path: Path) -> None:
    def direct(caller: str, number: str) -> sipp.Call:
        return sipp.Call(caller, "", dials=f"55{number}")

    numbers = [conference_number() for _ in range(7)]
    async with gateway_with(
        tmp_path, direct_prefixes="55", caller_parked_limit=2, caller_tries_limit=4, trunk_parked_limit=3,
        prompt_limited="beep", prompt_full="beeperr",
    ) as (gateway, client):  # fmt: skip
        calls = [direct("4930111", number) for number in numbers[:3]]
        calls += [direct("4930222", number) for number in numbers[3:5]]
        # Tries are counted by the minute of the clock: all of these are to lie in one.
        await until(lambda: time.time() % 60 < 40, 30, what="enough of a minute being left")
        async with sipp.calling(
            tmp_path / "first", (gateway.sip_host, gateway.sip_port), calls, name="first", rate=2
        ) as first:
            await first.saw("ended", 2, timeout=30)
            # Two of the first caller, one of the second: then the trunk has its three.
            waiting = {event.variables["CALLYARD_CONFERENCE"] for event in client.named("ParkedCall")}
            assert waiting == {numbers[0], numbers[1], numbers[3]}
            assert heard(gateway).count("beep") == 2
        listed = await gateway.cli("database show callyard-tries")
        assert re.search(r"caller-4930111\s*: 3", listed), listed
        assert list(problems(gateway.log())) == []


async def test_who_tries_too_many_numbers_is_told(tmp_path: Path) -> None:
    numbers = [conference_number() for _ in range(4)]
    calls = [sipp.Call("4930111", "", dials=f"55{number}") for number in numbers]
    async with gateway_with(
        tmp_path, direct_prefixes="55", caller_tries_limit=2, trunk_tries_limit=100, prompt_limited="beep"
    ) as (gateway, client):
        async with calling(gateway, tmp_path, *calls, rate=5) as callers:
            # One more may have been let in where a minute of the clock began between them.
            await callers.saw("ended", 1, timeout=30)
            assert len(client.named("ParkedCall")) <= 3
        # The next minute begins from nothing.
        await gateway.cli("dialplan set global CALLYARD_MINUTE 0")
        async with calling(gateway, tmp_path, sipp.Call("4930111", "", dials=f"55{numbers[0]}")):
            count = len(client.named("ParkedCall"))
            await client.event("ParkedCall", count=count + 1)


@pytest.mark.parametrize(
    ("changes", "caller", "privacy", "shown"),
    [
        ({"caller_id": "first", "caller_id_digits": 4}, "493012345678", "", ("4930", "4930")),
        (
            {"caller_id_digits": 5, "caller_name": "Phone {number}"},
            "4930123456",
            "",
            ("Phone 49301xxxxx", "49301xxxxx"),
        ),
        ({"caller_id": "full", "caller_name": "Tel. {number}"}, "4930123456", "id", ("Guest", "unknown")),
        ({"caller_id": "full"}, "4930123456", "header;session", ("4930123456", "4930123456")),
        ({"caller_id": "full"}, "anonymous", "", ("Guest", "unknown")),
    ],
)
async def test_how_the_node_sees_the_caller(
    tmp_path: Path, changes: dict[str, Any], caller: str, privacy: str, shown: tuple[str, str]
) -> None:
    number = conference_number()
    scenario = (sipp.SCENARIOS / "caller.xml").read_text(encoding="utf-8")
    if privacy:
        before = "      Max-Forwards: 70\n      Content-Type"
        scenario = scenario.replace(before, before.replace("      Content", f"      Privacy: {privacy}\n      Content"))
        assert privacy in scenario
    async with gateway_with(tmp_path, direct_prefixes="55", unknown_name="Guest", **changes) as (gateway, client):
        async with (
            sipp.node(tmp_path / "node") as node,
            calling(gateway, tmp_path, sipp.Call(caller, "", dials=f"55{number}"), scenario=scenario),
        ):
            event = await client.event("ParkedCall", CALLYARD_CONFERENCE=number)
            if privacy == "id":
                assert caller not in str(event.headers).replace(f'"{number}"', "")
            await client.redirect(event.channel, "1x1", node.uri(number))
            await node.saw("answered")
        invite = (node.directory / f"{node.name}.messages").read_text(encoding="utf-8", errors="replace")
        sender = re.search(r'From: "?(?P<name>[^"<]*?)"? ?<sip:(?P<number>[^@]*)@', invite)
        assert sender is not None
        assert (sender["name"], sender["number"]) == shown
        assert list(problems(gateway.log())) == []


async def test_a_call_has_a_longest_length_with_a_warning(tmp_path: Path) -> None:
    number = conference_number()
    async with gateway_with(
        tmp_path, direct_prefixes="55", longest_call_seconds=6, warn_seconds=3, prompt_call_over="beep",
        prompt_warning="beeperr", prompt_connected="hello",
    ) as (gateway, client):  # fmt: skip
        async with (
            sipp.node(tmp_path / "node") as node,
            calling(gateway, tmp_path, sipp.Call("4930111", "", dials=f"55{number}")) as callers,
        ):
            event = await client.event("ParkedCall", CALLYARD_CONFERENCE=number)
            await client.redirect(event.channel, "1x1", node.uri(number))
            await callers.saw("ended", timeout=30)
            await node.saw("ended")
        await hears(gateway, "hello", "beeperr", "beep")
        left = await client.event("Hangup", CALLYARD_CONFERENCE=number)
        assert left.variables["CALLYARD_STATE"] == "connected", left
        assert len(client.named("ParkedCall")) == 1


async def test_a_caller_without_audio_is_hung_up(tmp_path: Path) -> None:
    number = conference_number()
    async with gateway_with(tmp_path, direct_prefixes="55", rtp_timeout_seconds=2) as (gateway, client):
        async with calling(gateway, tmp_path, sipp.Call("4930111", "", dials=f"55{number}")) as callers:
            await client.event("ParkedCall", CALLYARD_CONFERENCE=number)
            await callers.saw("ended", timeout=20)
        await client.event("Hangup", CALLYARD_CONFERENCE=number)


async def test_where_both_sides_agree_on_a_codec_nothing_is_transcoded(tmp_path: Path) -> None:
    number = conference_number()
    # The caller and the node speak PCMU alone; it is the last of what is allowed.
    async with gateway_with(tmp_path, direct_prefixes="55", codecs="g722,opus,alaw,ulaw") as (gateway, client):
        async with (
            sipp.node(tmp_path / "node") as node,
            calling(gateway, tmp_path, sipp.Call("4930111", "", dials=f"55{number}")),
        ):
            event = await client.event("ParkedCall", CALLYARD_CONFERENCE=number)
            await client.redirect(event.channel, "1x1", node.uri(number))
            await node.saw("answered")
            shown = await gateway.cli(f"core show channel {event.channel}")
            formats = dict(re.findall(r"^\s*(\w+): (.+?)\s*$", shown, re.MULTILINE))
            assert (formats["WriteFormat"], formats["ReadFormat"]) == ("ulaw", "ulaw"), shown
            assert formats["WriteTranscode"].startswith("No"), shown
            assert formats["ReadTranscode"].startswith("No"), shown
        assert list(problems(gateway.log())) == []
        assert "opus" in await gateway.cli("core show translation paths opus")
