"""The rendered set and the private Asterisk: it loads without complaint, is closed, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ast_config.render import render
from callyard.cache import cache_folder
from callyard.parts import asterisk, sipp
from callyard.parts.prepare import found
from callyard.settings import AmiSettings
from tests.support.asterisk import RawAmi, conference_number, connected, parked, problems
from tests.support.ports import free_port
from tests.support.wait import until

pytestmark = pytest.mark.asterisk


async def test_rendered_set_loads_without_a_warning(tmp_path: Path) -> None:
    async with asterisk.running(tmp_path) as gateway:
        assert list(problems(gateway.log())) == []
        modules = (await gateway.cli("module show")).splitlines()
        assert [line for line in modules if "Not Running" in line] == []
        listed = await gateway.cli("pjsip show endpoints")
        assert "callyard-trunk" in listed
        assert "callyard-node" in listed


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_several_run_at_once_and_leave_nothing(tmp_path: Path) -> None:
    before = mounts()
    async with asterisk.running(tmp_path / "one") as one, asterisk.running(tmp_path / "two") as two:
        pids = one.pid, two.pid
        assert "Asterisk" in await one.cli("core show version")
        assert "Asterisk" in await two.cli("core show version")
        assert mounts() == before
    assert [pid for pid in pids if exists(pid)] == []
    assert mounts() == before


async def test_dies_with_its_parent(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import asyncio, pathlib
        from callyard.parts import asterisk
        async def main():
            async with asterisk.running(pathlib.Path({str(tmp_path / "gateway")!r})) as gateway:
                print(gateway.pid, flush=True)
                await asyncio.Event().wait()
        asyncio.run(main())
    """)
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert exists(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: not exists(pid), what="asterisk ended with its parent")


async def test_restart_and_kill(tmp_path: Path) -> None:
    number = conference_number()
    async with asterisk.running(tmp_path / "gateway") as gateway:
        async with connected(gateway.ami) as client, parked(gateway, client, tmp_path, number) as (callers, _):
            await gateway.kill()
            await gateway.start()
            await callers.kill()  # no BYE: nobody is there any more to answer it
        async with connected(gateway.ami) as client:
            assert await client.listed("Status") == []
        await gateway.restart()
        assert "0 active channels" in await gateway.cli("core show channels")


async def test_manager_user_may_do_what_the_agent_does_and_no_more(
    gateway: asterisk.Gateway, raw_ami: RawAmi, tmp_path: Path
) -> None:
    assert (await raw_ami.action("Ping"))["Response"] == "Success"
    refused = {
        "Command": {"Command": "core show version"},
        "Originate": {"Channel": "Local/s@callyard-entry", "Application": "Wait", "Data": "1"},
        "GetConfig": {"Filename": "manager.conf"},
        "UpdateConfig": {"SrcFilename": "manager.conf", "DstFilename": "manager.conf"},
        "ModuleLoad": {"LoadType": "load", "Module": "app_system.so"},
        "DBGet": {"Family": "x", "Key": "y"},
        "Filter": {"Operation": "Add", "Filter": "Event: .*"},
        "DialplanExtensionAdd": {"Context": "c", "Extension": "1", "Priority": "1", "Application": "Hangup"},
    }
    answers = {action: (await raw_ami.action(action, **fields))["Response"] for action, fields in refused.items()}
    assert answers == dict.fromkeys(refused, "Error")
    number = conference_number()
    async with parked(gateway, raw_ami, tmp_path, number) as (_, event):
        shell = await raw_ami.action("Getvar", Channel=event.channel, Variable="SHELL(id)")
        assert shell["Value"] == ""


async def test_wrong_secret_is_refused(gateway: asterisk.Gateway) -> None:
    wrong = AmiSettings(host=gateway.ami.host, port=gateway.ami.port, secret="wrong")
    with pytest.raises(AssertionError, match="Authentication failed"):
        async with connected(wrong):
            pass


async def test_secret_with_characters_that_mean_something_to_asterisk(tmp_path: Path) -> None:
    ami = AmiSettings(host="127.0.0.1", port=free_port(), secret=";a[b]=c#d>e;--f\\g${h}\"i'j, k")
    async with asterisk.running(tmp_path, ami=ami) as gateway, connected(gateway.ami) as client:
        assert (await client.action("Ping"))["Response"] == "Success"


async def test_events_of_a_call_with_and_without_the_filter(tmp_path: Path) -> None:
    number = conference_number()
    ami = AmiSettings(host="127.0.0.1", port=free_port(), secret="filtered")
    everything = AmiSettings(host="127.0.0.1", port=ami.port, username="all", secret="unfiltered")
    settings = asterisk.private_settings(tmp_path, found())
    manager = render(settings, ami)["manager_callyard.conf"] + "\n[all]\nsecret = unfiltered\nread = all\nwrite = all\n"
    async with (
        asterisk.running(tmp_path / "gateway", ami=ami, files={"manager_callyard.conf": manager}) as gateway,
        connected(gateway.ami) as client,
        connected(everything) as unfiltered,
        sipp.node(tmp_path / "node") as node,
        parked(gateway, client, tmp_path, number) as (callers, event),
    ):
        await client.redirect(event.channel, "1x1", node.uri(number))
        await client.event("DialEnd", CALLYARD_CONFERENCE=number)
        await callers.hang_up()
        await client.event("Hangup", CALLYARD_CONFERENCE=number)
        names = [message["Event"] for message in client.events]
        assert names == ["FullyBooted", "ParkedCall", "DialBegin", "DialEnd", "Hangup"]
        await unfiltered.event("Hangup", CALLYARD_CONFERENCE=number)
        assert len(unfiltered.events) > 10 * len(names)


async def test_shutdown_is_told(tmp_path: Path) -> None:
    async with asterisk.running(tmp_path) as gateway, connected(gateway.ami) as client:
        await gateway.stop()
        assert (await client.event("Shutdown"))["Shutdown"] == "Cleanly"


async def test_strangers_get_no_call_through(tmp_path: Path) -> None:
    async with asterisk.running(tmp_path / "gateway", trunk_networks="192.0.2.0/24") as gateway:
        calls = [sipp.Call("493012345678", "70001#")]
        async with sipp.calling(tmp_path / "caller", (gateway.sip_host, gateway.sip_port), calls) as callers:
            await until(lambda: not callers.running, what="the call was refused")
            assert callers.events() == []
            assert "0 calls processed" in await gateway.cli("core show channels")


async def test_music_and_prompts_are_there(gateway: asterisk.Gateway) -> None:
    assert "File: " in await gateway.cli("moh show files")
    sounds = Path("/usr/share/asterisk/sounds")
    root = found().asterisk_root
    directory = (root / str(sounds)[1:]) if root else sounds
    settings = gateway.settings
    prompts = (settings.prompt_number, settings.prompt_wrong, settings.prompt_goodbye, settings.prompt_full,
               settings.prompt_waited)  # fmt: skip
    named = [name for prompt in prompts for name in prompt.split("&")]
    assert [name for name in named if not list(directory.rglob(f"{name}.*"))] == []


async def test_asterisk_of_the_machine_itself_is_run_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = found().asterisk_root
    if root is None:
        pytest.skip("the other tests run the machine's own already")
    # The prepared one as if it were installed here: started by its own loader, in this machine's root directory.
    loader = next(path for path in root.glob("usr/lib*/**/ld-linux-*.so.*") if path.is_file())
    libraries = next(root.glob("usr/lib/*-linux-gnu"))
    program = tmp_path / "bin" / "asterisk"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {loader} --library-path {libraries} {root}/usr/sbin/asterisk "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    parts = found()
    assert (parts.asterisk, parts.asterisk_root) == (program, None)
    ami = AmiSettings(host="127.0.0.1", port=free_port(), secret="secret")
    directory = tmp_path / "gateway"
    content = render(asterisk.private_settings(directory, parts), ami)["asterisk.conf"]
    places = f"[directories]\nastmoddir => {libraries}/asterisk/modules\nastdatadir => {root}/usr/share/asterisk"
    files = {"asterisk.conf": content.replace("[directories]", places)}
    number = conference_number()
    async with (
        asterisk.running(directory, ami=ami, files=files, music_directory=f"{root}/usr/share/asterisk/moh") as gateway,
        connected(gateway.ami) as client,
        sipp.node(tmp_path / "node") as node,
        parked(gateway, client, tmp_path, number) as (_, event),
    ):
        await client.redirect(event.channel, "1x1", node.uri(number))
        assert [call.conference for call in await node.saw("answered")] == [number]


def others_may_enter(place: str | Path) -> bool:
    path = Path(place).resolve()
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(
    not all(others_may_enter(place) for place in (sys.base_prefix, sys.prefix, cache_folder())),
    reason="Python or the cache are in a directory that other users cannot enter",
)
async def test_runs_without_root(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import asyncio, os, pathlib, sys
        os.setgid(65534); os.setuid(65534)
        from callyard.parts import asterisk
        async def main():
            async with asterisk.running(pathlib.Path(sys.argv[1])) as gateway:
                print(await gateway.cli("core show version"))
        asyncio.run(main())
    """)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o777)
    pipe = subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "gateway"), stdout=pipe, stderr=pipe
    )
    out, errors = await child.communicate()
    if b"a user namespace of its own" in errors:
        pytest.skip("this kernel gives users no namespaces")
    assert b"Asterisk" in out, errors.decode()
