"""Leases are renewed in time, and not all at once."""

from __future__ import annotations

from callyard.renewals import Renewals


def test_each_key_is_renewed_in_every_period_and_they_are_spread() -> None:
    renewals, keys = Renewals(10), [str(number) for number in range(1000)]
    last = dict.fromkeys(keys, 0.0)
    sizes = []
    ticks = Renewals.TICKS * 4
    for tick in range(ticks):
        now = tick * renewals.tick_seconds
        due = renewals.due(keys, now)
        sizes.append(len(due))
        for key in due:
            assert now - last[key] <= 10
            last[key] = now
    assert all(ticks * renewals.tick_seconds - when <= 10 + renewals.tick_seconds for when in last.values())
    assert max(sizes) < 150


def test_a_key_that_is_gone_is_renewed_no_more_and_a_new_one_soon() -> None:
    renewals = Renewals(10)
    renewals.due(["old"], 0)
    assert renewals.due(["new"], 9.5) == []
    assert renewals.due(["new"], 18.6) == ["new"]
