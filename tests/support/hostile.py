"""Hostile input: a named corpus for the real parts, and hypothesis strategies built on it.

Whoever reaches an edge of Callyard may send anything: a caller (SIP headers, so what Asterisk's manager interface says
of him), whoever names a conference (FreeSWITCH's events), whoever may write to a topic (records). The pieces are those
that break out of a line, an AMI action, a dialplan expression, JSON or a buffer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from callyard.records import DialInstruction, Notice, Record, Source, TellInstruction
from tests.support import events

NAME_CHARACTERS = 4_000
MEGABYTE = 1_000_000

TEXTS: Mapping[str, str] = {
    "empty": "",
    "carriage return": "a\rb",
    "line feed": "49123\n",
    "header": "1\r\nVariable: CALLYARD_URI",
    "action": "1\r\n\r\nAction: Hangup\r\nChannel: /.*/\r\n\r\n",
    "event": "1\r\n\r\nEvent: Hangup\r\nUniqueid: 1.0\r\n\r\n",
    "nul": "a\0b",
    "comma": "49123,60,g",
    "ampersand": "49123&SIP/x",
    "semicolon": "49123;user=phone",
    "quotes": '"\'" | "1" = "1',
    "backslash": "a\\,b\\",
    "brackets": ")}]>(",
    "variable": "${EPOCH}",
    "shell": "${CHANNEL(name)}${SHELL(true)}",
    "expression": "$[1 + 1]",
    "percent": "%0d%0a%00%ff%zz%s%n",
    "json": '"}],"type":"caller-left',
    "null": "(null)",
    "path": "../../../etc/passwd",
    "other digits": "\uff14\uff19\uff11\uff12\uff13",  # fullwidth: isdigit() and int() take them
    "control": "\x01\x1b[2J\x7f\x85\u2028\u202e",
    "not a character": "\ufffd\ufffe\U0010ffff",
    "emoji": "\U0001f4de" * 20,
    "digits": "9" * 400,
    "negative": "-1",
    "long name": "n" * NAME_CHARACTERS,
    "megabyte": "m" * MEGABYTE,
}

BYTES: Mapping[str, bytes] = {
    **{name: text.encode() for name, text in TEXTS.items()},
    "invalid utf-8": b"\xff\xfe\xc3\x28\x80",
    "cut utf-8": "\U0001f4de".encode()[:3],
    "surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
}

SHORT_TEXTS = {name: text for name, text in TEXTS.items() if len(text) < MEGABYTE}

text = st.sampled_from(sorted(SHORT_TEXTS.values())) | st.text(max_size=30)
"""Hostile text without lone surrogates: what a decoder can make of bytes."""
data = st.sampled_from(sorted(value for value in BYTES.values() if len(value) < MEGABYTE)) | st.binary(max_size=40)

# --- records: raw JSON, because much of what is hostile there is none of Python's values ------------------------------

DEEP = 1_200

VALUES: Mapping[str, str] = {
    **{f"text {name}": json.dumps(value) for name, value in TEXTS.items()},
    "lone surrogate": '"\\ud800"',
    "surrogates the wrong way round": '"\\udc00\\ud800"',
    "null": "null",
    "true": "true",
    "NaN": "NaN",
    "infinity": "-Infinity",
    "fraction": "1.5",
    "one as a fraction": "1.0",
    "negative": "-1",
    "zero": "0",
    "beyond what a gateway reports": "100001",
    "the largest": str(2**53 - 1),
    "beyond 53 bits": str(2**53),
    "beyond 63 bits": str(2**63),
    "beyond 64 bits": str(2**64),
    "infinite": "1e999",
    "many digits": "9" * 5_000,
    "list": "[]",
    "object": "{}",
    "deep list": "[" * DEEP + "]" * DEEP,
    "less deep list": "[" * 190 + "]" * 190,
    "deep object": '{"a":' * DEEP + "1" + "}" * DEEP,
    "nothing": "",
    "two values": "1,2",
}


def instruction(**changes: Any) -> DialInstruction:
    """A sound dial instruction."""
    values: dict[str, Any] = {
        "gateway_id": events.GATEWAY, "call_id": f"{events.GATEWAY}/1.0", "conference": events.CONFERENCE, "stay": 1,
        "attempt": 1, "sip_uri": f"sip:{events.CONFERENCE}@192.0.2.1:5060;transport=tcp", "node_id": "node-1",
        "source": Source.FREESWITCH, "instance_id": "a", "issued_at_ms": 1, "deadline_ms": 10_001, "partition": 0,
    }  # fmt: skip
    return DialInstruction(**{**values, **changes})


def notice(**changes: Any) -> TellInstruction:
    """A sound instruction to tell a caller something."""
    values: dict[str, Any] = {
        "gateway_id": events.GATEWAY, "call_id": f"{events.GATEWAY}/1.0", "conference": events.CONFERENCE, "stay": 1,
        "attempt": 1, "notice": Notice.REMOVED, "issued_at_ms": 1, "deadline_ms": 30_001, "partition": 0,
    }  # fmt: skip
    return TellInstruction(**{**values, **changes})


EXAMPLES: Mapping[str, tuple[Record, ...]] = {
    "registrations": (events.registered(), events.unregistered()),
    "calls": (
        events.parked(), events.alive(), events.started(), events.connected(), events.failed(), events.left(),
    ),
    "timers": (events.timer(),),
    "dials": (instruction(), notice()),
}  # fmt: skip
"""Sound records of each topic that is read."""


def spoiled(record: Record, field: str, value: str, *, twice: bool = False) -> bytes:
    """A record whose ``field`` has this raw JSON value; ``twice``: after the sound one, under the same name."""
    sound = json.loads(record.encode())
    pairs = [(name, json.dumps(sound[name])) for name in sound if twice or name != field]
    # A lone surrogate, as text, is what no encoder writes; the corpus has it escaped.
    return ("{" + ",".join(f"{json.dumps(name)}:{raw}" for name, raw in [*pairs, (field, value)]) + "}").encode()


def spoiled_records(topic: str) -> Iterator[tuple[str, bytes]]:
    """The corpus of records for one topic, by name: each field with each hostile value, and what is none at all."""
    for record in EXAMPLES[topic]:
        kind = getattr(record, "type", "?")
        for field in [*json.loads(record.encode()), "unknown"]:
            for name, value in VALUES.items():
                yield f"{kind}.{field}: {name}", spoiled(record, field, value)
    for name, value in BYTES.items():
        yield f"no record: {name}", value
    for other, records in EXAMPLES.items():
        for record in records if other != topic else ():
            yield f"of another topic: {other}", record.encode()


@st.composite
def records(draw: st.DrawFn, topic: str) -> bytes:
    """A hostile record of one topic."""
    record = draw(st.sampled_from(EXAMPLES[topic]))
    whole = record.encode()
    match draw(st.sampled_from(["field", "field", "field", "cut", "raw", "foreign", "mixed"])):
        case "field":
            field = draw(st.sampled_from([*json.loads(whole), "unknown", ""]))
            value = draw(st.sampled_from(sorted(VALUES.values())) | text.map(json.dumps) | st.integers().map(str))
            return spoiled(record, field, value, twice=draw(st.booleans()))
        case "cut":
            return whole[: draw(st.integers(0, len(whole)))]
        case "raw":
            return draw(data)
        case "foreign":
            return draw(st.sampled_from([one for ones in EXAMPLES.values() for one in ones])).encode()
        case _:
            at = draw(st.integers(0, len(whole)))
            return whole[:at] + draw(data) + whole[at + draw(st.integers(0, 3)) :]


# --- FreeSWITCH's event socket ----------------------------------------------------------------------------------------


def frame(kind: str, body: bytes, length: bytes | None = None) -> bytes:
    """A frame as FreeSWITCH writes it; ``length`` instead of the body's own."""
    said = b"%d" % len(body) if length is None else length
    return b"Content-Length: %b\nContent-Type: %b\n\n%b" % (said, kind.encode(), body)


def plain_event(**headers: str | bytes) -> bytes:
    """A maintenance event in the plain format, its values as they are given: not escaped."""
    lines = [b"Event-Subclass: conference%3A%3Amaintenance", b"Action: conference-create"]
    for name, value in headers.items():
        raw = value.encode() if isinstance(value, str) else value
        lines.append(b"%b: %b" % (name.replace("_", "-").encode(), raw))
    return frame("text/event-plain", b"\n".join(lines) + b"\n\n")


def json_event(**headers: str) -> bytes:
    """A maintenance event in the JSON format; values are raw JSON."""
    pairs = {"Event_Subclass": '"conference::maintenance"', "Action": '"conference-create"', **headers}
    body = ",".join(f'"{name.replace("_", "-")}":{value}' for name, value in pairs.items())
    return frame("text/event-json", ("{" + body + "}").encode())


READABLE_FRAMES: Mapping[str, bytes] = {
    **{f"plain name: {name}": plain_event(Conference_Name=v, Conference_Unique_ID="a-1") for name, v in BYTES.items()},
    **{f"plain instance: {name}": plain_event(Conference_Name="49123", Conference_Unique_ID=v)
       for name, v in BYTES.items()},
    **{f"plain member: {name}": plain_event(Caller_Caller_ID_Name=v) for name, v in BYTES.items()},
    **{f"json name: {name}": json_event(Conference_Name=v, Conference_Unique_ID='"a-2"') for name, v in VALUES.items()},
    **{f"json instance: {name}": json_event(Conference_Name='"49123"', Conference_Unique_ID=v)
       for name, v in VALUES.items()},
    **{f"json member: {name}": json_event(Caller_Caller_ID_Name=v) for name, v in VALUES.items()},
    "unknown type": frame("log/data", b"hi"),
    "empty event": frame("text/event-json", b""),
    "event with a body that is cut": frame("text/event-plain", b"Content-Length: 99\n\nx"),
    "notice that lingers": b"Content-Type: text/disconnect-notice\nContent-Disposition: linger\n\n",
}  # fmt: skip
"""Whole frames: what comes after them must still be read on the same connection."""

BREAKING_FRAMES: Mapping[str, bytes] = {
    **{f"length {length!r}": frame("text/event-plain", b"a: b\n\n", length)
       for length in (b"-1", b"99999999999", b"16777217", b"1e3", b"0x10", b"", b" ", b"5 5", b"\xff")},
    "length twice": b"Content-Length: 1\nContent-Length: 2\nContent-Type: text/event-json\n\n{}",
    "no type": b"Content-Length: 2\n\n{}",
    "no colon": b"this is no head line\n\n",
    "nul in a name": b"Content\0-Type: auth/request\n\n",
    "carriage returns": b"Content-Type: auth/request\r\n\r\n" + b"x" * 9_000,
    "long name": b"n" * NAME_CHARACTERS + b": x\n\n",
    "long line": b"Content-Type: " + b"x" * 9_000 + b"\n\n",
    "endless line": b"x" * MEGABYTE,
    "endless head": b"A: b\n" * 20_000,
    "an answer nobody asked for": frame("api/response", b"[]"),
}  # fmt: skip
"""What ends the connection: the position in the stream is lost."""

_frames = sorted(value for frames in (READABLE_FRAMES, BREAKING_FRAMES) for value in frames.values()
                 if len(value) < 100_000)  # fmt: skip


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A hostile piece of the event socket's stream."""
    match draw(st.sampled_from(["corpus", "corpus", "plain", "json", "cut", "raw"])):
        case "plain":
            return plain_event(Conference_Name=draw(data), Conference_Unique_ID=draw(data))
        case "json":
            raw = st.sampled_from(sorted(VALUES.values())) | text.map(json.dumps)
            return json_event(Conference_Name=draw(raw), Conference_Unique_ID=draw(raw))
        case "cut":
            whole = draw(st.sampled_from(_frames))
            return whole[: draw(st.integers(0, len(whole)))]
        case "raw":
            return draw(data)
        case _:
            return draw(st.sampled_from(_frames))


# --- Asterisk's manager interface -------------------------------------------------------------------------------------

_VARIABLES = ("CALLYARD_CONFERENCE", "CALLYARD_STAY", "CALLYARD_STATE", "CALLYARD_MARK", "CALLYARD_FAILED")
_SOUND = {"CALLYARD_CONFERENCE": events.CONFERENCE, "CALLYARD_STAY": "1", "CALLYARD_STATE": "parked"}


@st.composite
def manager_headers(draw: st.DrawFn) -> dict[str, str | list[str]]:
    """One manager message about a channel of ours, as panoramisk gives it: often sound but for one value."""
    sound = {**dict.fromkeys(_VARIABLES, ""), **_SOUND}
    for name in draw(st.sets(st.sampled_from(_VARIABLES), max_size=2)):
        sound[name] = draw(text)
    variables = [f"{name}={value}" for name, value in sound.items()]
    if draw(st.booleans()):
        variables.append(f"{draw(st.sampled_from(_VARIABLES))}={draw(text)}")
    headers: dict[str, str | list[str]] = {
        "Event": draw(st.sampled_from(["ParkedCall", "DialBegin", "DialEnd", "Hangup", "Status"])),
        "Cause": draw(text), "BridgeID": draw(text), "DialStatus": draw(st.sampled_from(["ANSWER", "BUSY"]) | text),
    }  # fmt: skip
    for prefix in ("", "Parkee"):
        headers |= {
            f"{prefix}Uniqueid": "1.0",
            f"{prefix}Channel": draw(st.sampled_from(["PJSIP/callyard-trunk-00000000", "Local/1@x-0;2"]) | text),
            f"{prefix}CallerIDNum": draw(text),
        }
    headers |= {"ParkingDuration": draw(text), "Variable": variables}
    headers |= {"ChanVariable": variables, "ParkeeChanVariable": variables}
    for name in draw(st.sets(st.sampled_from(sorted(headers)), max_size=2)):
        if draw(st.booleans()):
            del headers[name]
        elif name != "Event":
            headers[name] = draw(st.lists(text, max_size=3))
    return headers


# --- SIP --------------------------------------------------------------------------------------------------------------

INJECTED_EVENT = "%0d%0a%0d%0aEvent%3a%20Hangup%0d%0aUniqueid%3a%20{uniqueid}%0d%0aCause%3a%2016%0d%0a%0d%0a"
"""In the user of a SIP URI: what Asterisk unescapes, and would write as an event of its own about another caller."""

CALLERS: Mapping[str, str] = {
    "shell in the name": '"${CHANNEL(name)}${SHELL(true)}" <sip:4930123456@x>',
    "commas and quotes in the name": '"a,g\\"\\\\,b;c&SIP/x)" <sip:4930123456@x>',
    "4,000 characters in the name": f'"{"n" * NAME_CHARACTERS}" <sip:4930123456@x>',
    "invalid UTF-8 in the name": '"\udcff\udcfe" <sip:4930123456@x>',
    "line breaks in the name": '"a%0d%0aEvent: Hangup" <sip:4930123456@x>',
    "a variable in the user": "<sip:%24%7bEPOCH%7d%24%7bSHELL(id)%7d@x>",
    "a comma in the user": "<sip:4930,g@x>",
    "an ampersand in the user": "<sip:4930&SIP%2fx@x>",
    "quotes in the user": "<sip:4930%22%20%3d%20%22@x>",
    "4,000 characters in the user": f"<sip:{'4' * NAME_CHARACTERS}@x>",
    "invalid UTF-8 in the user": "<sip:4930%ff%c3123@x>",
    "NUL in the user": "<sip:4930%001234@x>",
    "a header in the user": "<sip:4930%0d%0aParkeeUniqueid%3a%20666.0@x>",
    "a variable of ours in the user": "<sip:4930%0d%0aParkeeChanVariable%3a%20CALLYARD_CONFERENCE=66666@x>",
    "an event in the user": f"<sip:4930{INJECTED_EVENT.format(uniqueid='666.0')}@x>",
}
"""The header From (without its tag) of callers who must be served all the same. Bytes that are no UTF-8 stand as
`surrogateescape` has them."""

OTHER_HEADERS: Mapping[str, str] = {
    "P-Asserted-Identity": '"${SHELL(id)}" <sip:666%0d%0aX%3a%20y@x>',
    "Remote-Party-ID": '"a,g" <sip:666@x>;party=calling;privacy=off',
    "Diversion": '"${EPOCH}" <sip:666%0d%0aX%3a%20y@x>;reason=unknown',
    "Subject": "${CHANNEL(name)}${SHELL(true)},g&SIP/x \udcff",
    "User-Agent": "x" * NAME_CHARACTERS,
}
"""Headers that no trunk is asked for, of any caller."""

DIALLED = ("100%0d%0aExten%3a%20x", "100%24%7bEPOCH%7d", "100,g", "+49&SIP", "1" * 60)
"""The user of the request's URI: what was dialled."""
