"""``callyard up``: all workers of one machine under one command, for a person's own Asterisk and nodes.

It supervises and does nothing else: the workers are the same processes as anywhere (``callyard stream``, ``agent``,
``hook``), each with its own settings, and share nothing but Kafka. They are in this command's process group; the
embedded Kafka is not, so that at Ctrl-C it outlives those who still write to it.

Under systemd it is ready once the stream is: who can't reach Asterisk or FreeSWITCH yet is no reason to end the others.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from callyard import log, main, tasks
from callyard.cache import state_folder
from callyard.errors import CommandError
from callyard.kafka import embedded
from callyard.notify import Notifier
from callyard.options import ConfigOption
from callyard.processes import Child, worker
from callyard.settings import (
    AmiSettings,
    EslSettings,
    GatewaySettings,
    Group,
    HealthSettings,
    KafkaSettings,
    Loaded,
    LogSettings,
    NodeSettings,
    PolicySettings,
    SettingsError,
    StreamSettings,
    given,
    load,
)
from callyard.supervised import WATCHDOG_SECONDS, Told
from callyard.topics_command import ensure

app = typer.Typer(add_completion=False, help=__doc__)

STOP_SECONDS = 15
BACKOFF_SECONDS = 1.0
BACKOFF_MAX_SECONDS = 30.0
STEADY_SECONDS = 60
"""A child that ran this long starts again after the shortest pause."""


class Part(NamedTuple):
    """A worker that may run here: its command, its settings, and those of them that say that it is wanted."""

    command: str
    groups: tuple[type[Group], ...]
    wanted_by: tuple[type[Group], ...]


STREAM = Part("stream", (StreamSettings, PolicySettings), ())
AGENT = Part("agent", (AmiSettings, GatewaySettings), (AmiSettings,))
HOOK = Part("hook", (EslSettings, NodeSettings), (EslSettings, NodeSettings))


@app.command(name="up")
def command(
    config: ConfigOption = None,
    kafka: Annotated[bool, typer.Option("--kafka/--no-kafka", help="Run an embedded Kafka, or use a cluster.")] = True,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the embedded Kafka's records. Default: in Callyard's state folder.")
    ] = None,
) -> None:
    """Run Kafka, the topics and every worker whose settings are given, until Ctrl-C or SIGTERM.

    The stream always runs; the agent when a CALLYARD_AMI_… setting is given; the hook when a CALLYARD_ESL_… or
    CALLYARD_NODE_… setting is given. A worker that ends is started again. Settings are all checked first.
    """
    parts = [part for part in (STREAM, AGENT, HOOK) if not part.wanted_by or given(*part.wanted_by, config=config)]
    groups: list[type[Group]] = [KafkaSettings, LogSettings, HealthSettings]
    settings = load(*groups, *(group for part in parts for group in part.groups), config=config)
    port = _own_port(settings[KafkaSettings]) if kafka else None
    for part in parts:
        main.app(part.command)  # says what is to be installed before anything runs
    log.configure(settings[LogSettings], "up")
    tasks.run(lambda stop: _run(stop, settings, parts, port, data or state_folder() / "kafka", config))


def _own_port(settings: KafkaSettings) -> int:
    host, _, port = settings.bootstrap_servers.rpartition(":")
    if host not in {embedded.HOST, "localhost"} or settings.security_protocol.value != "PLAINTEXT":
        raise SettingsError(
            [
                f"CALLYARD_KAFKA_BOOTSTRAP_SERVERS is {settings.bootstrap_servers}"
                f" ({settings.security_protocol.value}): say --no-kafka to use that Kafka; the embedded one serves"
                f" {embedded.HOST} only, without TLS or passwords"
            ]
        )
    return int(port)


async def _run(
    stop: asyncio.Event, settings: Loaded, parts: list[Part], port: int | None, data: Path, config: Path | None
) -> None:  # fmt: skip
    if port is None:
        _say("kafka", f"not started: using {settings[KafkaSettings].bootstrap_servers}")
        await _run_workers(stop, settings, parts, None, config)
        return
    _say("kafka", "starting the embedded one")
    async with embedded.running(data, port) as kafka:
        _say("kafka", f"serves {kafka.bootstrap_servers}; records and log in {kafka.data}")
        await _run_workers(stop, settings, parts, kafka, config)
    _say("kafka", "ended")


async def _run_workers(
    stop: asyncio.Event, settings: Loaded, parts: list[Part], kafka: embedded.EmbeddedKafka | None, config: Path | None
) -> None:  # fmt: skip
    created = await ensure(settings[KafkaSettings])
    _say("topics", f"created: {', '.join(created)}" if created else "all there")
    running, notifier = tasks.Tasks(), Notifier()
    children: dict[str, Told] = {}
    for name, task in notifier.tasks(lambda: _missing(children), lambda: _status(children)).items():
        running.start(name, task)
    if kafka is not None:
        running.start("kafka", _keep_kafka(kafka, stop))
    with tempfile.TemporaryDirectory(prefix="callyard-up-") as sockets:
        for part in (STREAM, AGENT, HOOK):
            if part not in parts:
                missing = " or ".join(f"CALLYARD_{group.table.upper()}_…" for group in part.wanted_by)
                _say(part.command, f"left out: no {missing} setting is given (docs/settings.md)")
                continue
            told = Told(Path(sockets, part.command), _teller(part.command, children))
            children[part.command] = told
            child = worker(
                part.command, *(["--config", str(config)] if config else []),
                environment={**_port_of(part, settings), **told.environment},
            )  # fmt: skip
            running.start(f"{part.command} told", told.receive())
            running.start(part.command, _keep(child, told, stop))
        _say("up", "Ctrl-C ends all of it")
        try:
            await running.run(stop)
        finally:
            notifier.stopping()
            for told in children.values():
                told.close()


def _teller(name: str, children: dict[str, Told]) -> Callable[[], None]:
    """What is called when a worker has said something new: it is for people, too."""
    return lambda: _say(name, children[name].status)


def _missing(children: dict[str, Told]) -> list[str]:
    stream = children.get(STREAM.command)
    return [] if stream is not None and stream.ready else ["the stream is not ready"]


def _status(children: dict[str, Told]) -> str:
    return ", ".join(f"{name}: {told.status}" for name, told in children.items())


def _port_of(part: Part, settings: Loaded) -> dict[str, str]:
    """The variable by which a worker of this machine serves its health on a port of its own."""
    port = settings[HealthSettings].port
    return {HealthSettings.variable("port"): str(port + (STREAM, AGENT, HOOK).index(part))} if port else {}


async def _keep(child: Child, told: Told, stop: asyncio.Event) -> None:
    """Run a child, again whenever it ends or stands still; end it when cancelled."""
    pause = BACKOFF_SECONDS
    try:
        while True:
            told.begin()
            child.start()
            began = time.monotonic()
            _say(child.name, f"started (process {child.pid})")
            await _until_it_ends(child, told)
            pause = await _again(child.name, child.ended(), began, pause, stop)
    finally:
        await child.stop(STOP_SECONDS)
        _say(child.name, "ended")


async def _until_it_ends(child: Child, told: Told) -> None:
    ended, still = asyncio.ensure_future(child.wait()), asyncio.ensure_future(told.stands_still())
    try:
        await asyncio.wait([ended, still], return_when=asyncio.FIRST_COMPLETED)
        if still.done() and not ended.done():
            _say(child.name, f"says nothing for {WATCHDOG_SECONDS:g} s; ending it")
            await child.kill()
    finally:
        ended.cancel()
        still.cancel()


async def _keep_kafka(kafka: embedded.EmbeddedKafka, stop: asyncio.Event) -> None:
    """Start the embedded Kafka again whenever it ends; who started it first ends it."""
    pause = BACKOFF_SECONDS
    while True:
        began = time.monotonic()
        how = str(await kafka.ended())
        while True:
            pause = await _again("kafka", how, began, pause, stop)
            began = time.monotonic()
            try:
                await kafka.start()
            except CommandError as error:
                how = str(error)
            else:
                _say("kafka", f"serves {kafka.bootstrap_servers} again")
                break


async def _again(name: str, how: str, began: float, pause: float, stop: asyncio.Event) -> float:
    """Say how it ended, wait before its next start, and return the pause after that."""
    if stop.is_set():
        # At Ctrl-C the terminal tells the children, too: nothing is started again, and being cancelled comes next.
        await asyncio.get_running_loop().create_future()
    if time.monotonic() - began > STEADY_SECONDS:
        pause = BACKOFF_SECONDS
    _say(name, f"{how}; starts again in {pause:g} s")
    await asyncio.sleep(pause)
    return min(pause * 2, BACKOFF_MAX_SECONDS)


def _say(what: str, text: str) -> None:
    typer.echo(f"{what:<7} {text}")
