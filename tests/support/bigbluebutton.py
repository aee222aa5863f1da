"""A BigBlueButton as its node sees it: messages on a real Redis, and a double of the API's ``getMeetings``.

The double answers as the API's documentation and its template say (``get-meetings.ftlx``), checks the checksum as
``ParamsProcessorUtil.isChecksumSame`` does, and takes a meeting from its list only some time after its end was said.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from typing import Any

import orjson

from callyard.parts import redis
from fs_hooks import resp
from fs_hooks.meetings import CHANNEL

SECRET = "8cd8ef52e8e101574e400365b55e11a6"
CHECKSUM_ERROR = (
    "<response><returncode>FAILED</returncode><messageKey>checksumError</messageKey>"
    "<message>Checksums do not match</message></response>"
)


def internal_id(external: str, created: int) -> str:
    """A meeting's internal id, as bbb-web makes it."""
    return f"{hashlib.sha1(external.encode()).hexdigest()}-{created}"


def created(number: str, instance: str, created_ms: int, *, breakout: bool = False) -> dict[str, Any]:
    """``MeetingCreatedEvtMsg``, with the props of Meeting2x.scala (some of their many fields)."""
    props = {
        "meetingProp": {"name": "Demo 'Meeting', ünï", "extId": "demo", "intId": instance, "isBreakout": breakout},
        "breakoutProps": {"parentId": "", "sequence": 0, "freeJoin": False, "breakoutRooms": [], "record": False},
        "durationProps": {"duration": 0, "createdTime": created_ms, "createdDate": "Tue Nov 24 00:00:00 UTC 2026"},
        "password": {"moderatorPass": "mp", "viewerPass": "ap"},
        "welcomeProp": {"welcomeMsg": "Call 030 12345 and enter 49123", "welcomeMsgForModerators": ""},
        "voiceProp": {"telVoice": number, "voiceConf": number, "dialNumber": "613-555-1234", "muteOnStart": False},
        "metadataProp": {"metadata": {"bbb-origin": "Greenlight"}},
    }
    return message("MeetingCreatedEvtMsg", {"props": props})


def message(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """A message as akka-apps sends it (MsgBuilder.scala)."""
    return {
        "envelope": {"name": name, "routing": {"sender": "bbb-apps-akka"}, "timestamp": 1795422240543},
        "core": {"header": {"name": name}, "body": body},
    }


class Meeting:
    """One meeting in the double's list."""

    def __init__(self, number: str, created_ms: int, *, breakout: bool) -> None:
        self.number = number
        self.created_ms = created_ms
        self.breakout = breakout
        self.forcibly_ended = False
        self.instance = internal_id(f"{number}-{breakout}", created_ms)

    def xml(self) -> str:
        """As get-meetings.ftlx writes it."""
        attendee = (
            "<attendee><userID>u1</userID><fullName>Ann &amp; Bob</fullName><role>MODERATOR</role>"
            "<customdata><voiceBridge>11111</voiceBridge></customdata></attendee>"
        )
        return (
            f"<meeting><meetingName>{escape('Demo <Meeting>')}</meetingName><meetingID>demo</meetingID>"
            f"<internalMeetingID>{self.instance}</internalMeetingID><createTime>{self.created_ms}</createTime>"
            f"<createDate>Tue Nov 24 00:00:00 UTC 2026</createDate><voiceBridge>{self.number}</voiceBridge>"
            "<dialNumber>613-555-1234</dialNumber><attendeePW>ap</attendeePW><moderatorPW>mp</moderatorPW>"
            "<running>false</running><duration>0</duration><hasUserJoined>false</hasUserJoined>"
            f"<hasBeenForciblyEnded>{str(self.forcibly_ended).lower()}</hasBeenForciblyEnded>"
            "<startTime>1795422240543</startTime><endTime>0</endTime>"
            f"<attendees>{attendee}</attendees><metadata><voicebridge>22222</voicebridge></metadata>"
            f"<isBreakout>{str(self.breakout).lower()}</isBreakout></meeting>"
        )


class BigBlueButton:
    """Made by `running`."""

    def __init__(self, channel: redis.Redis, directory: Path) -> None:
        self.redis = channel
        self.directory = directory
        self.secret = SECRET
        self.port = 0
        self.meetings: dict[str, Meeting] = {}
        self.lists = 0
        self.requests = 0
        self.raw: bytes | None = None
        """What is answered instead of a list: all of the HTTP answer."""
        self.answering = asyncio.Event()
        self.answering.set()
        self._server: asyncio.Server | None = None
        self._clock = time.time_ns() // 1_000_000
        self._serving: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Serve the API, at the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop_listening(self) -> None:
        """bbb-web is down."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def create(self, number: str, *, say: bool = True, breakout: bool = False) -> str:
        """A meeting begins: it is listed first and said then (or not). Returns its internal id."""
        self._clock += 1
        meeting = Meeting(number, self._clock, breakout=breakout)
        self.meetings[meeting.instance] = meeting
        if say:
            await self.publish(created(number, meeting.instance, meeting.created_ms, breakout=breakout))
        return meeting.instance

    async def end(self, instance: str, *, say: bool = True, listed: bool = False) -> None:
        """A meeting ends; ``listed``: bbb-web has not taken it from its list yet."""
        if say:
            await self.publish(message("MeetingEndedEvtMsg", {"meetingId": instance}))
        if not listed:
            del self.meetings[instance]

    async def publish(self, what: dict[str, Any] | bytes) -> int:
        """Publish a message; returns how many received it."""
        data = what if isinstance(what, bytes) else orjson.dumps(what)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.redis.port)
        try:
            writer.write(b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n" % (len(CHANNEL), CHANNEL.encode()))
            writer.write(b"$%d\r\n%s\r\n" % (len(data), data))
            replies, replied = resp.Reader(), []
            while not replied:
                replied = replies.feed(await reader.read(1000))
            assert isinstance(replied[0], int), replied
            return replied[0]
        finally:
            writer.close()

    async def close(self) -> None:
        """End the double; Redis ends by itself."""
        self.stop_listening()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests += 1
            await self.answering.wait()
            writer.write(self._answer(request))
            await writer.drain()
            self.lists += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it left
        finally:
            self._serving.discard(task)
            writer.close()

    def _answer(self, request: str) -> bytes:
        if self.raw is not None:
            return self.raw
        target = request.split(" ")[1]
        call, _, query = target.removeprefix("/bigbluebutton/api/").partition("?")
        given = query.partition("checksum=")[2].partition("&")[0]
        rest = query.replace(f"&checksum={given}", "").replace(f"checksum={given}", "")
        hashed = {40: hashlib.sha1, 64: hashlib.sha256}.get(len(given), hashlib.sha512)
        if call != "getMeetings" or hashed(f"{call}{rest}{self.secret}".encode()).hexdigest() != given:
            return http(CHECKSUM_ERROR)
        if not self.meetings:
            return http(
                "<response><returncode>SUCCESS</returncode><meetings/><messageKey>noMeetings</messageKey>"
                "<message>no meetings were found on this server</message></response>"
            )
        listed = "".join(meeting.xml() for meeting in self.meetings.values())
        return http(f"<response><returncode>SUCCESS</returncode><meetings>{listed}</meetings></response>")


def http(body: str | bytes, status: str = "200 OK") -> bytes:
    """An HTTP answer, in chunks as bbb-web's server sends it."""
    data = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/xml;charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    half = len(data) // 2
    pieces = [piece for piece in (data[:half], data[half:]) if piece]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[BigBlueButton]:
    """A BigBlueButton without meetings."""
    async with redis.running(directory) as channel:
        made = BigBlueButton(channel, directory)
        await made.listen()
        try:
            yield made
        finally:
            await made.close()
