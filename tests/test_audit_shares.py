"""Shares of a replay: every partition in one, about as large as each other, and all that they found put together."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from streams.audit.findings import KEPT, Findings
from streams.audit.reading import Span
from streams.audit.replay import Replayed
from streams.audit.rerun import Comparison, Difference
from streams.audit.shares import divided, together


@given(st.dictionaries(st.integers(0, 30), st.integers(0, 1000), min_size=1), st.integers(1, 40))
def test_each_partition_is_in_one_share(sizes: dict[int, int], processes: int) -> None:
    shares = divided(sizes, processes)
    assert Counter(number for share in shares for number in share) == Counter(sizes.keys())
    assert len(shares) <= processes
    totals = [sum(sizes[number] for number in share) for share in shares]
    assert max(totals) - min(totals) <= max(sizes.values()), "no share could give its largest partition away"


def part(number: int) -> Replayed:
    comparison = Comparison(
        compared=10, differing=number, worded=1, left_out=Counter({"why": 2}),
        differences=[Difference(f"j-{number}@{n}", "49123", 1, "t", "a", "b", ()) for n in range(number)],
    )  # fmt: skip
    findings = Findings()
    for n in range(number):
        findings.add("chain", f"j-{number}@{n}", "broken")
    return Replayed(Span(1, 2), comparison, findings, 5.0)


def test_what_shares_found_is_put_together() -> None:
    whole = together([part(15), part(3), part(15)], 7.5)
    result = whole.result
    assert (result.compared, result.differing, result.worded, result.left_out) == (30, 33, 3, {"why": 6})
    assert (len(result.differences), whole.findings.counts["chain"], len(whole.findings.kept)) == (KEPT, 33, KEPT)
    assert whole.seconds == 7.5
