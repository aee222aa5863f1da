"""What workers answer to probes and to Prometheus, also to whoever means them no good."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from callyard import health, metrics_reference
from callyard.errors import CommandError
from callyard.health import Health, serving
from callyard.main import main
from callyard.processes import free_port
from callyard.settings import HealthSettings, KafkaSettings
from callyard.topics import topics
from tests.support import kafka as on_kafka
from tests.support.events import connected, parked, registered, started
from tests.support.probes import metric, probe
from tests.support.streams import instructions, stream_worker
from tests.support.wait import until


@asynccontextmanager
async def server(told: Health) -> AsyncIterator[int]:
    port = free_port()
    async with serving(HealthSettings(port=port), told):
        yield port


async def test_a_worker_is_ready_only_while_all_that_it_needs_is_there() -> None:
    stop, told, there = asyncio.Event(), {}, {"AMI": False}
    told = Health(stop)
    async with server(told) as port:
        assert await probe(port, "/readyz") == (503, "missing: the worker is starting\n")
        told.require("Kafka", lambda: True)
        told.require("AMI", lambda: there["AMI"])
        assert await probe(port, "/readyz") == (503, "missing: AMI\n")
        assert await probe(port, "/healthz") == (200, "alive\n")
        there["AMI"] = True
        assert await probe(port, "/readyz") == (200, "ready\n")
        assert (await metric(port, "callyard_ready")) == 1
        stop.set()
        assert await probe(port, "/readyz") == (503, "missing: the worker is stopping\n")
        assert (await probe(port, "/healthz"))[0] == 200
        assert (await metric(port, "callyard_ready")) == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /healthz?full=1 HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"POST /healthz HTTP/1.1\r\n\r\n", 405),
        (b"\xff\xfe /healthz HTTP/1.1\r\n\r\n", 405),
        (b"GET /healthz\r\n\r\n", 400),
        (b"\x16\x03\x01\x02 \x00 \x01\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
    ],
)
def test_each_request_has_its_status(head: bytes, status: int) -> None:
    assert health.answer(head, Health(asyncio.Event())).status.startswith(str(status))


async def test_head_has_no_body_and_the_same_length() -> None:
    async with server(Health(asyncio.Event())) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HEAD /healthz HTTP/1.1\r\n\r\n")
        text = (await asyncio.wait_for(reader.read(), 5)).decode()
        writer.close()
    assert "Content-Length: 6\r\n" in text
    assert text.endswith("\r\n\r\n")


async def test_who_asks_for_too_much_or_not_at_all_is_cut_off_and_keeps_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "READ_SECONDS", 0.5)
    async with server(Health(asyncio.Event())) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(health.MAX_CONNECTIONS)]
        turned_away, _ = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(ended(turned_away), 0.4), "one more than are served is not kept waiting"
        for reader, _ in silent:
            assert await asyncio.wait_for(ended(reader), 5)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert await asyncio.wait_for(ended(reader), 5)
        assert (await probe(port, "/healthz"))[0] == 200


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_a_port_that_is_taken_is_said_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"cannot listen on 127.0.0.1:{port} .*CALLYARD_HEALTH_PORT"):
            async with serving(HealthSettings(port=port), Health(asyncio.Event())):
                pass


def test_the_page_of_metrics_is_what_the_workers_declare() -> None:
    page = Path(__file__).parent.parent / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == metrics_reference.reference(), "make docs writes it anew"


def test_metrics_are_named_as_prometheus_asks_and_their_labels_are_bounded() -> None:
    known = metrics_reference.metrics()
    assert len(known) > 30
    for metric_ in known:
        assert re.fullmatch(r"callyard_[a-z]+(_[a-z]+)*", metric_.name), metric_
        assert not re.search(r"_(ms|milliseconds|minutes|count|sum|bucket|total|info)$", metric_.name), metric_
        assert metric_.meaning.endswith("."), metric_
        assert set(metric_.labels) == set(metrics_reference.LABELS.get(metric_.name, {})), metric_
        assert not {"conference", "call_id", "caller", "stay", "instance_id", "sender"} & set(metric_.labels), metric_


@pytest.mark.kafka
async def test_a_stream_worker_tells_what_it_holds_and_what_it_decided(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    names, port = topics(kafka_settings), free_port()
    lease = {"POLICY_CALL_LEASE_SECONDS": "3", "STREAM_TICK_SECONDS": "0.05"}
    worker = stream_worker(kafka_settings, tmp_path / "stream.log", HEALTH_PORT=str(port), **lease)
    worker.start()
    try:
        await worker.ready(60)
        assert await probe(port, "/readyz") == (200, "ready\n")
        assert (await metric(port, "callyard_stream_partitions")) == kafka_settings.partitions
        await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked()), ("49123", parked("2")))
        await until(lambda: is_told(port, 'callyard_stream_callers{state="parked"}', 2))
        await on_kafka.send(kafka_settings, names.calls.name, ("49123", b"rubbish"))
        await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
        await instructions(kafka_settings, 2)
        await on_kafka.send(kafka_settings, names.calls.name, ("49123", started()), ("49123", connected()))
        await until(lambda: is_told(port, "callyard_stream_wait_seconds_count", 1))
        assert (await metric(port, "callyard_stream_put_through_seconds_count")) == 1
        assert 0 < (await metric(port, "callyard_stream_put_through_seconds_sum")) < 10
        assert (await metric(port, "callyard_stream_registrations")) == 1
        assert (await metric(port, f'callyard_rejected_total{{source="{names.calls.name}"}}')) == 1
        assert (await metric(port, 'callyard_stream_instructions_total{type="dial-instruction"}')) == 2
        assert (await metric(port, 'callyard_stream_callers{state="connected"}')) == 1
        await until(lambda: is_told(port, 'callyard_stream_leases_expired_total{of="call"}', 2))
        assert (await metric(port, 'callyard_stream_callers{state="connected"}')) == 0
        assert (await metric(port, f'callyard_stream_lag{{topic="{names.calls.name}"}}')) == 0
    finally:
        await worker.stop()


async def is_told(port: int, name: str, value: float) -> bool:
    return await metric(port, name) == value


async def test_the_command_asks_the_worker_beside_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def asked(*words: str) -> tuple[int, str]:
        status = await asyncio.to_thread(main, ["health", *words])
        out, err = capfd.readouterr()
        return status, out + err

    assert await asked() == (2, "callyard health: settings:\n  CALLYARD_HEALTH_PORT is 0: nothing is served; set it,"
                                " for the worker and here\n")  # fmt: skip
    told = Health(asyncio.Event())
    async with server(told) as port:
        monkeypatch.setenv("CALLYARD_HEALTH_PORT", str(port))
        assert await asked() == (1, "callyard health: missing: the worker is starting\n")
        assert await asked("--live") == (0, "alive\n")
        told.require("Kafka", lambda: True)
        assert await asked() == (0, "ready\n")
        monkeypatch.setenv("CALLYARD_HEALTH_HOST", "0.0.0.0")
        assert await asked() == (0, "ready\n")
    status, text = await asked()
    assert (status, text.startswith(f"callyard health: nothing answers at 127.0.0.1:{port}: ")) == (1, True)
