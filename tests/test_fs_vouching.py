"""Vouching: what the hook keeps in FreeSWITCH for meetings without a conference, over its own client."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from callyard.parts.freeswitch import FreeSwitch
from callyard.settings import EslSettings
from fs_hooks import esl
from fs_hooks.client import connect
from fs_hooks.vouching import Entry, Vouching, VouchingError, apply, take_over

NOW = 1_795_422_400
SECONDS = 60


def settings(freeswitch: FreeSwitch) -> EslSettings:
    return EslSettings(port=freeswitch.port, password=SecretStr("ClueCon"))


def ignore(_frame: esl.Frame) -> None:
    pass


def entries(freeswitch: FreeSwitch) -> dict[str, str]:
    return {k.removeprefix("callyard_vouched_"): v for k, v in freeswitch.api.variables.items() if "vouched" in k}


async def test_numbers_are_vouched_for_renewed_and_withdrawn() -> None:
    vouching = Vouching(SECONDS)
    async with FreeSwitch() as freeswitch, connect(settings(freeswitch), ignore) as link:
        await apply(link, vouching, {"49123", "49124"}, NOW)
        assert entries(freeswitch) == {"49123": str(NOW + 60), "49124": str(NOW + 60)}
        asked = len(freeswitch.obeyed)
        await apply(link, vouching, {"49123", "49124"}, NOW + 19)
        assert len(freeswitch.obeyed) == asked  # more than two thirds are left
        await apply(link, vouching, {"49123"}, NOW + 20)
        assert entries(freeswitch) == {"49123": str(NOW + 80)}
        await apply(link, vouching, set(), NOW + 21)
        assert (entries(freeswitch), vouching.held) == ({}, {})


async def test_a_new_connection_takes_over_what_is_there() -> None:
    async with FreeSwitch() as freeswitch:
        freeswitch.api.variables |= {
            "callyard_vouched_49123": str(NOW + 50), "callyard_vouched_49124": str(NOW + 50),
            "callyard_vouched_49125": str(NOW + 99_999), "callyard_vouched_x": "1", "domain": "192.0.2.7",
        }  # fmt: skip
        vouching = Vouching(SECONDS)
        async with connect(settings(freeswitch), ignore) as link:
            await take_over(link, vouching)
            await apply(link, vouching, {"49123", "49125"}, NOW)
        assert entries(freeswitch) == {"49123": str(NOW + 50), "49125": str(NOW + 60), "x": "1"}
        assert freeswitch.api.variables["domain"] == "192.0.2.7"


async def test_a_restarted_freeswitch_is_told_anew() -> None:
    vouching = Vouching(SECONDS)
    async with FreeSwitch() as freeswitch:
        async with connect(settings(freeswitch), ignore) as link:
            await apply(link, vouching, {"49123"}, NOW)
        freeswitch.kill()
        await freeswitch.listen()
        async with connect(settings(freeswitch), ignore) as link:
            await take_over(link, vouching)
            await apply(link, vouching, {"49123"}, NOW + 1)
        assert entries(freeswitch) == {"49123": str(NOW + 61)}


async def test_a_freeswitch_that_does_not_confirm_is_an_error_and_nothing_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vouching = Vouching(SECONDS)
    async with FreeSwitch() as freeswitch, connect(settings(freeswitch), ignore) as link:
        monkeypatch.setattr(freeswitch.api, "execute", lambda *_: None)
        with pytest.raises(VouchingError, match="global_setvar Command not found"):
            await apply(link, vouching, {"49123"}, NOW)
    assert vouching.held == {}


HOSTILE = [
    "", "4912", "491234567890", "49123\n\napi shutdown", "49123\r", "49123\0", "49123=1", "49123 ", "49123 =x", "٤٩١٢٣",
    "domain", "../x", "${system(id)}", "49123\n",
]  # fmt: skip


@pytest.mark.parametrize("number", HOSTILE)
async def test_a_hostile_number_reaches_no_command(number: str) -> None:
    async with FreeSwitch() as freeswitch, connect(settings(freeswitch), ignore) as link:
        with pytest.raises(ValueError, match="not a conference number"):
            await apply(link, Vouching(SECONDS), {number, "49999"}, NOW)
        assert freeswitch.obeyed == []


@given(st.text(max_size=14) | st.text("0123456789\n٤", min_size=4, max_size=12))
def test_a_command_is_one_assignment_to_a_variable_of_ours_or_none(number: str) -> None:
    try:
        entry = Entry(number, NOW)
    except ValueError:
        return
    assert esl.command("api", *entry.words) == f"api global_setvar callyard_vouched_{number}={NOW}\n\n".encode()
    assert re.fullmatch("[0-9]{5,11}", number)


_numbers = st.sets(st.integers(10_000, 10_005).map(str))


@given(st.lists(st.tuples(_numbers, st.integers(0, 100), st.integers(0, 12), st.booleans()), max_size=12))
def test_whatever_breaks_off_what_is_wanted_is_vouched_for_in_the_end(
    steps: list[tuple[set[str], int, int, bool]],
) -> None:
    """Each step: what is wanted, how many seconds later, how many commands get through, whether FreeSWITCH restarts."""
    vouching, held, now = Vouching(SECONDS), dict[str, int](), NOW
    for wanted, later, through, restarts in steps:
        now += later
        if restarts:
            held.clear()
            vouching.found("")
        for done, entry in enumerate(vouching.due(wanted, now)):
            if done == through:
                break
            if entry.until is None:
                held.pop(entry.number, None)
            else:
                held[entry.number] = entry.until
            vouching.confirmed(entry)
        else:
            # What is wanted holds until a third of the time has passed, and nothing else is left.
            assert set(held) == wanted
            assert all(now + SECONDS * 2 // 3 < until <= now + SECONDS for until in held.values())
        assert vouching.held == held


async def test_the_link_is_only_asked_what_is_needed() -> None:
    vouching = Vouching(SECONDS)
    async with FreeSwitch() as freeswitch, connect(settings(freeswitch), ignore) as link:
        await apply(link, vouching, {str(10_000 + n) for n in range(200)}, NOW)
        assert len(freeswitch.obeyed) == 200
        await apply(link, vouching, {str(10_000 + n) for n in range(201)}, NOW + 1)
        assert len(freeswitch.obeyed) == 201
