"""``callyard doctor gateway`` on a real Asterisk: nothing is found at one that is well, and what is wrong is named."""

from __future__ import annotations

import json
import os
import sys
import time
from asyncio import create_subprocess_exec
from pathlib import Path
from subprocess import PIPE

import pytest
from pydantic import SecretStr

from agents import doctor as agent_doctor
from ast_config import doctor
from callyard.doctor import Finding, Level
from callyard.parts import asterisk
from callyard.settings import AmiSettings, AsteriskSettings, GatewaySettings, KafkaSettings, Loaded, SipSettings
from tests.support import kafka as on_kafka

pytestmark = [pytest.mark.asterisk]


def loaded(gateway: asterisk.Gateway) -> Loaded:
    return Loaded({
        AsteriskSettings: gateway.settings, AmiSettings: gateway.ami, SipSettings: gateway.sip,
        GatewaySettings: GatewaySettings(id="gw-1"),
    })  # fmt: skip


def bad(findings: list[Finding]) -> list[str]:
    assert all(finding.advice for finding in findings if finding.level is not Level.FINE)
    return [finding.text for finding in findings if finding.level is Level.WRONG]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_gateway_that_is_well(gateway: asterisk.Gateway) -> None:
    # Other tests' agents left their mark here.
    await gateway.cli(f"dialplan set global CALLYARD_AGENT {int(time.time())}")
    findings = await doctor.running(loaded(gateway), gateway.directory / "run", join=False)
    assert bad(findings) == []
    assert "all modules run that the dialplan, SIP and the manager interface need" in [f.text for f in findings]
    before = await gateway.cli("dialplan show globals")
    findings = await agent_doctor.manager(gateway.ami)
    assert bad(findings) == []
    assert [finding.level for finding in findings] == [Level.FINE] * 3
    assert await gateway.cli("dialplan show globals") == before, "it changes nothing"


async def test_what_is_wrong_with_a_gateway_is_named(tmp_path: Path) -> None:
    everybody = """[general]
enabled = yes
port = {port}
bindaddr = 127.0.0.1
[{user}]
secret = {secret}
read = call
write = command,system
"""
    ami = AmiSettings(port=asterisk.free_port("127.0.0.1"), secret=SecretStr("right"))
    files = {"manager.conf": everybody.format(port=ami.port, user=ami.username, secret="right")}
    async with asterisk.running(tmp_path, ami=ami, files=files) as gateway:
        await gateway.cli("module unload res_musiconhold.so")
        await gateway.cli("dialplan remove context callyard-dial")
        await gateway.cli("dialplan set global CALLYARD_AGENT 1700000000")
        texts = bad(await doctor.running(loaded(gateway), tmp_path / "run", join=False))
        assert [text for text in texts if text.startswith("modules don't run: ")] == [
            "modules don't run: res_musiconhold.so"
        ]
        assert "the dialplan has no callyard-dial" in texts
        assert any(text.startswith("the manager user has no ACL") for text in texts)
        assert any(text.startswith("the agent was last here") for text in texts)
        texts = bad(await agent_doctor.manager(ami))
        assert "the manager user may not do Setvar, Redirect, ParkedCalls" in texts
        assert any("may do more than the agent needs: Command (class command)" in text for text in texts)
        [text] = bad(await agent_doctor.manager(ami.model_copy(update={"secret": SecretStr("wrong")})))
        assert "refuses the manager user 'callyard'" in text
        assert "wrong" not in text
    [text] = bad(await doctor.running(loaded(gateway), tmp_path / "run", join=False))
    assert "no Asterisk answers at" in text


@pytest.mark.kafka
@pytest.mark.asyncio(loop_scope="session")
async def test_the_command_tells_all_of_it(
    gateway: asterisk.Gateway, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    environment = {
        **os.environ, **on_kafka.environment(kafka_settings),
        "CALLYARD_GATEWAY_ID": "gw-1", "CALLYARD_AMI_PORT": str(gateway.ami.port),
        "CALLYARD_AMI_SECRET": gateway.ami.secret.get_secret_value(),
    }  # fmt: skip
    words = ["doctor", "gateway", "--dir", str(tmp_path), "--run", str(gateway.directory / "run"), "--json"]
    child = await create_subprocess_exec(
        sys.executable, "-m", "callyard.main", *words, env=environment, stdout=PIPE, stderr=PIPE
    )
    out, err = await child.communicate()
    assert child.returncode == 1, err.decode()
    told = json.loads(out)
    by_check: dict[str, set[str]] = {}
    for finding in told["findings"]:
        by_check.setdefault(finding["check"], set()).add(finding["level"])
    assert set(by_check) == {
        "files", "settings", "certificates", "sounds", "music", "asterisk", "manager", "names", "clock", "kafka",
    }  # fmt: skip
    assert by_check["files"] == {"wrong"}, "nothing was rendered to that directory"
    assert by_check["manager"] == by_check["kafka"] == {"fine"}
    assert gateway.ami.secret.get_secret_value().encode() not in out + err
