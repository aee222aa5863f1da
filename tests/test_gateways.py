"""Two gateways and one table, on real parts: two Asterisks, two agents each, two stream workers, two nodes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio

from callyard.kafka import embedded
from callyard.parts import sipp
from callyard.records import Instruction, JournalEntry
from tests.conftest import unique_settings
from tests.support.cluster import conference_number
from tests.support.gateways import LEASE_SECONDS, Site, running
from tests.support.streams import decisions, instructions, journal
from tests.support.wait import until

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.asterisk,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="session"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(kafka: embedded.EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with running(tmp_path_factory.mktemp("gateways"), unique_settings(kafka, partitions=4)) as made:
        yield made


async def entries(site: Site, conference: str) -> list[JournalEntry]:
    return [entry for entry in decisions(await journal(site.settings)) if entry.conference == conference]


async def waiting(site: Site, conference: str, count: int) -> list[JournalEntry]:
    """The entries by which so many callers began to wait."""

    async def there() -> list[JournalEntry] | None:
        found = [entry for entry in await entries(site, conference) if entry.outcome == "parked"]
        return found if len(found) >= count else None

    found = await until(there, what=f"{count} callers wait for {conference}")
    assert found is not None
    return found


async def instructed(site: Site, conference: str) -> list[Instruction]:
    unique = {i.instruction_id: i for i in await instructions(site.settings) if i.conference == conference}
    return list(unique.values())


def legs(node: sipp.Node, conference: str) -> list[str]:
    return [event.caller for event in node.events("called") if event.conference == conference]


def talking(node: sipp.Node, conference: str) -> int:
    return sum(event.conference == conference for event in node.talking())


async def test_callers_at_either_gateway_are_put_through_by_the_agent_that_holds_them(site: Site) -> None:
    conference = conference_number()
    control, node = site.nodes[0]
    before = {name: await gateway.redirects() for name, gateway in site.gateways.items()}
    async with site.callers("gw-1", conference, 3) as one, site.callers("gw-2", conference, 2) as two:
        await waiting(site, conference, 5)
        control.open(conference)
        await until(lambda: talking(node, conference) == 5, what="all five talk")
        assert (len(one.talking()), len(two.talking())) == (3, 2)
        said = await instructed(site, conference)
        assert Counter(i.gateway_id for i in said) == {"gw-1": 3, "gw-2": 2}
        assert all(i.call_id.startswith(f"{i.gateway_id}/") for i in said)
        for name, count in (("gw-1", 3), ("gw-2", 2)):
            gateway = site.gateways[name]
            owner = await gateway.owner()
            after = await gateway.redirects()
            made = {port: after[port] - before[name][port] for port in after}
            assert made == {agent.port: count if agent is owner else 0 for agent in gateway.agents}
    assert len(legs(node, conference)) == 5
    owned = [await stream.metric("callyard_stream_partitions") for stream in site.streams]
    assert owned == [2, 2], "both stream workers decide"


async def test_a_gateway_comes_and_goes_while_all_others_run_on(site: Site) -> None:
    others = [*site.streams, *(agent for gateway in site.gateways.values() for agent in gateway.agents)]
    rebalances = [await stream.metric("callyard_stream_rebalances_total") for stream in site.streams]
    conference, later = conference_number(), conference_number()
    control, node = site.nodes[1]
    control.open(conference)
    await site.add_gateway("gw-3")
    async with site.callers("gw-3", conference), site.callers("gw-1", conference):
        await until(lambda: talking(node, conference) == 2, what="the new gateway's caller and the old one's")
    await site.remove_gateway("gw-3")
    control.open(later)
    async with site.callers("gw-1", later), site.callers("gw-2", later):
        await until(lambda: talking(node, later) == 2, what="callers at the gateways that stayed")
    assert all(one.child.running for one in others)
    assert [await stream.metric("callyard_stream_rebalances_total") for stream in site.streams] == rebalances


async def test_a_dead_agent_is_replaced_within_seconds_and_nobody_is_dialled_twice(site: Site) -> None:
    waits, talks = conference_number(), conference_number()
    (control, node), gateway = site.nodes[0], site.gateways["gw-1"]
    control.open(talks)
    async with site.callers("gw-1", talks) as there, site.callers("gw-1", waits, 3) as callers:
        await until(lambda: talking(node, talks) == 1, what="one talks")
        await waiting(site, waits, 3)
        owner = await gateway.owner()
        killed = time.time()
        await owner.child.kill()
        control.open(waits)
        await until(lambda: talking(node, waits) == 3, 30, what="the other agent redirects")
        took = max(event.at for event in node.events("answered") if event.conference == waits) - killed
        assert (len(callers.talking()), len(there.talking())) == (3, 1), "who talks is left alone"
        assert len(legs(node, waits)) == 3
        assert len(legs(node, talks)) == 1
        assert took < 15, took
    print(f"agent killed: callers in the conference after {took:.1f} s")  # noqa: T201 - a figure to read
    owner.child.start()
    await owner.child.ready(60)
    assert await gateway.owner() is not owner, "who comes back stands by"


async def test_an_agent_that_ends_in_order_is_replaced_at_once(site: Site) -> None:
    conference = conference_number()
    (control, node), gateway = site.nodes[0], site.gateways["gw-1"]
    async with site.callers("gw-1", conference):
        await waiting(site, conference, 1)
        owner = await gateway.owner()
        told = time.time()
        assert await owner.child.stop(grace=12) == 0
        control.open(conference)
        await until(lambda: talking(node, conference) == 1, what="the other agent redirects")
        took = node.events("answered")[-1].at - told
        assert len(legs(node, conference)) == 1
        assert took < 6, f"{took}: less than the group's session"
    print(f"agent stopped: caller in the conference after {took:.1f} s")  # noqa: T201 - a figure to read
    owner.child.start()
    await owner.child.ready(60)


async def test_the_callers_of_a_dead_gateway_are_written_off_and_call_again_at_another(site: Site) -> None:
    conference = conference_number()
    (control, node), gateway = site.nodes[1], site.gateways["gw-2"]
    async with site.callers("gw-2", conference) as lost:
        await waiting(site, conference, 1)
        await gateway.asterisk.kill()
        for agent in gateway.agents:
            await agent.child.kill()
        await lost.kill()
        began = time.monotonic()
        await until(lambda: written_off(site, conference), LEASE_SECONDS + 10, "the call is written off by its lease")
        print(f"gateway killed: call written off after {time.monotonic() - began:.1f} s")  # noqa: T201 - as above
    async with site.callers("gw-1", conference):
        await waiting(site, conference, 2)
        control.open(conference)
        await until(lambda: talking(node, conference) == 1, what="the caller talks by way of the other gateway")
    assert {i.gateway_id for i in await instructed(site, conference)} == {"gw-1"}


async def test_the_logs_are_one_json_object_a_line_and_tell_no_secret_and_no_number(site: Site) -> None:
    secrets = {gateway.asterisk.ami.secret.get_secret_value() for gateway in site.gateways.values()}
    secrets |= {control.password for control, _ in site.nodes}
    logs = {path.stem: path.read_text(encoding="utf-8") for path in site.directory.glob("*.log")}
    assert len(logs) == 2 + 2 + 6, sorted(logs)
    about_calls = 0
    for name, text in logs.items():
        assert not [secret for secret in secrets if secret in text], name
        assert "+49301" not in text, f"{name}: a caller's number"
        for line in text.splitlines():
            fields = orjson.loads(line)
            assert {"event", "level", "timestamp", "worker"} <= fields.keys(), line
            if fields["event"] in {"call seen", "redirect accepted", "instruction not carried out"}:
                assert {"conference", "call_id", "stay", "attempt", "gateway_id"} <= fields.keys(), line
                about_calls += 1
            if fields["event"] == "conference registered":
                assert {"conference", "instance_id"} <= fields.keys(), line
    assert about_calls > 20


async def written_off(site: Site, conference: str) -> bool:
    return any("calls lapsed: 1" in entry.why for entry in await entries(site, conference))
