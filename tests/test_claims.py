"""Whose rows of a changelog count; pure. The real broker's part is in ``test_changelog.py``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.changelog import Content
from streams.claims import Claim, Claims, claim_of

OLD, NEW = Claim(3, "a"), Claim(4, "b")


def test_a_claim_reads_as_it_was_written() -> None:
    assert claim_of([("other", b"x"), OLD.header]) == OLD
    assert claim_of([("other", b"x")]) is None


@pytest.mark.parametrize(
    "value", [None, b"", b"3", b"3 ", b" a", b"x a", b"-3 a", "\u0663 a".encode(), b"9" * 19 + b" a"]
)
def test_what_is_no_claim_is_named(value: bytes | None) -> None:
    with pytest.raises(ValueError, match="a row's claim is no epoch and owner"):
        claim_of([("claim", value)])


def test_rows_of_an_older_claim_are_void_once_there_is_a_newer_one() -> None:
    claims = Claims()
    assert [claims.admit(claim) for claim in (OLD, OLD, NEW, OLD, NEW)] == [True, True, True, False, True]


def test_of_two_owners_of_one_epoch_the_first_one_stays() -> None:
    claims = Claims()
    assert claims.admit(NEW)
    assert not claims.admit(Claim(NEW.epoch, "c"))
    assert claims.held == NEW


def test_rows_of_releases_before_claims_count() -> None:
    claims = Claims()
    assert all(claims.admit(claim) for claim in (None, OLD, None))
    assert claims.held == OLD


def row(key: bytes | None, value: bytes | None, claim: Claim | None) -> Any:
    headers = () if claim is None else (claim.header,)
    return SimpleNamespace(topic="t", partition=0, offset=0, key=key, value=value, headers=headers)


def test_a_void_row_hides_none_and_is_remembered_until_it_is_written_over() -> None:
    content = Content()
    for one in (row(b"k", b"1", OLD), row(b"gone", b"1", OLD), row(b"!", None, NEW), row(b"gone", None, NEW),
                row(b"k", b"late", OLD), row(b"gone", b"late", OLD)):  # fmt: skip
        content.take(one)
    assert content.rows == {b"k": b"1"}
    assert content.hidden == {b"k", b"gone"}
    content.take(row(b"k", b"1", NEW))
    content.take(row(b"gone", None, NEW))
    assert (content.rows, content.hidden) == ({b"k": b"1"}, set())


def test_a_record_without_a_key_is_named() -> None:
    with pytest.raises(ValueError, match="t-0@0 has no key: no stream wrote it"):
        Content().take(row(None, b"1", OLD))


KEYS = st.sampled_from([b"a", b"b", b"c"])
WRITES = st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(min_size=1, max_size=2))), max_size=5)


@given(st.lists(WRITES, min_size=2, max_size=4), st.lists(st.tuples(st.integers(0, 3), WRITES), max_size=4), st.data())
def test_whatever_older_owners_write_late_the_table_is_that_of_their_successors(
    owners: list[Any], late: list[Any], data: st.DataObject
) -> None:
    log, table, begun = [], {}, []
    for number, writes in enumerate(owners):
        claim = Claim(number + 1, f"w{number}")
        log.append(row(b"!", None, claim))
        begun.append(len(log))
        for key, value in writes:
            log.append(row(key, value, claim))
            table[key] = value
    for number, writes in late:
        # After the claim of the next one.
        if number + 1 < len(begun):
            at = data.draw(st.integers(begun[number + 1], len(log)))
            log[at:at] = [row(key, value, Claim(number + 1, f"w{number}")) for key, value in writes]
            begun = [begin + len(writes) if begin > at else begin for begin in begun]
    content = Content()
    for one in log:
        content.take(one)
    assert content.rows == {key: value for key, value in table.items() if value is not None}
    latest = {one.key: one for one in log}
    assert content.hidden == {
        key for key, one in latest.items() if key != b"!" and not counts(log, one)
    }  # what compaction would keep of these keys


def counts(log: list[Any], wanted: Any) -> bool:
    claims = Claims()
    for one in log:
        admitted = claims.admit(claim_of(one.headers))
        if one is wanted:
            return admitted
    raise AssertionError
