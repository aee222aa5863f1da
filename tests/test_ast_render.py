"""Rendering and writing the gateway's configuration: complete, unbreakable, never over what isn't ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from ast_config import render as rendering
from ast_config.render import MODE, ValueRefusedError, names, owned, render
from callyard.main import main
from callyard.owned_files import ForeignFileError
from callyard.settings import AmiSettings, AsteriskSettings, SettingsError, SipSettings, load

AMI = AmiSettings(secret="secret")


def loaded(**environment: str) -> AsteriskSettings:
    return load(AsteriskSettings, environment=environment)[AsteriskSettings]


def test_every_file_is_rendered_and_sealed() -> None:
    files = render(AsteriskSettings(), AMI)
    assert sorted(files) == names()
    assert {"pjsip.conf", "manager.conf", "extensions_callyard.conf", "res_parking.conf"} <= set(files)
    assert all(owned(files).is_ours(name, content) for name, content in files.items())
    assert render(AsteriskSettings(), AMI) == files


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PROMPT_NUMBER", "conf-getconfno)\n same => n,System(id"),
        ("PROMPT_FULL", "a,b"),
        ("CODECS", "ulaw\nallow = all"),
        ("MEDIA_ADDRESS", "127.0.0.1\ncontext = x"),
        ("MEDIA_ADDRESS", "example.org"),
        ("TRUNK_NETWORKS", "0.0.0.0/33"),
        ("TRUNK_NETWORKS", "127.0.0.1;x"),
        ("MUSIC_DIRECTORY", "../../etc"),
        ("UNKNOWN_CALLER", "Anonymous"),
        ("UNKNOWN_CALLER", ""),
        ("LANGUAGE", "en,de"),
        ("LEAST_DIGITS", "4"),
        ("SIP_PORT", "0"),
    ],
)
def test_setting_that_would_break_out_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"CALLYARD_ASTERISK_{variable}: "):
        loaded(**{f"CALLYARD_ASTERISK_{variable}": value})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"LEAST_DIGITS": "8", "MOST_DIGITS": "7"}, "MOST_DIGITS"),
        ({"RTP_FIRST_PORT": "9000", "RTP_LAST_PORT": "8000"}, "RTP_LAST_PORT"),
    ],
)
def test_range_the_wrong_way_round_is_refused(changes: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=f"CALLYARD_ASTERISK_{named}: must not be less than"):
        loaded(**{f"CALLYARD_ASTERISK_{name}": value for name, value in changes.items()})


@given(st.text(min_size=1, max_size=40))
@hypothesis.settings(deadline=None)  # the first one compiles the templates
def test_secret_never_makes_a_line_of_its_own(secret: str) -> None:
    try:
        ami = AmiSettings(secret=secret)
        content = render(AsteriskSettings(), ami)["manager_callyard.conf"]
    except (ValueError, ValueRefusedError):
        return
    reference = render(AsteriskSettings(), AMI)["manager_callyard.conf"]
    lines, expected = content.split("\n"), reference.split("\n")
    differing = [new for new, old in zip(lines, expected, strict=True) if new != old and "digest" not in new]
    assert differing == ([] if secret == "secret" else [f"secret = {secret.replace(';', chr(92) + ';')}"])


@pytest.mark.parametrize("secret", [" x", "x ", "x\\", "a\\;b"])
def test_secret_that_asterisk_would_change_is_refused(secret: str) -> None:
    with pytest.raises(ValueRefusedError, match="CALLYARD_AMI_SECRET"):
        render(AsteriskSettings(), AmiSettings(secret=secret))


def test_name_that_a_template_does_not_know_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.conf.j2").write_text("a = {{ misspelt }}\n")
    monkeypatch.setattr(rendering, "TEMPLATES", tmp_path)
    with pytest.raises(UndefinedError, match="misspelt"):
        render(AsteriskSettings(), AMI)


def test_each_setting_is_used() -> None:
    """A setting that changes no file would be a promise without effect."""
    other: dict[str, Any] = {
        "base_directory": "/srv/asterisk", "sip_host": "192.0.2.1", "sip_port": 5070, "media_address": "192.0.2.2",
        "trunk_networks": "192.0.2.0/24", "rtp_first_port": 12000, "rtp_last_port": 13000, "rtp_timeout_seconds": 5,
        "codecs": "g722", "dtmf_mode": "inband", "least_digits": 6, "most_digits": 9, "tries": 4, "digit_seconds": 3,
        "lot_size": 7, "longest_wait_seconds": 77, "dial_seconds": 9, "while_dialing": "ringing", "caller_id": "full",
        "unknown_caller": "nobody", "language": "de", "music_directory": "other", "prompt_number": "a",
        "prompt_wrong": "b", "prompt_goodbye": "c", "prompt_full": "d", "prompt_waited": "e",
        "manager_networks": "192.0.2.9", "node_rtp_timeout_seconds": 6, "follow_ended_seconds": 7,
        "follow_lost_seconds": 8, "prompt_unreachable": "f", "prompt_given_up": "g", "prompt_removed": "h",
        "number_pattern": "[1-9][0-9]+", "direct_numbers": "4930123=49123", "direct_prefixes": "4940",
        "language_numbers": "49=de", "language_trunks": "callyard-trunk=de", "sounds_directory": "/srv/sounds",
        "read_back": True, "warn_seconds": 9, "star": "nothing", "outage_seconds": 60, "longest_call_seconds": 600,
        "caller_parked_limit": 3, "caller_tries_limit": 4, "trunk_parked_limit": 5, "trunk_tries_limit": 6,
        "caller_id_digits": 5, "caller_name": "Phone {number}", "unknown_name": "someone", "prompt_greeting": "i",
        "prompt_nothing": "j", "prompt_waiting": "l", "prompt_after_talk": "m", "prompt_warning": "n",
        "prompt_connected": "beep", "prompt_limited": "o", "prompt_outage": "p",
    }  # fmt: skip
    # Of use only beside another one.
    beside: dict[str, tuple[str, Any, Any]] = {
        "announce_seconds": ("sounds_directory", "/srv/sounds", 45),
        "prompt_read_back": ("read_back", True, "k"),
        "prompt_call_over": ("longest_call_seconds", 600, "q"),
    }
    assert {*other, *beside} == set(AsteriskSettings.model_fields)
    usual = render(AsteriskSettings(), AMI)
    assert [name for name, value in other.items() if render(AsteriskSettings(**{name: value}), AMI) == usual] == []
    for name, (needs, needed, value) in beside.items():
        without = render(AsteriskSettings(**{needs: needed}), AMI)
        assert render(AsteriskSettings(**{needs: needed, name: value}), AMI) != without, name


TLS = {"transports": "udp,tcp,tls", "tls_certfile": "/c.pem", "tls_keyfile": "/k.pem"}
REGISTRATION = {"trunk_kind": "registration", "trunk_server": "sip.example", "trunk_username": "u",
                "trunk_password": "p"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "given"),
    [
        ("transports", "tcp", {}),
        ("tls_port", 5099, TLS),
        ("tls_certfile", "/other.pem", TLS),
        ("tls_keyfile", "/other.pem", TLS),
        ("tls_cafile", "/other.pem", TLS),
        ("trunk_kind", "registration", {**REGISTRATION, "trunk_kind": "pbx"}),
        ("trunk_kind", "address", {**REGISTRATION, "trunk_kind": "pbx"}),
        ("trunk_transport", "tls", TLS),
        ("trunk_transport", "udp", REGISTRATION),
        ("trunk_server", "other.example:5080", REGISTRATION),
        ("trunk_username", "other", REGISTRATION),
        ("trunk_password", "other", REGISTRATION),
        ("trunk_expiration_seconds", 111, REGISTRATION),
        ("trunk_retry_seconds", 7, REGISTRATION),
        ("trunk_srtp", "optional", {**TLS, "trunk_transport": "tls"}),
        ("node_srtp", "required", TLS),
    ],
)
def test_each_sip_setting_is_used(name: str, value: object, given: dict[str, Any]) -> None:
    usual, changed = (
        render(AsteriskSettings(), AMI, SipSettings.model_validate(settings))
        for settings in (given, {**given, name: value})
    )
    assert usual != changed


def test_nodes_and_trunk_are_the_only_ones_whose_sip_is_looked_at() -> None:
    pjsip = render(AsteriskSettings(trunk_networks="192.0.2.0/24"), AMI, nodes="198.51.100.7,2001:db8::/32,n.example")
    lines = pjsip["pjsip.conf"].splitlines()
    assert [line for line in lines if line.startswith(("deny", "permit"))] == [
        "deny = 0.0.0.0/0", "deny = ::/0",
        "permit = 192.0.2.0/24", "permit = 198.51.100.7/32", "permit = 2001:db8::/32",
    ]  # fmt: skip
    assert "deny" not in render(AsteriskSettings(), AMI, nodes="any")["pjsip.conf"]


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"TRUNK_KIND": "registration"}, "CALLYARD_SIP_TRUNK_PASSWORD, CALLYARD_SIP_TRUNK_SERVER"),
        ({"TRUNK_KIND": "pbx", "TRUNK_PASSWORD": "p"}, "need CALLYARD_SIP_TRUNK_USERNAME"),
        ({"TRANSPORTS": "udp,tls"}, "CALLYARD_SIP_TLS_CERTFILE, CALLYARD_SIP_TLS_KEYFILE"),
        ({"TRUNK_TRANSPORT": "tls"}, "CALLYARD_SIP_TRUNK_TRANSPORT is none of CALLYARD_SIP_TRANSPORTS"),
        ({"NODE_SRTP": "optional"}, "CALLYARD_SIP_NODE_SRTP: keys"),
        ({"TRUNK_SRTP": "required"}, "CALLYARD_SIP_TRUNK_SRTP: keys"),
        ({"TRUNK_SERVER": "a b"}, "CALLYARD_SIP_TRUNK_SERVER"),
        ({"TRUNK_PASSWORD": "a\nb"}, "must be one line"),
    ],
)
def test_sip_settings_that_do_not_fit_together_are_refused(environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load(SipSettings, environment={f"CALLYARD_SIP_{name}": value for name, value in environment.items()})


@pytest.mark.parametrize(
    ("ami", "named"),
    [
        ({"host": "192.0.2.1"}, "not loopback"),
        ({"host": "gateway.example"}, "not loopback"),
        ({"host": "192.0.2.1", "tls": True}, "CALLYARD_AMI_TLS_SERVER_CERTFILE"),
        (
            {"host": "n.example", "tls": True, "tls_server_certfile": "/c", "tls_server_keyfile": "/k"},
            "CALLYARD_AMI_BIND",
        ),
        (
            {"tls": True, "tls_plain_port": 5038, "tls_server_certfile": "/c", "tls_server_keyfile": "/k"},
            "are both 5038",
        ),
    ],
)
def test_manager_interface_is_on_loopback_or_speaks_tls(ami: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueRefusedError, match=named):
        render(AsteriskSettings(), AmiSettings.model_validate({"secret": "s", **ami}))


def test_files_for_an_asterisk_of_ones_own() -> None:
    files = render(AsteriskSettings(), AmiSettings(secret="s", host="asterisk"), join=True)
    assert sorted(files) == names(join=True)
    assert all(
        name.endswith("_callyard.conf") and owned(files).is_ours(name, content) for name, content in files.items()
    )


def test_what_is_printed_holds_no_secret(tmp_path: Path) -> None:
    sip = SipSettings.model_validate({**REGISTRATION, "trunk_password": "hunter2"})
    owned(render(AsteriskSettings(), AmiSettings(secret="first"), sip)).write(tmp_path)
    other = render(AsteriskSettings(), AmiSettings(secret="other"), SipSettings.model_validate(REGISTRATION))
    text = owned(other).differences(tmp_path)
    assert [secret for secret in ("first", "other", "hunter2") if secret in text] == []
    assert ("-secret = (not shown)" in text, "-password = (not shown)" in text) == (True, True)


def test_writes_updates_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    out = tmp_path / "etc"
    assert owned(render(AsteriskSettings(), AMI)).write(out) == names()
    assert {path.name for path in out.iterdir()} == set(names())
    assert (out / "manager.conf").stat().st_mode & 0o777 == MODE
    changed = owned(render(AsteriskSettings(lot_size=5), AMI))
    assert "+parkpos => 1-5\n" in changed.differences(out)
    assert changed.write(out) == ["res_parking.conf"]
    assert (changed.write(out), changed.differences(out)) == ([], "")


@pytest.mark.parametrize("edited", [True, False])
def test_foreign_or_edited_file_is_left_alone_and_nothing_is_written(tmp_path: Path, edited: bool) -> None:
    files = render(AsteriskSettings(), AMI)
    if edited:
        owned(files).write(tmp_path)
        (tmp_path / "pjsip.conf").write_text(files["pjsip.conf"] + "; by hand\n")
    else:
        (tmp_path / "pjsip.conf").write_text("[mine]\n")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(ForeignFileError, match=r"pjsip\.conf"):
        owned(render(AsteriskSettings(sip_port=5070, lot_size=3), AMI)).write(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["render", "asterisk", "--out", str(tmp_path / "etc")]
    assert main(words) == 2
    assert "CALLYARD_AMI_SECRET is not set" in capsys.readouterr().err
    monkeypatch.setenv("CALLYARD_AMI_SECRET", "secret")
    assert main([*words, "--diff"]) == 1
    assert "+secret = (not shown)" in capsys.readouterr().out
    assert not (tmp_path / "etc").exists()
    assert main(words) == 0
    assert main([*words, "--diff"]) == 0
    (tmp_path / "etc" / "rtp.conf").write_text("mine\n")
    assert main(words) == 1
    assert "rtp.conf" in capsys.readouterr().err
