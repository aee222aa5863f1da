"""Rendering and placing a node's files: well-formed, idempotent, never over what isn't ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callyard.main import main
from callyard.owned_files import HASH, XML, ForeignFileError, is_ours
from callyard.settings import FreeswitchSettings, NodeSettings, SettingsError, load
from fs_hooks.render import COMMAND, DIALPLAN, EXTENSIONS, PROPERTIES, SCRIPT, properties, render

NODE = NodeSettings(id="node-1", sip_uri="sip:{conference}@192.0.2.7:5060;transport=tcp")
SETTINGS = FreeswitchSettings(gateways="192.0.2.10", dial_number="+49 30 1234567")
FOOTER = "<br><br>To join this meeting by phone, dial:<br>  %%DIALNUM%%<br>Then enter %%CONFNUM%%# as the conference"


def test_the_set_is_sealed_and_the_same_each_time() -> None:
    rendered = render(SETTINGS, NODE)
    assert sorted(rendered.files) == sorted([DIALPLAN, PROPERTIES, SCRIPT])
    assert all(is_ours(content, rendered.comments[name], COMMAND) for name, content in rendered.files.items())
    assert render(SETTINGS, NODE).files == rendered.files
    assert not is_ours(rendered.files[DIALPLAN].replace("404", "200"), XML, COMMAND)
    assert not is_ours(rendered.files[SCRIPT].replace("Rendered", "Edited"), HASH, COMMAND)


def test_the_dialplan_is_xml_that_freeswitch_takes_as_it_stands() -> None:
    content = render(SETTINGS, NODE).files[DIALPLAN]
    assert [extension.get("name") for extension in ET.fromstring(content)] == list(EXTENSIONS)
    # Both would be worked on by FreeSWITCH's preprocessor (switch_xml.c) before the XML is read.
    assert "$${" not in content
    assert "X-PRE-PROCESS" not in content


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GATEWAYS", ""),
        ("GATEWAYS", "0.0.0.0/0"),
        ("GATEWAYS", "192.0.2.1,::/0"),
        ("GATEWAYS", "192.0.2.1/24"),
        ("GATEWAYS", "gateway.example.org"),
        ("GATEWAYS", "192.0.2.1 true"),
        ("GATEWAYS", "192.0.2.1\n"),
        ("GATEWAYS", ",".join(f"192.0.2.{n}" for n in range(101))),
        ("UNKNOWN_CALLER", "Anonymous"),
        ("UNKNOWN_CALLER", ""),
        ("UNKNOWN_CALLER", "${system(id)}"),
        ("MEDIA_TIMEOUT_SECONDS", "-1"),
        ("DIAL_NUMBER", "1\ndefaultWelcomeMessage=x"),
        ("WELCOME_FOOTER", "Call us"),
        ("WELCOME_FOOTER", "%%DIALNUM%%"),
        ("CALLER", "name"),
    ],
)
def test_setting_that_would_open_the_door_or_break_out_is_refused_by_name(variable: str, value: str) -> None:
    environment = {"CALLYARD_FREESWITCH_GATEWAYS": "192.0.2.10", f"CALLYARD_FREESWITCH_{variable}": value}
    with pytest.raises(SettingsError, match=f"CALLYARD_FREESWITCH_{variable}: "):
        load(FreeswitchSettings, environment=environment)


def test_each_setting_is_used() -> None:
    other = {
        "gateways": "192.0.2.11", "caller": "full", "unknown_caller": "nobody", "media_timeout_seconds": 5,
        "dial_number": "1", "welcome_footer": "%%DIALNUM%% %%CONFNUM%%",
    }  # fmt: skip
    assert set(other) == set(FreeswitchSettings.model_fields)
    usual = render(SETTINGS, NODE).files
    changed = [render(SETTINGS.model_copy(update={name: value}), NODE).files for name, value in other.items()]
    assert all(files != usual for files in changed)
    assert render(SETTINGS, NODE.model_copy(update={"exclude": "70000"})).files != usual


def java_properties(text: str) -> dict[str, str]:
    """As java.util.Properties reads lines of ``name=value``; the last of a name counts."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name] = (
                value.encode("ascii").decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16")
            )
    return found


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40))
def test_properties_say_to_java_what_the_settings_say(text: str) -> None:
    footer = f"%%DIALNUM%%{text}%%CONFNUM%%"
    settings = FreeswitchSettings(gateways="192.0.2.10", dial_number="+49 30 1", welcome_footer=footer)
    assert java_properties(properties(settings)) == {
        "defaultDialAccessNumber": "+49 30 1",
        "defaultWelcomeMessageFooter": footer,
    }


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "callyard"
    words = ["render", "freeswitch", "--out", str(out)]
    assert main(words) == 2
    assert "CALLYARD_FREESWITCH_GATEWAYS is not set" in capsys.readouterr().err
    monkeypatch.setenv("CALLYARD_FREESWITCH_GATEWAYS", "192.0.2.10")
    monkeypatch.setenv("CALLYARD_NODE_SIP_URI", NODE.sip_uri)
    assert main([*words, "--diff"]) == 1
    assert "+  <extension name=" in capsys.readouterr().out
    assert not out.exists()
    assert main(words) == 0
    assert "apply.sh" in capsys.readouterr().out
    assert main([*words, "--diff"]) == 0
    assert main(words) == 0
    assert "up to date" in capsys.readouterr().out
    monkeypatch.setenv("CALLYARD_FREESWITCH_GATEWAYS", "192.0.2.11")
    assert main([*words, "--diff"]) == 1
    assert main(words) == 0
    assert f"wrote {DIALPLAN}\n" in capsys.readouterr().out
    (out / DIALPLAN).write_text("<include/>\n")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setenv("CALLYARD_FREESWITCH_DIAL_NUMBER", "1")
    assert main(words) == 1
    assert DIALPLAN in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_file_that_is_no_text_is_foreign(tmp_path: Path) -> None:
    (tmp_path / PROPERTIES).write_bytes(b"\xff\xfe")
    with pytest.raises(ForeignFileError, match=PROPERTIES):
        render(SETTINGS, NODE).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PROPERTIES]


# --- apply.sh: run as it stands, in a copy of the places it writes to ---


class Machine:
    """The places of a node that apply.sh writes to."""

    def __init__(self, path: Path) -> None:
        self.out = path / "callyard"
        self.public = path / "freeswitch" / "dialplan" / "public"
        self.public.mkdir(parents=True)
        self.properties = path / "bbb-web.properties"
        self.settings = SETTINGS

    def apply(self, **changes: object) -> subprocess.CompletedProcess[str]:
        render(self.settings.model_copy(update=changes), NODE).write(self.out)
        places = {"FREESWITCH_CONF": str(self.public.parent.parent), "BBB_WEB_PROPERTIES": str(self.properties)}
        return subprocess.run(
            ["/bin/sh", str(self.out / SCRIPT)],
            env={**os.environ, **places},
            capture_output=True,
            text=True,
            check=False,
        )

    def files(self) -> set[str]:
        return {path.name for path in (*self.public.iterdir(), *self.properties.parent.iterdir())}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_applying_puts_all_in_place_once(machine: Machine) -> None:
    machine.properties.write_text("securitySalt=abc\ndefaultDialAccessNumber=613-555-1234")  # no end of the last line
    machine.properties.chmod(0o640)
    first, second = machine.apply(), machine.apply()
    assert (first.returncode, second.returncode, second.stdout, second.stderr) == (0, 0, "", "")
    assert DIALPLAN in first.stdout
    assert (machine.public / DIALPLAN).read_text() == render(SETTINGS, NODE).files[DIALPLAN]
    found = java_properties(machine.properties.read_text())
    assert (found["securitySalt"], found["defaultDialAccessNumber"]) == ("abc", "+49 30 1234567")
    assert found["defaultWelcomeMessageFooter"].startswith(FOOTER)
    assert machine.properties.stat().st_mode & 0o777 == 0o640
    assert machine.files() == {"callyard", "freeswitch", machine.properties.name, DIALPLAN}


def test_applying_anew_changes_what_is_ours_alone(machine: Machine) -> None:
    before = "securitySalt=abc\n\n# of the admin\nmuteOnStart=true\n"
    machine.properties.write_text(before)
    machine.apply()
    machine.properties.write_text(machine.properties.read_text() + "later=1\n")
    changed = machine.apply(dial_number="110", gateways="192.0.2.12")
    assert changed.returncode == 0
    assert "192.0.2.12/32" in (machine.public / DIALPLAN).read_text()
    assert java_properties(machine.properties.read_text())["defaultDialAccessNumber"] == "110"
    assert machine.properties.read_text().count("BEGIN callyard") == 1
    assert machine.apply(dial_number="").returncode == 0
    assert machine.properties.read_text() == before + "later=1\n"


def test_applying_after_an_upgrade_that_took_everything_away(machine: Machine) -> None:
    machine.apply()
    machine.properties.unlink()
    (machine.public / DIALPLAN).unlink()
    assert machine.apply().returncode == 0
    assert (machine.public / DIALPLAN).exists()
    assert "defaultDialAccessNumber" in machine.properties.read_text()
    assert machine.properties.stat().st_mode & 0o777 == 0o644


def test_without_a_dial_number_no_properties_file_is_made(machine: Machine) -> None:
    assert machine.apply(dial_number="").returncode == 0
    assert machine.files() == {"callyard", "freeswitch", DIALPLAN}


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ("a=1\n# BEGIN callyard\nb=2\n", "1 '# BEGIN callyard' and 0"),
        ("# END callyard\n", "0 '# BEGIN callyard' and 1"),
    ],
)
def test_a_broken_block_is_left_alone(machine: Machine, properties: str, said: str) -> None:
    machine.properties.write_text(properties)
    refused = machine.apply()
    assert refused.returncode == 1
    assert said in refused.stderr
    assert machine.properties.read_text() == properties


def test_a_foreign_dialplan_is_left_alone(machine: Machine) -> None:
    (machine.public / DIALPLAN).write_text("<include/>\n")
    refused = machine.apply()
    assert refused.returncode == 1
    assert "is not Callyard's" in refused.stderr
    assert (machine.public / DIALPLAN).read_text() == "<include/>\n"
    assert machine.files() == {"callyard", "freeswitch", DIALPLAN}


def test_a_place_that_is_not_there_is_named(machine: Machine) -> None:
    machine.public.rmdir()
    refused = machine.apply()
    assert refused.returncode == 1
    assert "FREESWITCH_CONF" in refused.stderr
