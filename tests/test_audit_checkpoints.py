"""Checkpoints of a journal in Kafka that was made anew: with fewer partitions, or without the newest file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from callyard.settings import KafkaSettings
from callyard.topics import topics
from tests.support import kafka
from tests.support.wait import until
from tests.test_audit_hostile import RECORDED

pytestmark = pytest.mark.kafka


async def fill(settings: KafkaSettings) -> None:
    """The same records, each with its own key: so they are in all partitions."""
    records = [(str(60_000 + at), value) for at, (_, value) in enumerate(RECORDED)]
    await kafka.send(settings, topics(settings).journal.name, *records)


async def made_anew(settings: KafkaSettings) -> None:
    await kafka.delete_topics(settings)

    async def created() -> bool:
        try:
            await kafka.create_topics(settings)
        except Exception:  # noqa: BLE001 - while the old one is still being deleted
            return False
        return True

    await until(created, what="the topics made anew", every=0.2)
    await fill(settings)


@dataclasses.dataclass
class Auditor:
    """Who has the key, and the directory of checkpoints."""

    environment: dict[str, str]
    directory: Path

    async def callyard(self, *words: str) -> tuple[int, str, str]:
        return await kafka.callyard(self.environment, "audit", *words)

    async def seal(self) -> tuple[int, str, str]:
        return await self.callyard("checkpoint", "--out", str(self.directory))

    async def verify(self, *words: str) -> tuple[int, str, str]:
        return await self.callyard("verify", "--checkpoints", str(self.directory), *words)


@pytest.fixture
def auditor(kafka_settings: KafkaSettings, tmp_path: Path) -> Auditor:
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "audit.key").write_bytes(key)
    environment = kafka.environment(kafka_settings)
    environment["CALLYARD_AUDIT_SIGNING_KEY_FILE"] = str(tmp_path / "audit.key")
    return Auditor(environment, tmp_path / "sealed")


async def test_a_journal_made_anew_with_fewer_partitions_is_found_out(
    kafka_settings: KafkaSettings, auditor: Auditor
) -> None:
    await fill(kafka_settings)
    assert (await auditor.seal())[0] == 0
    await made_anew(kafka_settings.model_copy(update={"partitions": 1}))
    status, out, err = await auditor.verify("--json")
    found = orjson.loads(out)
    assert (status, found["sealed"]["altered"]) == (1, 3), err
    gone = [one["where"] for one in found["first_findings"] if "the partition is gone" in one["text"]]
    assert gone == [f"{topics(kafka_settings).journal.name}-{number}" for number in (1, 2)]
    status, _, err = await auditor.seal()
    assert (status, "lacks partitions that checkpoint 1 sealed: 1, 2" in err) == (1, True), err
    assert len(list(auditor.directory.iterdir())) == 1, "a checkpoint that can't follow is not written"


async def test_what_no_checkpoint_holds_is_said(kafka_settings: KafkaSettings, auditor: Auditor) -> None:
    await fill(kafka_settings)
    assert (await auditor.seal())[0] == 0
    await fill(kafka_settings)
    assert (await auditor.seal())[0] == 0
    assert "others are in no checkpoint" not in (await auditor.verify())[1]
    (auditor.directory / "00000002.json").unlink()
    _, out, _ = await auditor.verify()
    assert "to checkpoint 1 (" in out
    assert f"; {len(RECORDED)} others are in no checkpoint" in out
