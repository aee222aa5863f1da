"""Callers with hostile SIP headers at the real Asterisk: each is served, and nothing of it is evaluated or injected."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from agents import ami
from agents.messages import VARIABLES
from callyard import topics
from callyard.parts import asterisk, sipp
from callyard.records import CallerParked
from callyard.settings import KafkaSettings
from tests.support import hostile
from tests.support import kafka as on_kafka
from tests.support.agent import agent, dial, has, instruct, logged, running, said, types
from tests.support.asterisk import conference_number
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.asterisk]

SHOWN = re.compile(r'From: "(?P<shown>[0-9+]*x*|unknown)" <sip:(?P=shown)@[0-9.]+>;tag=[0-9a-f-]+\r?')
"""How a node may see a caller."""


def scenario(caller: str, dialled: str = "100") -> str:
    """A caller with this header From, with hostile other headers, who dialled this."""
    shipped = (sipp.SCENARIOS / "caller.xml").read_text(encoding="utf-8")
    others = "".join(f"      {name}: {value}\n" for name, value in hostile.OTHER_HEADERS.items())
    written = shipped.replace('"[field0]" <sip:[field0]@[local_ip]:[local_port]>', caller)
    written = written.replace("INVITE sip:[field1]@", f"INVITE sip:{dialled}@")
    written = written.replace("      Content-Type: application/sdp\n", others + "      Content-Type: application/sdp\n")
    assert written.count(caller) == 3
    assert written.count("Subject: ") == 1
    return written


@asynccontextmanager
async def calling(
    gateway: asterisk.Gateway, directory: Path, callers: Sequence[tuple[str, str, str]]
) -> AsyncIterator[None]:
    """Callers (conference, From, dialled), each in a SIPp of its own."""
    async with AsyncExitStack() as stack:
        for conference, caller, dialled in callers:
            caller_side = await stack.enter_async_context(
                sipp.calling(
                    directory / conference, (gateway.sip_host, gateway.sip_port),
                    [sipp.Call("4930123456", f"{conference}#")], scenario=scenario(caller, dialled),
                )
            )  # fmt: skip
            # One after the other: a port that is free while one starts may be taken by the next.
            await caller_side.saw("answered", timeout=20)
        yield


@asynccontextmanager
async def listening(gateway: asterisk.Gateway) -> AsyncIterator[list[ami.Headers]]:
    """All events that the agent's manager user is sent."""
    session = await ami.connect(gateway.ami)
    found: list[ami.Headers] = []

    async def collect() -> None:
        while True:
            item = await session.next()
            if isinstance(item, ami.Event):
                found.append(item.headers)

    task = asyncio.create_task(collect())
    try:
        yield found
    finally:
        task.cancel()
        session.close()


def invites(node: sipp.Node) -> list[str]:
    """The INVITEs that a node was sent."""
    seen = (node.directory / f"{node.name}.messages").read_text(encoding="utf-8", errors="replace")
    return [f"INVITE {rest}" for rest in re.split(r"(?m)^INVITE ", seen)[1:]]


@pytest.mark.timeout(180)
async def test_a_caller_with_a_hostile_header_is_put_through_like_any_other(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    served = [(conference_number(), caller, "100") for caller in hostile.CALLERS.values()]
    served += [(conference_number(), "<sip:4930123456@x>", dialled) for dialled in hostile.DIALLED]
    async with asterisk.running(tmp_path / "gateway") as gateway, listening(gateway) as events:
        child = agent(kafka_settings, gateway.ami, tmp_path / "log")
        async with running(child), sipp.node(tmp_path / "node") as node, calling(gateway, tmp_path, served):
            for conference, _, _ in served:
                [parked, *_] = await said(kafka_settings, conference, has("caller-parked"))
                await instruct(kafka_settings, dial(parked, node.uri(conference)))
            answered = await node.saw("answered", len(served), timeout=30)
            for conference, _, _ in served:
                records = await said(kafka_settings, conference, has("caller-connected"))
                assert types(records) == ["caller-parked", "dial-started", "caller-connected"]
                callers = [record.caller for record in records if isinstance(record, CallerParked)]
                assert all(re.fullmatch(r"[0-9+*#]*", caller or "") for caller in callers)
            assert child.running
            await until(lambda: sum(event["Event"] == "DialEnd" for event in events) == len(served))
        rejected = await on_kafka.read(kafka_settings, topics.topics(kafka_settings).rejected.name)
    assert {call.conference for call in answered} == {conference for conference, _, _ in served}
    assert [record.value for record in rejected] == []
    told = invites(node)
    assert len(told) == len(served)
    for invite in told:
        head = invite.partition("\r\n\r\n")[0].replace("\r", "").split("\n")
        assert any(SHOWN.fullmatch(line) for line in head), head
        assert not re.search(r"SHELL|EPOCH|CHANNEL|PJSIP|Hangup|%|\$|&|,g", invite.partition("v=0")[0])
    # Three events for each call before it ends: none was made by a caller.
    assert [event for event in events if "666.0" in str(event)] == []
    kinds = Counter(event["Event"] for event in events if event["Event"] not in ("FullyBooted", "Hangup"))
    assert kinds == dict.fromkeys(("ParkedCall", "DialBegin", "DialEnd"), len(served))
    for event in events:
        repeated = {name for name, value in event.items() if isinstance(value, list)}
        assert repeated <= {"ChanVariable", "ParkeeChanVariable", "DestChanVariable"}
        variables = event.get("ParkeeChanVariable", event.get("ChanVariable", []))
        assert len(variables) in (0, len(VARIABLES)), event
    # Evaluated, one of them would say so: Asterisk has no SHELL here ("Function SHELL not registered").
    assert "not registered" not in gateway.log()


async def test_a_caller_cannot_end_another_ones_wait(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    victim, attacker = conference_number(), conference_number()
    async with asterisk.running(tmp_path / "gateway") as gateway:
        child = agent(kafka_settings, gateway.ami, tmp_path / "log")
        async with running(child), calling(gateway, tmp_path, [(victim, "<sip:4930123456@x>", "100")]):
            [parked, *_] = await said(kafka_settings, victim, has("caller-parked"))
            injected = hostile.INJECTED_EVENT.format(uniqueid=parked.call_id.partition("/")[2])
            async with calling(gateway, tmp_path, [(attacker, f"<sip:1{injected}@x>", "100")]):
                await said(kafka_settings, attacker, has("caller-parked"))
                async with sipp.node(tmp_path / "node") as node:
                    await instruct(kafka_settings, dial(parked, node.uri(victim)))
                    records = await said(kafka_settings, victim, has("caller-connected"))
    assert types(records) == ["caller-parked", "dial-started", "caller-connected"]


async def test_an_event_within_an_event_is_not_passed_on(tmp_path: Path) -> None:
    forger, other = conference_number(), conference_number()
    async with asterisk.running(tmp_path / "gateway") as gateway, listening(gateway) as events:
        # As in a dialplan that lets numbers in as they come.
        dialplan = gateway.directory / "etc" / "extensions_callyard.conf"
        sound = dialplan.read_text(encoding="utf-8")
        let_in = sound.replace("Set(CALLERID(num)=${FILTER(0-9+*#,${CALLERID(num)})})", "NoOp()")
        assert let_in != sound
        dialplan.write_text(let_in, encoding="utf-8")
        await gateway.cli("dialplan reload")
        injected = hostile.INJECTED_EVENT.format(uniqueid="666.0")
        callers = [(forger, f"<sip:1{injected}@x>", "100"), (other, "<sip:4930123456@x>", "100")]
        async with calling(gateway, tmp_path, callers):
            await until(lambda: any(f"CALLYARD_CONFERENCE={other}" in str(event) for event in events))
    assert [event for event in events if "666.0" in str(event)] == []


async def test_hostile_instructions_are_set_aside_and_sound_ones_between_carried_out(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    conference, name = conference_number(), topics.topics(kafka_settings).dials.name
    async with asterisk.running(tmp_path / "gateway") as gateway, listening(gateway) as events:
        child = agent(kafka_settings, gateway.ami, tmp_path / "log")
        async with (
            running(child),
            sipp.node(tmp_path / "node", behaviour="404 Not Found") as node,
            calling(gateway, tmp_path, [(conference, "<sip:4930123456@x>", "100")]),
        ):
            [parked, *_] = await said(kafka_settings, conference, has("caller-parked"))
            # Each is sound but for one field, about the caller who is there: whatever slips through would ring.
            example = dial(parked, "sip:49123@192.0.2.1:5060;transport=tcp", attempt=50, partition=1)
            rubbish = [
                hostile.spoiled(example, field, value)
                for field in ("sip_uri", "call_id", "gateway_id", "conference", "attempt", "stay", "type", "epoch")
                for kind, value in hostile.VALUES.items()
                if kind not in ("zero", "one as a fraction", "true") and len(value) < hostile.MEGABYTE // 2
                # A sound epoch, and a stay that another replica may know of.
                if field == "attempt" or kind not in ("beyond what a gateway reports", "the largest")
            ]
            rubbish += [value for value in hostile.BYTES.values() if len(value) < hostile.MEGABYTE // 2]
            half = len(rubbish) // 2
            await on_kafka.send(kafka_settings, name, *((parked.gateway_id, value) for value in rubbish[:half]))
            await instruct(kafka_settings, dial(parked, node.uri(conference), attempt=1))
            await said(kafka_settings, conference, has("dial-failed"))
            await on_kafka.send(kafka_settings, name, *((parked.gateway_id, value) for value in rubbish[half:]))
            await instruct(kafka_settings, dial(parked, node.uri(conference), attempt=2))
            records = await said(kafka_settings, conference, lambda found: types(found).count("dial-failed") == 2)
            rejected = await on_kafka.read(
                kafka_settings, topics.topics(kafka_settings).rejected.name, enough=len(rubbish) // 2, timeout=30
            )
            assert child.running
            assert types(records) == ["caller-parked", *["dial-started", "dial-failed"] * 2]
            assert [call.conference for call in node.events("called")] == [conference] * 2
            began = [event for event in events if event["Event"] == "DialBegin"]
            assert [event["ChanVariable"][3] for event in began] == ["CALLYARD_MARK=1x1", "CALLYARD_MARK=1x2"]
            assert "1 active channel" in await gateway.cli("core show channels")
    assert all(dict(record.headers)["callyard-source"] == name.encode() for record in rejected)
    assert len(logged(child, "redirect accepted")) == 2
