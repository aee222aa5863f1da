"""The hook's systemd unit: one that systemd takes, hardened, without a secret, and with settings that exist."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from callyard.settings import variables

UNIT = Path(__file__).parent.parent / "deploy" / "systemd" / "callyard-hook.service"
ANALYZE = shutil.which("systemd-analyze")


def settings() -> list[tuple[str, str]]:
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if re.match(r"[A-Z]\w*=", line)]
    return [(name, value) for name, _, value in lines]


def test_secrets_come_as_credentials_alone() -> None:
    environment = dict(value.split("=", 1) for name, value in settings() if name == "Environment")
    credentials = {value.split(":")[0] for name, value in settings() if name == "LoadCredential"}
    assert {name for name in environment if not name.endswith("_FILE")} == set()
    assert set(environment) <= set(variables())
    assert set(environment.values()) == {f"%t/credentials/%n/{credential}" for credential in credentials}


def test_ready_watchdog_and_time_to_stop_are_what_the_hook_does() -> None:
    found = dict(settings())
    assert (found["Type"], found["NotifyAccess"], found["Restart"]) == ("notify", "main", "always")
    assert float(found["WatchdogSec"]) >= 10  # a third of it between two messages: the hook may be busy
    assert float(found["TimeoutStopSec"]) > 10  # the hook drains, and Kafka's client takes its time to stop


def test_no_setting_is_given_twice() -> None:
    several = {"Environment", "SystemCallFilter", "LoadCredential"}
    names = [name for name, _ in settings() if name not in several]
    assert sorted(names) == sorted(set(names))
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(UNIT)
    assert parser.sections() == ["Unit", "Service", "Install"]


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
def test_systemd_takes_it_and_finds_it_hardened(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # The program needn't be installed for that.
    unit.write_text(UNIT.read_text().replace("/opt/callyard/bin/callyard", "/bin/true"))
    verified = subprocess.run([str(ANALYZE), "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    examined = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--threshold=20", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert examined.returncode == 0, examined.stdout[-300:]
