"""Trunks, TLS, SRTP and scanners at a real Asterisk, and an Asterisk of one's own that joins."""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from ast_config.render import render
from callyard.parts import asterisk, sipp
from callyard.parts.prepare import INSTANCE, found
from callyard.processes import free_port
from callyard.settings import AmiSettings, SipSettings
from tests.support.asterisk import conference_number, connected
from tests.support.sip import SDP_PLAIN, SDP_SRTP, agent, registrar, sdp, tls_node
from tests.support.wait import until

pytestmark = pytest.mark.asterisk

LOOPBACK = "127.0.0.1"


def inside(directory: Path, name: str) -> str:
    """A file of the gateway's directory, as Asterisk sees it."""
    return f"{INSTANCE if found().asterisk_root else directory.absolute()}/{name}"


def certificate(directory: Path) -> ssl.SSLContext:
    """A certificate for loopback with its key, for Asterisk; and a context that trusts it and no other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway.test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    alternatives = x509.SubjectAlternativeName(
        [x509.DNSName("gateway.test"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
    )
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1)).add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(made.public_bytes(pem))
    (directory / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ssl.create_default_context(cafile=str(directory / "cert.pem"))


async def channels(gateway: asterisk.Gateway) -> int:
    shown = re.search(r"(\d+) active channel", await gateway.cli("core show channels count"))
    assert shown is not None
    return int(shown[1])


async def test_a_trunk_by_registration_answers_the_challenge_and_keeps_registered(tmp_path: Path) -> None:
    async with registrar("yard", "pass;word") as provider:
        sip = SipSettings(
            trunk_kind="registration", trunk_server=f"{LOOPBACK}:{provider.port}", trunk_username="yard",
            trunk_password=SecretStr("pass;word"), trunk_transport="udp",
        )  # fmt: skip
        async with asterisk.running(tmp_path, sip=sip) as gateway:
            await until(lambda: provider.accepted, 15, what=lambda: (provider.refused, gateway.log()))
            assert provider.refused == []

            async def registered() -> bool:
                return "Registered" in await gateway.cli("pjsip show registrations")

            await until(registered, 10)
            async with agent(gateway.sip_port) as trunk:
                uri = f"sip:100@{LOOPBACK}:{gateway.sip_port}"
                answer = await trunk.request("INVITE", uri, sdp(SDP_PLAIN))
                assert answer.status == 200, "the provider's calls need no password: it is known by its address"
                await trunk.hang_up(uri, answer)


async def test_a_pbx_has_to_give_its_password(tmp_path: Path) -> None:
    sip = SipSettings(trunk_kind="pbx", trunk_username="pbx", trunk_password=SecretStr("s3cret"))
    async with asterisk.running(tmp_path, sip=sip) as gateway:
        uri = f"sip:100@{LOOPBACK}:{gateway.sip_port}"
        async with agent(gateway.sip_port) as stranger:
            answer = await stranger.request("INVITE", uri, sdp(SDP_PLAIN))
            assert answer.status == 401
            assert 'realm="callyard"' in answer["WWW-Authenticate"]
        async with agent(gateway.sip_port) as stranger:
            answer = await stranger.request("INVITE", uri, sdp(SDP_PLAIN), ("pbx", "guessed"))
            assert answer.status in {401, 403}
            assert await channels(gateway) == 0
        async with agent(gateway.sip_port) as pbx:
            answer = await pbx.request("INVITE", uri, sdp(SDP_PLAIN), ("pbx", "s3cret"))
            assert answer.status == 200
            await pbx.hang_up(uri, answer)


async def test_tls_with_srtp_and_nothing_less_where_it_is_required(tmp_path: Path) -> None:
    trusting = certificate(tmp_path / "tls")
    port = free_port(LOOPBACK)
    sip = SipSettings(
        transports="udp,tcp,tls", tls_port=port, trunk_transport="tls", trunk_srtp="required",
        tls_certfile=inside(tmp_path, "tls/cert.pem"), tls_keyfile=inside(tmp_path, "tls/key.pem"),
        tls_cafile=inside(tmp_path, "tls/cert.pem"),
    )  # fmt: skip
    async with asterisk.running(tmp_path, sip=sip) as gateway:
        uri = f"sip:100@{LOOPBACK}:{port};transport=tls"
        async with agent(port, tls=trusting, name="gateway.test") as trunk:
            answer = await trunk.request("INVITE", uri, sdp(SDP_SRTP))
            assert answer.status == 200, answer.first
            assert re.search(r"m=audio \d+ RTP/SAVP ", answer.body)
            assert "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" in answer.body
            await trunk.hang_up(uri, answer)
        async with agent(port, tls=trusting, name="gateway.test") as trunk:
            assert (await trunk.request("INVITE", uri, sdp(SDP_PLAIN))).status == 488, "no audio in the clear"
        async with agent(gateway.sip_port) as trunk:
            answer = await trunk.request("INVITE", f"sip:100@{LOOPBACK}:{gateway.sip_port}", sdp(SDP_SRTP))
            assert answer.status >= 400, "keys must not travel in the clear"
        with pytest.raises(ssl.SSLError):
            async with agent(port, tls=_old(), name="gateway.test"):
                pass


def _serving(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context


async def test_a_node_is_called_over_tls_and_speaks_srtp(tmp_path: Path) -> None:
    certificate(tmp_path / "tls")
    certificate(tmp_path / "stranger")
    sip = SipSettings(
        transports="udp,tcp,tls", tls_port=free_port(LOOPBACK), node_srtp="required",
        tls_certfile=inside(tmp_path, "tls/cert.pem"), tls_keyfile=inside(tmp_path, "tls/key.pem"),
        tls_cafile=inside(tmp_path, "tls/cert.pem"),
    )  # fmt: skip
    number = conference_number()
    async with (
        asterisk.running(tmp_path, sip=sip, dial_seconds=3) as gateway,
        connected(gateway.ami) as client,
        tls_node(_serving(tmp_path / "stranger")) as impostor,
        tls_node(_serving(tmp_path / "tls")) as node,
        sipp.calling(tmp_path / "sipp", (LOOPBACK, gateway.sip_port), [sipp.Call("4930123", f"{number}#")]) as callers,
    ):
        parked = await client.event("ParkedCall", CALLYARD_CONFERENCE=number)
        await client.redirect(parked.channel, "1x1", impostor.uri(number))
        failed = await client.event("ParkedCall", CALLYARD_MARK="1x1", timeout=15)
        assert failed.variables["CALLYARD_FAILED"].startswith("1x1/")
        assert impostor.requests == [], "a certificate that no CA of ours made: the node is told nothing"
        await client.redirect(parked.channel, "1x2", node.uri(number))
        await client.event("DialEnd", CALLYARD_MARK="1x2", CALLYARD_STATE="connected", timeout=15)
        invite = node.requests[0]
        assert invite.first == f"INVITE {node.uri(number)} SIP/2.0"
        assert re.search(r"m=audio \d+ RTP/SAVP ", invite.body)
        assert "a=crypto:" in invite.body
        await callers.hang_up()
        await until(lambda: any(request.first.startswith("BYE ") for request in node.requests))


def _old() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


async def test_a_scanner_gets_no_answer_beyond_what_sip_demands(tmp_path: Path) -> None:
    ami = AmiSettings(host=LOOPBACK, port=free_port(LOOPBACK), secret=SecretStr("secret"))
    settings = asterisk.private_settings(tmp_path, found(), trunk_networks="192.0.2.0/24")
    files = {"pjsip.conf": render(settings, ami, None, "192.0.2.0/24")["pjsip.conf"]}
    async with asterisk.running(tmp_path, ami=ami, files=files, sip_port=settings.sip_port) as gateway:
        here = f"{LOOPBACK}:{gateway.sip_port}"
        told = []
        for method, uri in (
            ("OPTIONS", f"sip:{here}"), ("REGISTER", f"sip:{here}"), ("INVITE", f"sip:100@{here}"),
            ("INVITE", f"sip:callyard-trunk@{here}"), ("SUBSCRIBE", f"sip:100@{here}"), ("MESSAGE", f"sip:100@{here}"),
        ):  # fmt: skip
            async with agent(gateway.sip_port) as scanner:
                answer = await scanner.request(method, uri, sdp(SDP_PLAIN) if method == "INVITE" else "")
                assert answer.status == 403, (method, answer.first)
                said = {name.lower() for name, _ in answer.headers}
                told.append(said - {"via", "call-id", "from", "to", "cseq", "content-length"})
                assert "asterisk" not in " ".join(value for _, value in answer.headers).lower()
        assert all(names <= {"server"} for names in told), told
        assert await channels(gateway) == 0


OWN = {
    "extensions.conf": """[general]
static = yes
[own-trunk]
exten => _X.,1,NoOp(a dialplan of one's own)
 same => n,GotoIf($["${{EXTEN}}" = "900"]?callyard-entry,s,1)
 same => n,Hangup(1)
#include {etc}/callyard/extensions_callyard.conf
""",
    "pjsip.conf": """[global]
type = global
[own-tcp]
type = transport
protocol = tcp
bind = 127.0.0.1:{port}
[own-udp]
type = transport
protocol = udp
bind = 127.0.0.1:{port}
[own]
type = endpoint
context = own-trunk
disallow = all
allow = ulaw,alaw
identify_by = ip
media_address = 127.0.0.1
[own]
type = identify
endpoint = own
match = 127.0.0.1
#include {etc}/callyard/pjsip_callyard.conf
""",
    "manager.conf": """[general]
enabled = yes
bindaddr = 127.0.0.1
port = {ami}
[others]
secret = other
read = all
#include {etc}/callyard/manager_callyard.conf
""",
    "acl.conf": "#include {etc}/callyard/acl_callyard.conf\n",
    "musiconhold.conf": "#include {etc}/callyard/musiconhold_callyard.conf\n",
    "res_parking.conf": "[general]\n#include {etc}/callyard/res_parking_callyard.conf\n",
}
"""An Asterisk of one's own, as docs/gateway.md says: one include in each file, and one Goto."""


async def test_an_asterisk_of_ones_own_joins_by_includes_and_one_goto(tmp_path: Path) -> None:
    ami = AmiSettings(host=LOOPBACK, port=free_port(LOOPBACK), secret=SecretStr("secret"))
    settings = asterisk.private_settings(tmp_path, found())
    etc = inside(tmp_path, "etc")
    joined = tmp_path / "etc" / "callyard"
    joined.mkdir(parents=True)
    for name, content in render(settings, ami, join=True).items():
        (joined / name).write_text(content)
    files = {name: text.format(etc=etc, port=settings.sip_port, ami=ami.port) for name, text in OWN.items()}
    number = conference_number()
    calls = [sipp.Call("4930123", f"{number}#", dials="900")]
    async with (
        asterisk.running(tmp_path, ami=ami, files=files, sip_port=settings.sip_port) as gateway,
        connected(gateway.ami) as client,
        sipp.node(tmp_path / "node") as node,
        sipp.calling(tmp_path / "sipp", (LOOPBACK, gateway.sip_port), calls) as callers,
    ):
        event = await client.event("ParkedCall")
        assert event.variables["CALLYARD_CONFERENCE"] == number
        await client.redirect(event.channel, "1x1", node.uri(number))
        assert [call.conference for call in await node.saw("answered")] == [number]
        await callers.hang_up()
