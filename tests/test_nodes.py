"""Which nodes callers may be sent to."""

from __future__ import annotations

import pytest

from callyard.nodes import AllowedNodes

LISTED = "192.0.2.7, 10.0.0.0/8,2001:db8::/32,bbb1.example.org,abc"


@pytest.mark.parametrize(
    "host", ["192.0.2.7", "10.255.0.1", "[2001:db8::1]", "BBB1.example.org", "bbb1.example.org.", "abc"]
)
def test_what_is_listed_is_allowed(host: str) -> None:
    assert AllowedNodes(LISTED).allows(host)


@pytest.mark.parametrize(
    "host",
    ["192.0.2.8", "11.0.0.1", "[2001:db9::1]", "bbb2.example.org", "example.org", "x.bbb1.example.org", "10.1",
     "167772161", "0x0a000001", "[::ffff:10.0.0.1]", "any", ""],
)  # fmt: skip
def test_what_is_not_listed_is_not(host: str) -> None:
    assert not AllowedNodes(LISTED).allows(host)


def test_any_and_none() -> None:
    assert AllowedNodes("any").allows("example.org")
    assert AllowedNodes("any").allows("192.0.2.1")
    assert not AllowedNodes("").allows("192.0.2.1")


@pytest.mark.parametrize(
    "entry", ["10.0.0.0/33", "10.0.0.1/8", "300.1.1.1", "10.1", "a b", "-x", "0x7f000001", "sip:x"]
)
def test_what_is_neither_name_nor_network_is_refused_by_name(entry: str) -> None:
    with pytest.raises(ValueError, match="neither a name nor"):
        AllowedNodes(f"192.0.2.1,{entry}")
