"""Shares of a period: every partition in one, about as large as each other, and all that they found put together."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callyard.settings import KafkaSettings
from callyard.topics import topics
from streams.audit.findings import KEPT, Findings
from streams.audit.reading import Span
from streams.audit.replay import Replayed
from streams.audit.rerun import Comparison, Difference
from streams.audit.shares import divided, together
from tests.support import kafka
from tests.support.wait import until


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


CHILD = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from streams.audit import shares

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    given = context.Array("q", 1), context.Event()
    with ProcessPoolExecutor(1, mp_context=context, initializer=shares._begin, initargs=given) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


async def test_no_process_outlives_a_replay_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(CHILD)
    parent = await asyncio.create_subprocess_exec(sys.executable, str(script), stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    child = int(await asyncio.wait_for(parent.stdout.readline(), 60))
    assert running(child)
    parent.kill()
    await parent.wait()
    await until(lambda: not running(child), 10, what="the end of the killed one's process")


def running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.kafka
@pytest.mark.parametrize("killed", [False, True])
async def test_a_replay_that_is_interrupted_or_killed_in_part_ends_with_all_its_processes(
    kafka_settings: KafkaSettings, killed: bool
) -> None:
    name = topics(kafka_settings).journal.name
    await kafka.send(kafka_settings, name, *((str(60_000 + n), f"rubbish {n}".encode()) for n in range(30)))
    replaying = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "callyard.main", "replay", "--processes", "3", start_new_session=True,
        env={**os.environ, **kafka.environment(kafka_settings)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip

    def children() -> list[int]:
        """They are held where they stand, or the first could have ended before the last began."""
        listed = (Path("/proc") / str(replaying.pid) / "task" / str(replaying.pid) / "children").read_text().split()
        found = [int(one) for one in listed if b"spawn_main" in (Path("/proc") / one / "cmdline").read_bytes()]
        for one in found:
            os.kill(one, signal.SIGSTOP)
        return found

    await until(lambda: len(children()) == 3, 60, what="the processes of a replay", every=0.01)
    mine = children()
    if killed:
        os.kill(mine[1], signal.SIGKILL)
    else:
        os.killpg(replaying.pid, signal.SIGINT)
    for one in mine:
        os.kill(one, signal.SIGCONT)
    _, err = await asyncio.wait_for(replaying.communicate(), 60)
    assert replaying.returncode == (1 if killed else 130), err.decode()
    assert (b"Traceback" in err, b"KeyboardInterrupt" in err) == (False, False), err.decode()
    assert (b"one of the processes was killed" in err) == killed
    await until(lambda: not any(map(running, mine)), 10, what="the end of its processes")
