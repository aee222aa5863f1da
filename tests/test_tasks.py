"""A worker's tasks and its children: owned, ended in the reverse order, and never half-alive."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import textwrap
from pathlib import Path

import orjson
import pytest

from callyard.processes import Child, ProcessError, free_port, worker
from callyard.tasks import TaskEndedError, Tasks, within
from tests.support.ports import free_ports
from tests.support.wait import until


class Recorder:
    """Tasks that write down when they end."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def for_ever(self, name: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended.append(name)

    async def slow_to_end(self, name: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            self.ended.append(name)

    async def failing(self) -> None:
        raise ValueError("the socket is gone")

    async def ending(self) -> None:
        pass


async def test_at_stop_tasks_end_in_the_reverse_order_each_before_the_next() -> None:
    recorder, tasks, stop = Recorder(), Tasks(), asyncio.Event()
    tasks.start("first", recorder.for_ever("first"))
    tasks.start("second", recorder.slow_to_end("second"))
    tasks.start("third", recorder.for_ever("third"))
    asyncio.get_running_loop().call_soon(stop.set)
    await tasks.run(stop)
    assert recorder.ended == ["third", "second", "first"]


async def test_a_task_that_fails_ends_all_and_its_error_is_raised() -> None:
    recorder, tasks = Recorder(), Tasks()
    tasks.start("reader", recorder.for_ever("reader"))
    tasks.start("writer", recorder.failing())
    with pytest.raises(ValueError, match="the socket is gone"):
        await tasks.run(asyncio.Event())
    assert recorder.ended == ["reader"]


async def test_a_task_that_ends_by_itself_ends_all() -> None:
    recorder, tasks = Recorder(), Tasks()
    tasks.start("reader", recorder.for_ever("reader"))
    tasks.start("renewals", recorder.ending())
    with pytest.raises(TaskEndedError, match="'renewals'"):
        await tasks.run(asyncio.Event())
    assert recorder.ended == ["reader"]


async def test_a_task_that_was_cancelled_by_a_stranger_ends_all() -> None:
    recorder, tasks = Recorder(), Tasks()
    tasks.start("reader", recorder.for_ever("reader"))
    [stranger] = [task for task in asyncio.all_tasks() if task.get_name() == "reader"]
    asyncio.get_running_loop().call_soon(stranger.cancel)
    with pytest.raises(TaskEndedError, match="'reader'"):
        await tasks.run(asyncio.Event())


WORKER = """
    import asyncio, sys
    from callyard import tasks

    async def main(stop):
        print("ready", flush=True)
        await stop.wait()
        print("stopped in order", flush=True)

    tasks.run(main)
"""


def python(tmp_path: Path, program: str, name: str = "child") -> Child:
    """A child that runs this Python program and logs into a file."""
    return Child(name, [sys.executable, "-c", textwrap.dedent(program)], log=tmp_path / f"{name}.log")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_ends_in_order_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    child = python(tmp_path, WORKER)
    child.start()
    try:
        await child.line(lambda line: line == "ready", 20)
        child.send_signal(number)
        assert await asyncio.wait_for(child.wait(), 20) == 0
        assert child.lines() == ["ready", "stopped in order"]
    finally:
        await child.kill()


async def test_a_child_that_ends_early_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    child = python(tmp_path, "import sys; print('no licence'); sys.exit(3)")
    child.start()
    with pytest.raises(ProcessError, match=r"(?s)child ended with status 3 before it was ready.*no licence"):
        await child.ready(20)


async def test_a_child_that_does_not_become_ready_in_time_is_an_error(tmp_path: Path) -> None:
    child = python(tmp_path, "import time; print('still thinking', flush=True); time.sleep(600)")
    child.start()
    try:
        with pytest.raises(ProcessError, match=r"was not ready within 0\.2 s"):
            await child.ready(0.2)
    finally:
        assert await child.stop() == -signal.SIGTERM


async def test_ready_reads_the_workers_event_and_nothing_that_looks_like_it(tmp_path: Path) -> None:
    child = python(
        tmp_path,
        """
        import time
        print('ready')
        print('{"event": "ready"')
        print('["ready"]')
        print('{"event": "not ready"}')
        print('{"event": "ready", "worker": "hook", "conferences": 2}', flush=True)
        time.sleep(600)
        """,
    )
    child.start()
    try:
        assert await child.ready(20) == {"event": "ready", "worker": "hook", "conferences": 2}
    finally:
        await child.kill()


async def test_a_child_started_again_waits_for_its_new_lines_only(tmp_path: Path) -> None:
    child = python(tmp_path, """import os; print('{"event": "ready", "pid": %d}' % os.getpid())""")
    for _ in range(2):
        child.start()
        assert (await child.ready(20))["pid"] == child.pid
        await child.wait()
    assert len((tmp_path / "child.log").read_text().splitlines()) == 2


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    child = python(
        tmp_path, "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    child.start()
    await child.line(lambda line: line == "deaf", 20)
    assert await child.stop(grace=0.2) == -signal.SIGKILL
    assert child.ended() == "was ended by SIGKILL"


async def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="there is no program 'no-such-program'"):
        Child("asterisk", ["no-such-program"], log=tmp_path / "log").start()


async def test_noise_is_left_out_of_the_last_words(tmp_path: Path) -> None:
    program = "print('the cause'); print('\\n'.join(['\\tat java.lang'] * 100)); print('x' * 5000)"
    child = Child("kafka", [sys.executable, "-c", program], log=tmp_path / "log", noise=r"^\s+at ")
    child.start()
    await child.wait()
    tail = child.tail()
    assert "the cause" in tail
    assert "java.lang" not in tail
    assert len(tail) < 1000


@pytest.mark.skipif(not Path("/usr/bin/setpriv").exists(), reason="without setpriv a killed parent leaves its children")
async def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = python(
        tmp_path,
        f"""
        import sys, time
        from pathlib import Path
        from callyard.processes import Child
        program = [sys.executable, "-c", "import time; time.sleep(600)"]
        child = Child("grandchild", program, log=Path({str(tmp_path / "grandchild.log")!r}))
        child.start()
        print(child.pid, flush=True)
        time.sleep(600)
        """,
    )
    parent.start()
    grandchild = int(await parent.line(str.isdigit, 20))
    await parent.kill()
    await until(lambda: not _alive(grandchild), 20, "the grandchild has ended")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_worker_with_a_log_file_logs_json_whatever_the_settings_say(tmp_path: Path) -> None:
    made = worker("stream", environment={"CALLYARD_LOG_FORMAT": "text"}, log=tmp_path / "log")
    assert made.command[-3:] == ["-m", "callyard.main", "stream"]
    made.command[-3:] = ["-c", "import os; print(os.environ['CALLYARD_LOG_FORMAT'])"]
    made.start()
    asyncio.run(made.wait())
    assert made.lines() == ["json"]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_free_ports_differ_and_can_be_bound(kind: socket.SocketKind) -> None:
    ports = free_ports(5, kind)
    assert len(set(ports)) == 5
    for port in (*ports, free_port(kind=kind)):
        with socket.socket(socket.AF_INET, kind) as made:
            made.bind(("127.0.0.1", port))


async def test_within_returns_raises_and_times_out() -> None:
    async def fails() -> None:
        raise KeyError("its own")

    assert await within(asyncio.sleep(0, "done"), 5) == "done"
    with pytest.raises(KeyError, match="its own"):
        await within(fails(), 5)
    never = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.TimeoutError):
        await within(never, 0.01)
    assert never.cancelled()


async def test_within_loses_no_cancellation_that_comes_as_the_work_ends() -> None:
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(within(work, 5))
    await asyncio.sleep(0)
    work.set_result(None)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()


FAILING = """
    import threading, warnings
    from callyard import log
    from callyard.settings import LogSettings

    log.configure(LogSettings(format="json"), "hook")
    warnings.warn("an old way")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    raise ValueError("two\\nlines")
"""


async def test_whatever_goes_wrong_is_one_line_of_json(tmp_path: Path) -> None:
    child = python(tmp_path, FAILING)
    child.start()
    assert await asyncio.wait_for(child.wait(), 20) == 1
    told = [orjson.loads(line) for line in child.lines()]
    assert [fields["level"] for fields in told] == ["warning", "critical", "critical"]
    assert "an old way" in told[0]["event"]
    assert "ZeroDivisionError" in told[1]["exception"]
    assert told[2]["error"] == "ValueError('two\\nlines')"
    assert {fields["worker"] for fields in told[2:]} == {"hook"}
