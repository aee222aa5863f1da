"""The systemd units: systemd takes them, they are hardened and hold no secret, and their settings exist."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from callyard.health import HealthSettings
from callyard.settings import GROUPS, NodeSettings, SettingsError, load, variables
from callyard.up import STOP_SECONDS
from tests.support.units import FOLDER, PROGRAM, Unit, environment_file

UNITS = sorted(path.name for path in FOLDER.glob("*.service"))
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.env.example"))
ANALYZE = shutil.which("systemd-analyze")
each_unit = pytest.mark.parametrize("name", UNITS)


def test_there_is_one_for_each_worker_and_one_for_all_of_them() -> None:
    assert UNITS == [
        "callyard-agent.service",
        "callyard-hook.service",
        "callyard-stream@.service",
        "callyard-up.service",
    ]


@each_unit
def test_secrets_come_as_credentials_alone(name: str) -> None:
    unit = Unit(name)
    files = {name: value for name, value in unit.environment.items() if name.endswith("_FILE")}
    assert set(unit.environment) - set(files) <= {"CALLYARD_HEALTH_PORT", "CALLYARD_CACHE"}
    assert set(files) <= set(variables())
    assert set(files.values()) == {f"%t/credentials/%n/{credential}" for credential in unit.credentials}
    assert not [name for name in unit.example() if f"{name}_FILE" in variables()]


@each_unit
def test_ready_watchdog_and_time_to_stop_are_what_the_worker_does(name: str) -> None:
    unit = Unit(name)
    assert (unit.one("Type"), unit.one("NotifyAccess"), unit.one("Restart")) == ("notify", "main", "always")
    assert float(unit.one("WatchdogSec")) >= 10  # a third of it between two messages: the worker may be busy
    stop = float(unit.one("TimeoutStopSec"))
    if "up" in unit.one("ExecStart").split():
        assert unit.one("KillMode") == "mixed"
        assert stop >= 5 * STOP_SECONDS
    else:
        assert unit.all("KillMode") == []
        assert stop > HealthSettings().grace_seconds


@each_unit
def test_no_setting_is_given_twice(name: str) -> None:
    several = {"Environment", "SystemCallFilter", "LoadCredential"}
    names = [name for name, _ in Unit(name).settings if name not in several]
    assert sorted(names) == sorted(set(names))
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(FOLDER / name)
    assert parser.sections() == ["Unit", "Service", "Install"]


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
@each_unit
def test_systemd_takes_it_and_finds_it_hardened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(installed((FOLDER / name).read_text()))
    (tmp_path / f"{name}.d").mkdir()
    (tmp_path / f"{name}.d" / "kafka-password.conf").write_text((FOLDER / "kafka-password.conf").read_text())
    verified = analyze("verify", str(tmp_path / name))
    assert (verified.returncode, verified.stderr) == (0, "")
    examined = analyze("security", "--offline=true", "--threshold=20", str(tmp_path / name))
    assert examined.returncode == 0, examined.stdout[-300:]


@pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")
def test_systemd_takes_what_lets_asterisk_drain(tmp_path: Path) -> None:
    unit, dropin = tmp_path / "asterisk.service", tmp_path / "asterisk.service.d" / "callyard-drain.conf"
    unit.write_text("[Unit]\nDescription=Asterisk\n[Service]\nExecStart=/bin/true\n")
    dropin.parent.mkdir()
    dropin.write_text(installed((FOLDER / "asterisk-drain.conf").read_text()))
    verified = analyze("verify", str(unit))
    assert (verified.returncode, verified.stderr) == (0, "")
    dropin.write_text(dropin.read_text().replace("TimeoutStopSec", "TimeoutStop"))
    assert "Unknown key" in analyze("verify", str(unit)).stderr


def installed(text: str) -> str:
    # The programs needn't be there for that.
    return text.replace(PROGRAM, "/bin/true").replace("/usr/local/sbin/asterisk-drain", "/bin/true")


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(ANALYZE), *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("everything", [False, True], ids=["as it stands", "with all that is commented out"])
def test_an_example_holds_settings_that_exist_and_are_right(name: str, everything: bool) -> None:
    text = (FOLDER / name).read_text()
    shown = {**environment_file(text), **(environment_file(text, comments=True) if everything else {})}
    assert set(shown) <= set(variables())
    # What an example leaves out are secrets, and the node's URI where there is no node.
    required = {f"{group.variable(name)} is not set" for group in GROUPS
                for name, field in group.model_fields.items() if field.is_required()}  # fmt: skip
    try:
        load(*GROUPS, environment=shown)
    except SettingsError as error:
        wrong = [problem for problem in error.problems if problem.partition(":")[0] not in required]
        assert [problem for problem in wrong if "SASL_PASSWORD (or …_FILE) must be set" not in problem] == []
    else:
        pytest.fail("an example holds secrets")
    if NodeSettings.variable("sip_uri") in shown:
        assert load(NodeSettings, environment={NodeSettings.variable("sip_uri"): shown["CALLYARD_NODE_SIP_URI"]})


def test_each_unit_has_its_example() -> None:
    assert {Path(Unit(name).one("EnvironmentFile")).name + ".example" for name in UNITS} == set(EXAMPLES)
