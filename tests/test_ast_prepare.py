"""Where the real parts come from, what is said where they cannot be had, and how a program is confined."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from callyard.parts import confine, prepare
from callyard.parts.ports import free_sip_port, is_served
from callyard.parts.prepare import PartMissingError
from tests.support.wait import until


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on PATH and an empty cache; the directory of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CALLYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare, "SYSTEM_PROGRAMS", "")
    return programs


def program(path: Path, prints: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)


def test_nothing_there_says_what_to_do(bare_machine: Path) -> None:
    assert bare_machine.is_dir()
    assert prepare.find() is None
    with pytest.raises(PartMissingError, match="make setup"):
        prepare.found()


def test_machines_own_parts_are_taken(bare_machine: Path) -> None:
    program(bare_machine / "asterisk", "Asterisk 22.1.0")
    program(bare_machine / "sipp", "")
    parts = prepare.prepare()
    assert (parts.asterisk, parts.asterisk_root) == (bare_machine / "asterisk", None)
    assert (parts.sipp, parts.sipp_root) == (bare_machine / "sipp", None)
    assert parts.version == "Asterisk 22.1.0"


@pytest.mark.parametrize("version", ["Asterisk 18.24.1", "Asterisk 20.9.3", "nonsense"])
def test_too_old_an_asterisk_is_not_taken(bare_machine: Path, version: str) -> None:
    program(bare_machine / "asterisk", version)
    program(bare_machine / "sipp", "")
    assert prepare.find() is None


def test_all_that_is_missing_is_named_at_once(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not list(bare_machine.iterdir())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(prepare, "KEYRING", bare_machine / "no-keyring")
    assert prepare.main() == 1
    said = capsys.readouterr().err
    for needed in ("install mmdebstrap", "install debian-archive-keyring", "install uidmap", "sip-tester"):
        assert needed in said


async def test_mirror_that_does_not_answer_is_named_and_leaves_no_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLYARD_CACHE", str(tmp_path))
    monkeypatch.setattr(prepare, "debian_mirror", lambda: "http://127.0.0.1:1/debian")
    monkeypatch.setattr(prepare, "_asterisk_here", lambda: None)
    if prepare._missing(os.geteuid() == 0):
        pytest.skip("mmdebstrap cannot run here")
    with pytest.raises(PartMissingError, match=r"127\.0\.0\.1:1/debian"):
        await asyncio.to_thread(prepare.prepare)
    assert prepare.find() is None


async def test_confined_program_sees_its_binds_and_nobody_else_does(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("binding over a system file takes root")
    (tmp_path / "hosts").write_text("only here\n")
    argv = confine.command(["cat", "/etc/hosts"], binds=[(tmp_path / "hosts", "/etc/hosts")])
    child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert out == b"only here\n"
    assert Path("/etc/hosts").read_text() != "only here\n"


async def test_confined_program_that_cannot_run_says_so() -> None:
    argv = confine.command(["/nowhere/program"])
    child = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    _, errors = await child.communicate()
    assert child.returncode == 1
    assert b"cannot run /nowhere/program: No such file" in errors


async def test_confined_program_ends_with_its_parent() -> None:
    script = (
        "import subprocess, sys; from callyard.parts import confine\n"
        "child = subprocess.Popen(confine.command(['sleep', '600'])); print(child.pid, flush=True); child.wait()"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    process = Path("/proc") / (await parent.stdout.readline()).decode().strip()
    # The signal is asked for right before the program takes its place.
    await until(lambda: (process / "cmdline").read_bytes().startswith(b"sleep"), what="sleep runs")
    parent.kill()
    await parent.wait()
    await until(lambda: not process.exists(), what="it ended with its parent")


async def test_served_port_is_seen() -> None:
    port = free_sip_port()
    assert not is_served(port, "udp")
    assert not is_served(port, "tcp")
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", port)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", port)
    )
    assert is_served(port, "tcp")
    assert is_served(port, "udp")
    transport.close()
    server.close()
    await server.wait_closed()
