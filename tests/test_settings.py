"""Settings: all problems at once, nothing misspelt goes unseen, no secret is ever shown."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from callyard import clients
from callyard.records import Source
from callyard.settings import (
    GROUPS,
    AmiSettings,
    BigBlueButtonSettings,
    EslSettings,
    GatewaySettings,
    KafkaSettings,
    NodeSettings,
    PolicySettings,
    SettingsError,
    StreamSettings,
    given,
    load,
    reference,
    variables,
)
from tests.support.certificates import Authority

URI = "sip:{conference}@192.0.2.7:5060;transport=tcp"
SECRET = "correct-horse-battery"


def problems(*groups: type, config: Path | None = None, **environment: str) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(*groups, config=config, environment={f"CALLYARD_{name}": value for name, value in environment.items()})
    assert all(problem in str(raised.value) for problem in raised.value.problems)
    return raised.value.problems


def test_without_any_setting_what_has_defaults_loads() -> None:
    loaded = load(KafkaSettings, StreamSettings, PolicySettings, GatewaySettings, environment={})
    assert loaded[KafkaSettings].bootstrap_servers == "127.0.0.1:9092"
    assert loaded[KafkaSettings].partitions == 12
    assert loaded[GatewaySettings].id


def test_the_environment_is_read_and_typed() -> None:
    environment = {"CALLYARD_NODE_SIP_URI": URI, "CALLYARD_NODE_ID": "node-7", "CALLYARD_NODE_RENEW_SECONDS": "2.5"}
    node = load(NodeSettings, environment=environment)[NodeSettings]
    assert (node.id, node.renew_seconds) == ("node-7", 2.5)
    assert node.uri_of("49123") == "sip:49123@192.0.2.7:5060;transport=tcp"


def test_numbers_and_patterns_are_excluded_whole() -> None:
    node = load(NodeSettings, environment={"CALLYARD_NODE_SIP_URI": URI, "CALLYARD_NODE_EXCLUDE": "99999, 98*,7777?"})
    excluded = node[NodeSettings].excluded
    assert all(excluded.fullmatch(number) for number in ("99999", "98123", "9812345678", "77771"))
    assert not any(excluded.fullmatch(number) for number in ("999990", "19812", "7777", "777712", ""))
    none = load(NodeSettings, environment={"CALLYARD_NODE_SIP_URI": URI, "CALLYARD_NODE_EXCLUDE": ""})
    assert not none[NodeSettings].excluded.fullmatch("99999")
    assert "NODE_EXCLUDE" in problems(NodeSettings, NODE_SIP_URI=URI, NODE_EXCLUDE=".*")[0]


def test_each_source_has_its_own_uri_or_that_of_freeswitch() -> None:
    environment = {"CALLYARD_NODE_SIP_URI": URI, "CALLYARD_NODE_SOURCES": "bigbluebutton, freeswitch"}
    node = load(NodeSettings, environment=environment)[NodeSettings]
    assert node.used_sources == set(Source)
    assert node.uri_of("49123", Source.BIGBLUEBUTTON) == node.uri_of("49123", Source.FREESWITCH)
    environment["CALLYARD_NODE_MEETING_SIP_URI"] = "sips:{conference}@livekit.example.org:5071;transport=tls"
    node = load(NodeSettings, environment=environment)[NodeSettings]
    assert node.uri_of("49123", Source.BIGBLUEBUTTON) == "sips:49123@livekit.example.org:5071;transport=tls"
    assert node.uri_of("49123", Source.FREESWITCH) == "sip:49123@192.0.2.7:5060;transport=tcp"
    for name, value in (("NODE_MEETING_SIP_URI", "sip:49123@x"), ("NODE_SOURCES", "asterisk"), ("NODE_SOURCES", "")):
        assert name in problems(NodeSettings, **{"NODE_SIP_URI": URI, name: value})[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("API_URL", "ftp://x/api"), ("API_URL", "http://"), ("API_URL", "http://x:99999/api"), ("API_URL", "http://x/a b"),
     ("API_URL", "http://user@x/api"), ("SECRET", "two\nlines"), ("SECRET", ""), ("REDIS_PASSWORD", "a\r\nb")],
)  # fmt: skip
def test_bigbluebuttons_settings_are_checked(name: str, value: str) -> None:
    given_ = {"BIGBLUEBUTTON_SECRET": SECRET, f"BIGBLUEBUTTON_{name}": value}
    assert f"CALLYARD_BIGBLUEBUTTON_{name}" in problems(BigBlueButtonSettings, **given_)[0]


def test_all_problems_of_all_groups_come_at_once_each_with_its_variable_and_meaning() -> None:
    found = problems(
        KafkaSettings, NodeSettings, EslSettings, AmiSettings,
        KAFKA_BOOTSTRAP_SERVERS="nowhere", KAFKA_PARTITIONS="many", ESL_PORT="99999", NODE_SIP_URI="sip:49123@node",
        KAFKA_PARTITONS="3",
    )  # fmt: skip
    assert [problem.split()[0].rstrip(":") for problem in sorted(found)] == [
        "CALLYARD_AMI_SECRET",
        "CALLYARD_ESL_PASSWORD",
        "CALLYARD_ESL_PORT",
        "CALLYARD_KAFKA_BOOTSTRAP_SERVERS",
        "CALLYARD_KAFKA_PARTITIONS",
        "CALLYARD_KAFKA_PARTITONS",
        "CALLYARD_NODE_SIP_URI",
    ]
    assert "CALLYARD_AMI_SECRET is not set: The manager user's secret." in found
    assert "CALLYARD_KAFKA_PARTITONS is no setting (did you mean CALLYARD_KAFKA_PARTITIONS?)" in found
    assert any("It means: Brokers as host:port" in problem for problem in found)


@pytest.mark.parametrize("name", ["CALLYARD_CACHE", "CALLYARD_KAFKA_SERVICE_HOST", "CALLYARD_HOOK_PORT_8080_TCP_ADDR"])
def test_what_others_put_into_the_environment_is_no_misspelling(name: str) -> None:
    assert load(StreamSettings, environment={name: "tcp://10.0.0.1:80"})


@pytest.mark.parametrize(
    "template",
    [
        "sip:49123@node", "sip:{conference}{conference}@node", "sip:{conference}@{node}", "sip:{conference}@node\n",
        "{conference}", "sip:{conference}@node;transport=ws", "sip:{conference}@node:70000", "sip:{conference}@a b",
    ],
)  # fmt: skip
def test_a_template_that_makes_no_sip_uri_is_refused(template: str) -> None:
    [problem] = problems(NodeSettings, NODE_SIP_URI=template)
    assert problem.startswith("CALLYARD_NODE_SIP_URI: ")


def test_the_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    config = tmp_path / "callyard.toml"
    config.write_text('[kafka]\npartitions = 3\ntopic_prefix = "yard"\n[ami]\nsecret = "s"\n')
    loaded = load(
        KafkaSettings, AmiSettings, config=config, environment={"CALLYARD_KAFKA_PARTITIONS": "5"}
    )  # fmt: skip
    assert loaded[KafkaSettings].partitions == 5
    assert loaded[KafkaSettings].topic_prefix == "yard"
    assert loaded[AmiSettings].secret.get_secret_value() == "s"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[kafka", "is not TOML"),
        (b"\xff", "is not TOML"),
        (b"partitions = 3\n", "[partitions] is none of kafka, log"),
        (b"[kafak]\npartitions = 3\n", "[kafak] is none of kafka, log"),
        (b"[kafka]\npartitons = 3\n", "[kafka] partitons is unknown (did you mean partitions?)"),
        (b'[kafka]\npartitions = "many"\n', "CALLYARD_KAFKA_PARTITIONS: "),
        (b"[stream]\n[kafka]\npartitions = 0\n", "CALLYARD_KAFKA_PARTITIONS: "),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, content: bytes, says: str) -> None:
    config = tmp_path / "callyard.toml"
    config.write_bytes(content)
    [problem] = problems(KafkaSettings, config=config)
    assert says in problem


def test_a_missing_file_is_one_problem_among_the_others(tmp_path: Path) -> None:
    found = problems(EslSettings, config=tmp_path / "none.toml")
    assert len(found) == 2
    assert found[0] == f"--config {tmp_path / 'none.toml'}: No such file or directory"


def test_a_secret_comes_from_a_file_without_its_last_line_break(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f" {SECRET}\n")
    ami = load(AmiSettings, environment={"CALLYARD_AMI_SECRET_FILE": str(tmp_path / "secret")})[AmiSettings]
    assert ami.secret.get_secret_value() == f" {SECRET}"


def test_a_secret_given_twice_or_from_nowhere_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    [twice] = problems(AmiSettings, AMI_SECRET="other", AMI_SECRET_FILE=str(tmp_path / "secret"))
    assert "are both set" in twice
    found = problems(AmiSettings, AMI_SECRET_FILE=str(tmp_path / "none"))
    assert any(problem.startswith("CALLYARD_AMI_SECRET_FILE: cannot read") for problem in found)


def test_only_secrets_come_from_files(tmp_path: Path) -> None:
    [problem] = problems(KafkaSettings, KAFKA_TOPIC_PREFIX_FILE=str(tmp_path))
    assert "CALLYARD_KAFKA_TOPIC_PREFIX_FILE is no setting" in problem


def test_no_secret_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    environment = {
        "CALLYARD_AMI_SECRET": SECRET,
        "CALLYARD_ESL_PASSWORD": SECRET,
        "CALLYARD_KAFKA_SASL_PASSWORD": SECRET,
        "CALLYARD_KAFKA_SASL_USERNAME": "callyard",
        "CALLYARD_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    }
    loaded = load(KafkaSettings, AmiSettings, EslSettings, environment=environment)
    logging.getLogger("callyard").warning("%s %r", loaded[AmiSettings], vars(loaded))
    shown = [repr(loaded[group]) + str(loaded[group]) + loaded[group].model_dump_json() for group in GROUPS[:1]]
    shown += [repr(loaded[AmiSettings]), str(loaded[EslSettings]), caplog.text]
    assert SECRET not in "".join(shown)
    assert clients.connection(loaded[KafkaSettings])["sasl_plain_password"] == SECRET
    for secret in (f"{SECRET}\r\nAction: Originate", ""):
        try:
            load(
                AmiSettings,
                KafkaSettings,
                environment={**environment, "CALLYARD_AMI_SECRET": secret, "CALLYARD_X": "1"},
            )
        except SettingsError:
            assert SECRET not in traceback.format_exc()
        else:
            pytest.fail("CALLYARD_X is no setting")


def test_a_line_break_in_the_manager_secret_is_refused() -> None:
    [problem] = problems(AmiSettings, AMI_SECRET="s\r\nAction: Originate")
    assert problem.startswith("CALLYARD_AMI_SECRET: ")


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_sasl_needs_a_name_and_a_password(protocol: str) -> None:
    [problem] = problems(KafkaSettings, KAFKA_SECURITY_PROTOCOL=protocol, KAFKA_SASL_USERNAME="callyard")
    assert "CALLYARD_KAFKA_SASL_PASSWORD" in problem


@pytest.mark.parametrize(
    "servers", ["", "kafka", "kafka:", ":9092", "kafka:0", "kafka:99999", "kafka:9092,", "a:1;b:2"]
)
def test_brokers_are_host_and_port(servers: str) -> None:
    [problem] = problems(KafkaSettings, KAFKA_BOOTSTRAP_SERVERS=servers)
    assert "is not host:port" in problem


@pytest.mark.parametrize("servers", ["a:1", "a.example:9092, b-2:9093", "[2001:db8::1]:9092", "192.0.2.1:65535"])
def test_brokers_may_be_several(servers: str) -> None:
    environment = {"CALLYARD_KAFKA_BOOTSTRAP_SERVERS": servers}
    settings = load(KafkaSettings, environment=environment)[KafkaSettings]
    assert clients.connection(settings)["bootstrap_servers"] == [server.strip() for server in servers.split(",")]


def test_given_tells_whether_any_setting_of_a_group_was_set_rightly_or_not(tmp_path: Path) -> None:
    config = tmp_path / "callyard.toml"
    config.write_text('[esl]\nhost = "192.0.2.1"\n')
    assert not given(AmiSettings, environment={"CALLYARD_KAFKA_PARTITIONS": "1"})
    assert given(AmiSettings, environment={"CALLYARD_AMI_PORT": "x"})
    assert given(AmiSettings, environment={"CALLYARD_AMI_SECRET_FILE": "/run/secret"})
    assert given(NodeSettings, EslSettings, config=config, environment={})
    assert not given(NodeSettings, config=config, environment={})


def test_every_setting_has_a_variable_of_its_own_and_a_description() -> None:
    rows = reference()
    assert len({name for name, *_ in rows}) == len(rows) == sum(len(group.model_fields) for group in GROUPS)
    assert {name for name, *_ in rows} <= set(variables())
    assert all(description.endswith(".") and summary for _, _, description, summary in rows)


def test_a_certificate_that_cannot_be_used_is_a_problem_of_the_settings(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("node")
    encrypted = tmp_path / "encrypted.key"
    key = load_pem_private_key(files.key.read_bytes(), None)
    encrypted.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    wanted = "CALLYARD_KAFKA_SSL_CERTFILE and CALLYARD_KAFKA_SSL_KEYFILE: a certificate and its key, not encrypted"
    for key_file in (encrypted, None, tmp_path / "none"):
        settings = KafkaSettings(ssl_cafile=authority.file, ssl_certfile=files.certificate, ssl_keyfile=key_file)
        with pytest.raises(SettingsError, match=wanted):
            clients.ssl_context(settings)
    assert clients.ssl_context(KafkaSettings(ssl_certfile=files.store)).check_hostname
    with pytest.raises(SettingsError, match="CALLYARD_KAFKA_SSL_CAFILE: no CA certificates"):
        clients.ssl_context(KafkaSettings(ssl_cafile=files.key))
