"""BigBlueButton's API call ``getMeetings`` without IO: the request's path in, the answer's meetings out.

What BigBlueButton's sources say, and this relies on (github.com/bigbluebutton/bigbluebutton):

* ``bbb-common-web/…/api/ParamsProcessorUtil.java``, ``isChecksumSame``: the checksum is the hash of the call's name,
  the query without the checksum, and the secret; its length tells which hash (64 digits: SHA-256).
* ``bigbluebutton-web/…/ApiController.groovy``, ``getMeetingsHandler``; ``…/WEB-INF/freemarker/get-meetings.ftlx``: the
  answer. Without a meeting it has an empty ``meetings`` and the message key ``noMeetings``. A failure has returncode
  ``FAILED`` and a message key; that of a wrong checksum is ``checksumError``.
* ``…/api/MeetingService.java``, ``meetingEnded``: a meeting that has ended is taken from the list shortly after its
  ``MeetingEndedEvtMsg``; one that ``end`` was called for is listed as ``hasBeenForciblyEnded`` until then. ``endTime``
  says nothing: it is set, too, when the last user leaves, and reset when one comes again.

The answer is text that users wrote, in part. XML's dangers are refused: no document type (and so no entities), bounded
depth and size. Control characters, which XML forbids and a meeting's name may hold, are dropped.
"""

from __future__ import annotations

import hashlib
import re
from xml.parsers import expat

from fs_hooks.instances import Listed, is_instance

CALL = "getMeetings"
MAX_DEPTH = 16
MAX_TEXT = 1000
"""Characters of a field that are kept; those that are read have fewer than 100."""

_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]+")
_MEETING = ("response", "meetings", "meeting")
_FIELDS = frozenset({"internalMeetingID", "voiceBridge", "createTime", "hasBeenForciblyEnded"})
_OUTCOME = frozenset({"returncode", "messageKey", "message"})


class AnswerError(ValueError):
    """An answer that can't be read: it decides nothing."""


class RefusedError(ValueError):
    """BigBlueButton refuses the request. ``key`` is its message key."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}" if text else key)
        self.key = key


def path(api_path: str, secret: str) -> str:
    """The path and query of a request, signed."""
    checksum = hashlib.sha256(f"{CALL}{secret}".encode()).hexdigest()
    return f"{api_path}/{CALL}?checksum={checksum}"


def meetings(answer: bytes) -> list[Listed]:
    """The meetings that run. Raises `RefusedError`, or `AnswerError` for what isn't an answer to getMeetings."""
    reader = _Reader()
    # The text is decoded here, so that no encoding that the answer names is believed.
    text = _FORBIDDEN.sub(b"", answer).decode(errors="replace")
    try:
        reader.parser.Parse(re.sub(r"^\ufeff?\s*<\?xml[^>]{0,200}\?>", "", text), True)
    except expat.ExpatError as error:
        raise AnswerError(f"the answer to {CALL} is no XML: {error}") from None
    outcome = reader.outcome
    if outcome.get("returncode") == "FAILED":
        raise RefusedError(outcome.get("messageKey", "FAILED"), outcome.get("message", ""))
    if outcome.get("returncode") != "SUCCESS":
        raise AnswerError(f"the answer to {CALL} has no returncode SUCCESS: {text!r:.200}")
    return [_listed(fields) for fields in reader.found if fields.get("hasBeenForciblyEnded") != "true"]


def _listed(fields: dict[str, str]) -> Listed:
    # One entry that can't be read spoils the answer: absence from it would prove nothing any more.
    instance, created = fields.get("internalMeetingID", ""), fields.get("createTime", "")
    if not is_instance(instance) or "voiceBridge" not in fields:
        raise AnswerError(f"{CALL} has a meeting without internalMeetingID or voiceBridge: {fields!r:.200}")
    return Listed(fields["voiceBridge"], instance, int(created) if re.fullmatch("[0-9]{1,15}", created) else None)


class _Reader:
    """Collects the few fields that matter; the rest, users and metadata, is passed over."""

    def __init__(self) -> None:
        self.outcome: dict[str, str] = {}
        self.found: list[dict[str, str]] = []
        self._path: list[str] = []
        self._text: list[str] | None = None
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.EntityDeclHandler = self._refuse

    def _start(self, name: str, _attributes: object) -> None:
        self._path.append(name)
        if len(self._path) > MAX_DEPTH:
            raise AnswerError(f"the answer to {CALL} is deeper than {MAX_DEPTH}")
        if tuple(self._path) == _MEETING:
            self.found.append({})
        self._text = [] if self._target() is not None else None

    def _end(self, name: str) -> None:
        target = self._target()
        if target is not None and self._text is not None:
            target[name] = "".join(self._text)[:MAX_TEXT].strip()
        self._text = None
        self._path.pop()

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text[:MAX_TEXT])

    def _target(self) -> dict[str, str] | None:
        if len(self._path) == 4 and tuple(self._path[:3]) == _MEETING and self._path[3] in _FIELDS:
            return self.found[-1]
        if len(self._path) == 2 and self._path[0] == "response" and self._path[1] in _OUTCOME:
            return self.outcome
        return None

    def _refuse(self, *_: object) -> None:
        raise AnswerError(f"the answer to {CALL} has a document type: refused")
