"""One HTTP request, answered within a time and a size: what ``getMeetings`` needs, without a web framework.

It never follows a redirect, and never reads more than `MAX_BYTES` or longer than it is told to.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import ssl
from typing import Any, cast
from urllib.parse import urlsplit

from callyard.tasks import within

MAX_BYTES = 16 * 1024 * 1024
"""An attendee takes some 400 bytes of a list of meetings."""


class WebError(Exception):
    """No usable answer. The text says why."""


async def get(url: str, path: str, seconds: float) -> bytes:
    """The body of the answer, with status 200, to a GET of ``path`` at the scheme, host and port of ``url``.

    Raises `WebError`. A server's certificate is checked against the system's authorities.
    """
    try:
        answer = await within(_exchange(url, path), seconds)
    except asyncio.TimeoutError:
        raise WebError(f"no answer from {url} within {seconds:g} s") from None
    except OSError as error:  # TLS's errors are OSErrors, too
        raise WebError(f"{url} can't be reached: {error}") from None
    return _body(url, answer)


async def _exchange(url: str, path: str) -> bytes:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    context = ssl.create_default_context() if secure else None
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/xml\r\nUser-Agent: callyard\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        answer = bytearray()
        while data := await reader.read(256 * 1024):
            answer += data
            if len(answer) > MAX_BYTES:
                raise WebError(f"{url} answers with more than {MAX_BYTES} bytes")
        return bytes(answer)
    finally:
        writer.transport.abort()


class _Answered(io.BytesIO):
    """What `http.client` takes for a socket."""

    def makefile(self, *_: object) -> _Answered:
        return self


def _body(url: str, answer: bytes) -> bytes:
    response = http.client.HTTPResponse(cast("Any", _Answered(answer)), method="GET")
    try:
        response.begin()
        body = response.read()
    except (http.client.HTTPException, ValueError) as error:
        raise WebError(f"what {url} answers is no whole HTTP answer: {error!r:.100}") from None
    if response.status != 200:
        raise WebError(f"{url} answers with status {response.status} {response.reason:.60}")
    return body
