"""A small SIP user agent for what SIPp can't do in these tests: TLS with SDES, a registrar, a scanner.

It builds requests by hand, reads answers, and answers digest challenges (RFC 3261, 22.4). One transaction at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

SDP_PLAIN = "m=audio 40000 RTP/AVP 8 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\n"
SDP_SRTP = (
    "m=audio 40000 RTP/SAVP 8 101\r\n"
    "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:d0RmdmcmVCspeEc3QGZiNWpVLFJhQX1cfHAwJSoj\r\n"
    "a=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\n"
)


class Answer:
    """A SIP message that was received."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.decode("utf-8", errors="replace").partition("\r\n\r\n")
        self.first, *lines = head.split("\r\n")
        self.headers = [tuple(line.split(": ", 1)) for line in lines if ": " in line]

    @property
    def status(self) -> int:
        return int(self.first.split(" ")[1])

    def __getitem__(self, name: str) -> str:
        return next((header[1] for header in self.headers if header[0].lower() == name.lower()), "")

    def all(self, name: str) -> list[str]:
        return [header[1] for header in self.headers if header[0].lower() == name.lower()]


def digest(challenge: str, method: str, uri: str, user: str, password: str) -> str:
    """The ``Authorization`` for a challenge by MD5, with or without qop."""
    fields = dict(re.findall(r'(\w+)="?([^",]+)"?', challenge))

    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    first, second = md5(f"{user}:{fields['realm']}:{password}"), md5(f"{method}:{uri}")
    more = ""
    if "qop" in fields:
        response = md5(f"{first}:{fields['nonce']}:00000001:abcd:auth:{second}")
        more = ', qop=auth, nc=00000001, cnonce="abcd"'
    else:
        response = md5(f"{first}:{fields['nonce']}:{second}")
    opaque = f', opaque="{fields["opaque"]}"' if "opaque" in fields else ""
    return (
        f'Digest username="{user}", realm="{fields["realm"]}", nonce="{fields["nonce"]}", uri="{uri}",'
        f' response="{response}", algorithm=MD5{opaque}{more}'
    )


class UserAgent:
    """One connection to a gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, transport: str) -> None:
        self._reader = reader
        self._writer = writer
        self._transport = transport
        self._call = uuid.uuid4().hex
        self._sequence = 0
        self._tag = uuid.uuid4().hex[:8]
        host, port = writer.get_extra_info("sockname")[:2]
        self._address = f"{host}:{port}"

    def send(self, method: str, uri: str, body: str = "", *, to: str = "", extra: str = "") -> None:
        """Write a request."""
        if method not in {"ACK", "CANCEL"}:
            self._sequence += 1
        content = "Content-Type: application/sdp\r\n" if body else ""
        self._writer.write(
            (
                f"{method} {uri} SIP/2.0\r\nVia: SIP/2.0/{self._transport} {self._address};rport;"
                f"branch=z9hG4bK{uuid.uuid4().hex}\r\nMax-Forwards: 70\r\n"
                f'From: "Caller" <sip:4930123@{self._address}>;tag={self._tag}\r\nTo: {to or f"<{uri}>"}\r\n'
                f"Call-ID: {self._call}\r\nCSeq: {self._sequence} {method}\r\n"
                f"Contact: <sip:4930123@{self._address};transport={self._transport.lower()}>\r\n"
                f"{extra}{content}Content-Length: {len(body)}\r\n\r\n{body}"
            ).encode()
        )

    async def receive(self, seconds: float = 5) -> Answer:
        """The next message. Raises `asyncio.TimeoutError` where none comes."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), seconds)
        length = re.search(rb"(?im)^(?:Content-Length|l)\s*:\s*(\d+)", head)
        return Answer(head + await self._reader.readexactly(int(length[1]) if length else 0))

    async def final(self, seconds: float = 5) -> Answer:
        """The final answer to what was sent last."""
        while (answer := await self.receive(seconds)).status < 200:
            pass
        return answer

    async def request(
        self, method: str, uri: str, body: str = "", credentials: tuple[str, str] | None = None
    ) -> Answer:
        """A request's final answer; a challenge is answered where there are credentials. An INVITE is acknowledged."""
        self.send(method, uri, body)
        answer = await self.final()
        if method == "INVITE":
            self.send("ACK", uri, to=answer["To"])
        if answer.status == 401 and credentials is not None:
            authorization = digest(answer["WWW-Authenticate"], method, uri, *credentials)
            self.send(method, uri, body, extra=f"Authorization: {authorization}\r\n")
            answer = await self.final()
            if method == "INVITE":
                self.send("ACK", uri, to=answer["To"])
        return answer

    async def hang_up(self, uri: str, answer: Answer) -> None:
        """End the call that this answer began."""
        self.send("BYE", uri, to=answer["To"])
        while (await self.receive()).first.split(" ")[0] == "BYE":
            pass


def sdp(media: str) -> str:
    return f"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n{media}"


@asynccontextmanager
async def agent(port: int, *, tls: ssl.SSLContext | None = None, name: str | None = None) -> AsyncIterator[UserAgent]:
    """Connected to a gateway on loopback by TCP, or TLS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name if tls else None)
    try:
        yield UserAgent(reader, writer, "TCP" if tls is None else "TLS")
    finally:
        writer.close()


class Registrar(asyncio.DatagramProtocol):
    """A provider's registrar over UDP: challenges, checks the digest, and keeps what it accepted."""

    NONCE = "c0ffee"

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self.accepted: list[Answer] = []
        self.refused: list[Answer] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # uvloop's is none by its class
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        request = Answer(data)
        if not request.first.startswith("REGISTER "):
            return
        challenge = f'Digest realm="provider", nonce="{self.NONCE}", algorithm=MD5'
        given, uri = request["Authorization"], request.first.split(" ")[1]
        wanted = re.search(r'response="(\w+)"', digest(challenge, "REGISTER", uri, self._user, self._password))
        assert wanted is not None
        if not given:
            status, more = "401 Unauthorized", f"WWW-Authenticate: {challenge}\r\n"
        elif f'response="{wanted[1]}"' in given and f'username="{self._user}"' in given:
            status, more = "200 OK", f"Contact: {request['Contact']};expires=300\r\nExpires: 300\r\n"
            self.accepted.append(request)
        else:
            status, more = "403 Forbidden", ""
            self.refused.append(request)
        kept = "".join(
            f"{name}: {value}\r\n" for name in ("Via", "From", "Call-ID", "CSeq") for value in request.all(name)
        )
        assert self._transport is not None
        answer = f"SIP/2.0 {status}\r\n{kept}To: {request['To']};tag=registrar\r\n{more}Content-Length: 0\r\n\r\n"
        self._transport.sendto(answer.encode(), addr)


@asynccontextmanager
async def registrar(user: str, password: str) -> AsyncIterator[Registrar]:
    """A registrar on a free port of loopback."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: Registrar(user, password), local_addr=("127.0.0.1", 0)
    )
    try:
        yield protocol
    finally:
        transport.close()


class TlsNode:
    """A node's SIP side over TLS: takes each call, by SRTP with SDES alone, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Answer] = []
        self.port = 0

    def uri(self, number: str) -> str:
        return f"sip:{number}@127.0.0.1:{self.port};transport=tls"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what one connection asks until it ends."""
        connection = UserAgent(reader, writer, "TLS")
        try:
            while True:
                request = await connection.receive(60)
                self.requests.append(request)
                if (method := request.first.split(" ")[0]) != "ACK":
                    writer.write(self._answer(request, method).encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway closed it
        finally:
            writer.close()

    def _answer(self, request: Answer, method: str) -> str:
        kept = "".join(
            f"{name}: {value}\r\n" for name in ("Via", "From", "Call-ID", "CSeq") for value in request.all(name)
        )
        to, body = request["To"], ""
        if ";tag=" not in to:
            to += ";tag=node"
        status = "200 OK"
        if method == "INVITE":
            body = sdp(SDP_SRTP)
            if "RTP/SAVP" not in request.body:
                status, body = "488 Not Acceptable Here", ""
        content = "Content-Type: application/sdp\r\n" if body else ""
        return (
            f"SIP/2.0 {status}\r\n{kept}To: {to}\r\nContact: <{self.uri('node')}>\r\n"
            f"{content}Content-Length: {len(body)}\r\n\r\n{body}"
        )


@asynccontextmanager
async def tls_node(tls: ssl.SSLContext) -> AsyncIterator[TlsNode]:
    """A node that is called over TLS, on a free port of loopback."""
    node = TlsNode()
    server = await asyncio.start_server(node.serve, "127.0.0.1", 0, ssl=tls)
    node.port = server.sockets[0].getsockname()[1]
    try:
        yield node
    finally:
        server.close()
