"""The hook vouches for meetings at FreeSWITCH before it registers them: a real Redis, the double of FreeSWITCH."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr

from callyard.notify import Notifier
from callyard.parts.freeswitch import FreeSwitch
from callyard.records import RegistrationRecord, Sent
from callyard.settings import BigBlueButtonSettings, EslSettings, NodeSettings
from fs_hooks.aside import Aside
from fs_hooks.bigbluebutton import BigBlueButton as BigBlueButtonSource
from fs_hooks.publisher import Publisher
from fs_hooks.registrar import Registrar
from fs_hooks.voucher import FAILURES, Voucher
from fs_hooks.worker import Hook, vouches
from tests.support import bigbluebutton
from tests.support.bigbluebutton import BigBlueButton
from tests.support.hook import words
from tests.support.wait import until

PREFIX = "callyard_vouched_"


@pytest_asyncio.fixture
async def bbb(tmp_path: Path) -> AsyncIterator[BigBlueButton]:
    async with bigbluebutton.running(tmp_path / "redis") as made:
        yield made


@pytest_asyncio.fixture
async def freeswitch() -> AsyncIterator[FreeSwitch]:
    async with FreeSwitch() as double:
        yield double


def entries(freeswitch: FreeSwitch) -> dict[str, int]:
    found = freeswitch.api.variables.items()
    return {name.removeprefix(PREFIX): int(value) for name, value in found if name.startswith(PREFIX)}


class Outlet:
    """Takes records at once, and notes which numbers FreeSWITCH vouched for at that moment."""

    def __init__(self, freeswitch: FreeSwitch) -> None:
        self._freeswitch = freeswitch
        self.said: list[tuple[str, set[str]]] = []

    async def begin(self, record: Sent, conference: str) -> asyncio.Future[object]:
        assert isinstance(record, RegistrationRecord)
        assert record.conference == conference
        self.said.append((words(record).rsplit(" ", 1)[0][:7], set(entries(self._freeswitch))))
        delivery: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        delivery.set_result(None)
        return delivery


@asynccontextmanager
async def following(bbb: BigBlueButton, freeswitch: FreeSwitch, seconds: int = 60) -> AsyncIterator[Outlet]:
    node = NodeSettings(
        id="node-1", sip_uri="sip:{conference}@192.0.2.7", sources="freeswitch,bigbluebutton", renew_seconds=3600,
        vouch_seconds=seconds,
    )  # fmt: skip
    source = BigBlueButtonSettings.model_validate({
        "api_url": f"http://127.0.0.1:{bbb.port}/bigbluebutton/api", "secret": SecretStr(bigbluebutton.SECRET),
        "redis_port": bbb.redis.port, "reconnect_max_seconds": 0.2, "timeout_seconds": 2,
    })  # fmt: skip
    esl = EslSettings(port=freeswitch.port, password=SecretStr("ClueCon"), reconnect_max_seconds=0.2)
    outlet, aside, notifier = Outlet(freeswitch), Aside(None), Notifier({})
    publisher = Publisher(outlet, node)
    voucher = Voucher(publisher, node.vouch_seconds)
    registrar = Registrar(node, publisher, notifier, voucher)
    hook = Hook(esl, node, registrar, aside, notifier, voucher)
    meetings = BigBlueButtonSource(source, node, registrar, aside)
    works = (publisher.run(), voucher.run(), registrar.renew(), hook.follow(), meetings.follow())
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await until(lambda: registrar.published or any(task.done() for task in tasks))
        yield outlet
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in done), done


async def test_a_meeting_is_vouched_for_before_it_is_registered(bbb: BigBlueButton, freeswitch: FreeSwitch) -> None:
    await bbb.create("41111")
    async with following(bbb, freeswitch) as outlet:
        assert outlet.said == [("+ 41111", {"41111"})], "what ran before the hook, too"
        before = time.time()
        meeting = await bbb.create("49123")
        await until(lambda: len(outlet.said) == 2)
        assert outlet.said[1] == ("+ 49123", {"41111", "49123"})
        assert before + 59 <= entries(freeswitch)["49123"] <= time.time() + 61
        # Somebody joins by audio: still one registration, the meeting's.
        freeswitch.open("49123")
        await bbb.end(meeting)
        await until(lambda: set(entries(freeswitch)) == {"41111"}, what=lambda: entries(freeswitch))
        await until(lambda: len(outlet.said) == 3)
        assert outlet.said[2][0] == "- 49123"


async def test_a_registration_waits_for_freeswitch_and_keeps_its_order(
    bbb: BigBlueButton, freeswitch: FreeSwitch
) -> None:
    async with following(bbb, freeswitch) as outlet:
        freeswitch.answering.clear()
        meeting = await bbb.create("49123")
        await bbb.end(meeting)
        await bbb.create("49124")
        await asyncio.sleep(0.3)  # nothing tells that nothing happens
        assert outlet.said == []
        freeswitch.answering.set()
        await until(lambda: [said for said, _ in outlet.said if "49124" in said], what=lambda: outlet.said)
        assert ("+ 49124", {"49124"}) in [(said, vouched & {"49124"}) for said, vouched in outlet.said]
        assert [said for said, _ in outlet.said if "49123" in said] in ([], ["+ 49123", "- 49123"])


async def test_entries_are_renewed_and_set_again_in_a_freeswitch_that_restarted(
    bbb: BigBlueButton, freeswitch: FreeSwitch
) -> None:
    await bbb.create("49123")
    async with following(bbb, freeswitch, seconds=15):
        first = entries(freeswitch)["49123"]
        await until(lambda: entries(freeswitch)["49123"] > first, 12, what="a renewal after a third of the time")
        freeswitch.api.variables.clear()
        freeswitch.kill()
        await freeswitch.listen()
        await until(lambda: "49123" in entries(freeswitch), 10)


async def test_where_freeswitch_keeps_no_entries_meetings_are_registered_all_the_same(
    bbb: BigBlueButton, freeswitch: FreeSwitch
) -> None:
    freeswitch.denied.add("global_setvar")
    failures = FAILURES._value.get()
    async with following(bbb, freeswitch) as outlet:
        await bbb.create("49123")
        await until(lambda: len(outlet.said) == 1)
        assert outlet.said == [("+ 49123", set())]
        assert FAILURES._value.get() > failures


async def test_where_freeswitch_may_not_be_asked_conferences_are_followed_all_the_same(
    bbb: BigBlueButton, freeswitch: FreeSwitch
) -> None:
    freeswitch.denied.add("global_getvar")
    async with following(bbb, freeswitch) as outlet:
        freeswitch.open("41111")
        await bbb.create("49123")
        await until(lambda: len(outlet.said) == 2)
        assert {said for said, _ in outlet.said} == {"+ 41111", "+ 49123"}


@pytest.mark.parametrize(
    ("sources", "uri", "expected"),
    [("freeswitch,bigbluebutton", "", True), ("freeswitch", "", False), ("bigbluebutton", "", False),
     ("freeswitch,bigbluebutton", "sip:{conference}@192.0.2.7:5070", False)],
)  # fmt: skip
def test_who_vouches(sources: str, uri: str, expected: bool) -> None:
    node = NodeSettings(id="n", sip_uri="sip:{conference}@192.0.2.7", sources=sources, meeting_sip_uri=uri)
    assert vouches(node) is expected
