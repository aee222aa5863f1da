"""Signed registrations: who may say what of which node."""

from __future__ import annotations

import base64
import dataclasses
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callyard.main import main
from callyard.parts import freeswitch
from callyard.records import REGISTRATIONS, ConferenceRegistered, ConferenceUnregistered, parse
from callyard.settings import KafkaSettings, PolicySettings, SettingsError
from callyard.signing import SIGNED, Registration, Signer, SigningError, is_signed_by, read_nodes
from callyard.topics import topics
from streams.policy import Policy
from tests.support import events
from tests.support import kafka as on_kafka
from tests.support.hook import hook, registrations, running
from tests.support.story import Story, dialled
from tests.support.streams import decisions, journal, stream_worker
from tests.support.wait import until

ONE, PEM = Signer.make()
TWO, _ = Signer.make()
NODES = f"""
# the cluster
node-1 {ONE.public_key} 192.0.2.1,bbb1.example.org
node-2\t{TWO.public_key}  192.0.2.2   # added later
"""


def story() -> Story:
    nodes = tuple(node.line for node in read_nodes(NODES))
    return Story(dataclasses.replace(Policy.of(PolicySettings()), nodes=nodes))


def said(told: Story, record: Registration, signer: Signer = ONE, *, number: int = 1, late_ms: int = 0) -> str:
    """What the desk makes of a record that is signed now."""
    sent = record.model_copy(update={"sender_sequence": number, "sent_at_ms": told.now + 10 - late_ms})
    decision = told(signer.sign(sent))  # type: ignore[arg-type]
    return decision.why if decision.outcome == "refused" else decision.outcome


def test_a_node_registers_and_ends_its_own_conference() -> None:
    told = story()
    assert said(told, events.registered(), number=1) == "registered"
    assert said(told, events.registered(), number=2) == "renewed"
    assert dialled(told(events.parked())) == [("1", 1, "node-1")]
    assert said(told, events.unregistered(), number=3) == "ended"


def test_what_proves_nothing_is_refused_and_changes_nothing() -> None:
    told = story()
    assert "not signed" in told(events.registered()).why
    assert "none of node node-1" in said(told, events.registered(), TWO)
    assert "not in the file of nodes" in said(told, events.registered(node="node-3"))
    stolen = ONE.sign(events.registered(conference="49124")).signature
    forged = ONE.sign(events.registered()).model_copy(update={"signature": stolen})
    assert "forged" in told(forged).why  # type: ignore[arg-type]
    foreign = events.registered().model_copy(update={"sip_uri": "sip:49123@192.0.2.2:5060"})
    assert "host 192.0.2.2" in said(told, foreign)
    assert told.desk.registrations == {}
    assert said(told, events.registered(), number=5) == "registered"
    assert "none of node node-1" in said(told, events.unregistered(), TWO, number=6)
    assert "not signed" in told(events.unregistered()).why
    assert dialled(told(events.parked())) == [("1", 1, "node-1")]


@pytest.mark.parametrize("late_ms", [121_000, -121_000])
def test_what_was_overheard_is_refused_when_it_is_said_again(late_ms: int) -> None:
    told = story()
    assert said(told, events.registered(), number=7, late_ms=119_000) == "registered"
    assert "said before" in said(told, events.registered(), number=7)
    assert "expired" in said(told, events.registered(), number=8, late_ms=late_ms)
    assert said(told, events.unregistered(reason="lost"), number=9) == "lost"
    assert "said before" in said(told, events.registered(), number=8)


def test_without_a_file_of_nodes_anybody_is_believed() -> None:
    told = Story()
    assert told(events.registered()).outcome == "registered"
    assert told(TWO.sign(events.registered())).outcome == "renewed"  # type: ignore[arg-type]


@given(
    field=st.sampled_from(sorted(SIGNED - {"type", "source", "reason", "node_id", "conference"})),
    number=st.integers(2, 10**6),
)
def test_no_signed_field_can_be_changed(field: str, number: int) -> None:
    record = ONE.sign(events.registered().model_copy(update={"opened_at_ms": 1, "sent_at_ms": 1}))
    assert isinstance(record, ConferenceRegistered)
    assert is_signed_by(record, ONE.public_key)
    assert is_signed_by(parse(REGISTRATIONS, record.encode()), ONE.public_key)  # type: ignore[arg-type]
    old = getattr(record, field)
    changed = record.model_copy(update={field: number if isinstance(old, int) else f"{old}{number}"})
    assert not is_signed_by(changed, ONE.public_key)


@pytest.mark.parametrize("signature", ["", "x", "=", base64.b64encode(bytes(64)).decode(), "\u00e4" * 88])
def test_no_signature_is_not_a_signature(signature: str) -> None:
    record = events.registered().model_copy(update={"key_id": ONE.key_id, "signature": signature})
    assert not is_signed_by(record, ONE.public_key)


def test_an_end_is_no_beginning() -> None:
    ended = ONE.sign(events.unregistered())
    begun = events.registered().model_copy(update={"key_id": ONE.key_id, "signature": ended.signature})
    assert isinstance(ended, ConferenceUnregistered)
    assert not is_signed_by(begun, ONE.public_key)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("node-1 key", "a line has"),
        (f"node/1 {ONE.public_key} 192.0.2.1", "is no node id"),
        ("node-1 abc 192.0.2.1", "is no public key"),
        (f"node-1 {base64.b64encode(b'short').decode()} 192.0.2.1", "is no public key"),
        (f"node-1 {ONE.public_key} 192.0.2.1,;x", "is no host name"),
    ],
    ids=["words", "node", "no base64", "short", "host"],  # keys differ in each process that collects the tests
)
def test_a_wrong_line_is_named(line: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(SigningError, match=f"line 6: .*{wrong}"):
        read_nodes(NODES + "\n" + line)
    path = tmp_path / "nodes"
    path.write_text(line)
    with pytest.raises(SettingsError, match="CALLYARD_POLICY_NODES"):
        Policy.of(PolicySettings(nodes=path))


@pytest.mark.parametrize("content", [None, "", "# nobody\n", "\udcff"])
def test_a_file_of_nodes_that_names_nobody_is_an_error(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    with pytest.raises(SettingsError, match="CALLYARD_POLICY_NODES"):
        Policy.of(PolicySettings(nodes=path))


def test_a_key_that_is_none_is_not_repeated_in_the_error() -> None:
    with pytest.raises(SigningError) as error:
        Signer("-----BEGIN PRIVATE KEY-----\nnot-to-be-seen\n-----END PRIVATE KEY-----\n")
    assert "not-to-be-seen" not in str(error.value)


def test_callyard_keys_makes_a_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "node-1.pem"
    arguments = ["keys", "--node", "node-1", "--hosts", "192.0.2.1", "--out", str(out)]
    assert main(arguments) == 0
    [made] = read_nodes(capsys.readouterr().out)
    pem = out.read_text()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert is_signed_by(Signer(pem).sign(events.registered()), made.public_key)  # type: ignore[arg-type]
    assert main(arguments) == 1
    assert "exists" in capsys.readouterr().err
    assert out.read_text() == pem
    assert main([*arguments[:4], "a;b", "--out", str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.kafka
async def test_a_hook_signs_and_a_stream_believes_it_alone(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    key, nodes = tmp_path / "key.pem", tmp_path / "nodes"
    key.write_text(PEM)
    nodes.write_text(NODES.replace("192.0.2.1,", "192.0.2.7,"))
    stream = stream_worker(kafka_settings, tmp_path / "stream", POLICY_NODES=str(nodes))
    stream.start()
    try:
        async with freeswitch.FreeSwitch() as double:
            child = hook(kafka_settings, double.port, tmp_path / "hook", NODE_SIGNING_KEY_FILE=str(key))
            async with running(child):
                double.open("49123")
                [record, *_] = await registrations(kafka_settings, 1)
                name = topics(kafka_settings).registrations.name
                forged = record.model_copy(update={"conference": "49124"})
                await on_kafka.send(kafka_settings, name, ("49124", forged), ("49123", record))

                async def decided() -> dict[tuple[str, str], int]:
                    found: dict[tuple[str, str], int] = {}
                    for entry in decisions(await journal(kafka_settings)):
                        found.setdefault((entry.conference, entry.outcome), entry.version)
                    wanted = {("49123", "registered"), ("49124", "refused"), ("49123", "refused")}
                    return found if wanted <= found.keys() else {}

                await until(decided, timeout=60, what="all three decided")
    finally:
        await stream.stop()
    assert "PRIVATE" not in "\n".join(child.lines())
