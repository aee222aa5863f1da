"""The contract: every record that crosses a Kafka topic, and the one place where bytes become records.

Rules that hold for all of them:

* A record is frozen. JSON on the wire, one object a record, discriminated by ``type``; field names are the contract.
* Times are integers: milliseconds since 1970-01-01 UTC. Those ending in ``_ms`` that a sender writes are its own
  clock's and decide nothing; decisions use the broker's timestamp (LogAppendTime).
* Fields that this version doesn't know are ignored, so that a newer sender may add some; a newer *schema version* is
  refused, because its meaning may have changed.
* What cannot be read raises `RecordError`, whose text says what is wrong and what to do. Parsing never guesses.

This module does no IO and knows no topic. It is long because it is the contract: one place to read, one to change.
"""

from __future__ import annotations

import hashlib
import re
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

SCHEMA_VERSION: Literal[1] = 1
"""The schema version that this program writes; it reads this one only."""

CONFERENCE_PATTERN = r"^[0-9]{5,11}$"
"""BBB's voiceBridge: 5 to 11 digits (a breakout room's number is its parent's plus one digit)."""

# Each pattern is as narrow as the contract allows: these strings reach AMI actions and dialplan expressions.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_INSTANCE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
_UNIQUEID_PATTERN = r"^[A-Za-z0-9._-]{1,150}$"
HOST_PATTERN = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"
SIP_URI_PATTERN = (
    r"^sips?:(?P<user>[A-Za-z0-9._+-]{1,64})@(?P<host>" + HOST_PATTERN + r")"
    r"(?::(?P<port>[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
    r"(?:;transport=(?P<transport>udp|tcp|tls))?$"
)

Conference = Annotated[str, StringConstraints(pattern=CONFERENCE_PATTERN)]
NodeId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
GatewayId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
InstanceId = Annotated[str, StringConstraints(pattern=_INSTANCE_PATTERN)]
SipUri = Annotated[str, StringConstraints(pattern=SIP_URI_PATTERN, max_length=320)]
CallId = Annotated[str, StringConstraints(pattern=ID_PATTERN[:-1] + "/" + _UNIQUEID_PATTERN[1:])]
"""``<gateway id>/<Asterisk uniqueid>``: unique across gateways and restarts of Asterisk."""
StayNumber = Annotated[int, Field(ge=1, le=1_000_000)]
MAX_ATTEMPT = 100_000
"""The last attempt that a gateway can carry out and report."""
Attempt = Annotated[int, Field(ge=1, le=MAX_ATTEMPT)]
"""What a gateway may claim; the stream counts on from there."""
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""Bounded to what every JSON reader holds exactly; a larger number could be read here and never be written again."""
Milliseconds = Count
Text = Annotated[str, StringConstraints(max_length=200)]


def _writable(value: dict[str, Any]) -> dict[str, Any]:
    try:
        orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"cannot be written as JSON again: {error}") from None
    return value


Free = Annotated[dict[str, Any], AfterValidator(_writable)]
"""An object without a form of its own. JSON that can be read here holds larger numbers than can be written."""


class RecordError(ValueError):
    """A record cannot be read. The text names the field, what is wrong with it, and what to do."""


class NewerSchemaError(RecordError):
    """A record of a schema version that this program doesn't know yet."""


class Record(BaseModel):
    """What every record has: a ``type`` and the version of the schema it was written by."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    schema_version: Literal[1] = SCHEMA_VERSION

    def encode(self) -> bytes:
        """The record as it goes over the wire: compact UTF-8 JSON, fields in the order of their definition."""
        return orjson.dumps(self.model_dump(mode="json", exclude_none=True))


class Sent(Record):
    """A record that a hook or an agent sent: who, in which order, and (from signing on) how to prove it."""

    sender: Text
    """The process that sent it, for example ``hook:node-1`` or ``agent:gw-1``."""
    sender_sequence: Count = 0
    """Grows with every record of this sender, also across its restarts; gaps prove nothing."""
    sent_at_ms: Milliseconds = 0
    key_id: Text | None = None
    signature: Text | None = None


# --- callyard.registrations -----------------------------------------------------------------------------------------


class Source(str, Enum):
    """Which of a node's two voices says that a conference is there."""

    FREESWITCH = "freeswitch"
    BIGBLUEBUTTON = "bigbluebutton"


class UnregisterReason(str, Enum):
    """Why a registration ends. Only ``ended`` is final: that instance will never come back."""

    ENDED = "ended"
    LOST = "lost"
    """The hook can no longer vouch for it (FreeSWITCH is gone, the hook stops); the same instance may return."""


class _Registration(Sent):
    conference: Conference
    source: Source
    instance_id: InstanceId
    node_id: NodeId


class ConferenceRegistered(_Registration):
    """This conference is at this node; says so anew at every renewal of the lease."""

    type: Literal["conference-registered"] = "conference-registered"
    sip_uri: SipUri
    opened_at_ms: Milliseconds | None = None


class ConferenceUnregistered(_Registration):
    """This instance is no longer at this node. Names the instance: it never removes a new one of the same number."""

    type: Literal["conference-unregistered"] = "conference-unregistered"
    reason: UnregisterReason = UnregisterReason.ENDED


# --- callyard.calls -------------------------------------------------------------------------------------------------


class CallerForm(str, Enum):
    """In which form a record carries the caller's number."""

    FULL = "full"
    MASKED = "masked"
    HASHED = "hashed"
    NONE = "none"


class CallState(str, Enum):
    """The state of a live call, as its gateway sees it."""

    PARKED = "parked"
    DIALING = "dialing"
    """An instruction is being carried out: Asterisk dials, or tells the caller something."""
    CONNECTED = "connected"


class AfterTalk(str, Enum):
    """How the talk ended that a stay follows; decides whether the caller is put back in."""

    ENDED = "ended"
    """The node hung up as usual: it removed the caller, or the conference is over."""
    LOST = "lost"
    """The node's leg failed: no audio came any more, its transport broke, or it gave an abnormal cause."""


class FailureReason(str, Enum):
    """Why a dial brought no connection; decides whether, and how soon, it is tried again."""

    NOT_FOUND = "not-found"
    """The node says that the conference isn't there (SIP 404, 410, 604; hangup cause 1)."""
    REFUSED = "refused"
    """The node refuses this caller (SIP 401, 403, 407, 603)."""
    BUSY = "busy"
    TIMEOUT = "timeout"
    """The node didn't answer in time."""
    UNREACHABLE = "unreachable"
    """No connection to the node (transport error, 503, no route)."""
    NOT_PARKED = "not-parked"
    """The gateway could not redirect the call: at that moment it wasn't parked in that stay."""
    EXPIRED = "expired"
    """The instruction reached the gateway after its deadline: what it was based on may no longer be true."""
    BAD_INSTRUCTION = "bad-instruction"
    """The gateway refuses the instruction itself (a URI that isn't allowed there)."""
    TOLD = "told"
    """It was no dial: the caller was told that the conference can't be reached, and waits on."""
    OTHER = "other"


class LeftReason(str, Enum):
    """How a call ended."""

    HANGUP = "hangup"
    """The caller hung up while waiting or being dialled."""
    CONFERENCE_LEFT = "conference-left"
    """It was connected, and either side ended it; a newer stay follows where the caller follows the meeting."""
    NEW_NUMBER = "new-number"
    """The caller left this number for another one: this stay is over, the call goes on in another desk."""
    TIMED_OUT = "timed-out"
    """The longest wait was over; the caller was told."""
    GIVEN_UP = "given-up"
    """The conference runs but could not be reached in all attempts; the caller was told."""
    REMOVED = "removed"
    """The node had ended the talk while the conference went on: the caller is not put back in."""
    GONE = "gone"
    """The gateway doesn't know the call any more (Asterisk restarted, events were lost)."""


class _CallRecord(Sent):
    conference: Conference
    gateway_id: GatewayId
    call_id: CallId
    stay: StayNumber

    @model_validator(mode="after")
    def _call_is_of_its_gateway(self) -> _CallRecord:
        if not self.call_id.startswith(f"{self.gateway_id}/"):
            raise ValueError(f"call_id {self.call_id!r} must begin with gateway_id {self.gateway_id!r} and a slash")
        return self


class CallerParked(_CallRecord):
    """A stay begins: the caller waits for this conference. Repeated at will; only a new stay has an effect."""

    type: Literal["caller-parked"] = "caller-parked"
    caller: Text | None = None
    caller_form: CallerForm = CallerForm.NONE
    parked_at_ms: Milliseconds | None = None
    after: AfterTalk | None = None
    """The stay follows a talk that ended so; None: the caller has just entered the number."""


class CallAlive(_CallRecord):
    """Renews a live call's lease and says what it is doing; changes no state (but revives what had lapsed)."""

    type: Literal["call-alive"] = "call-alive"
    state: CallState
    attempt: Annotated[int, Field(ge=0, le=MAX_ATTEMPT)] = 0
    caller: Text | None = None
    caller_form: CallerForm = CallerForm.NONE
    after: AfterTalk | None = None


class DialStarted(_CallRecord):
    """The redirect of this attempt was consumed: Asterisk dials."""

    type: Literal["dial-started"] = "dial-started"
    attempt: Attempt


class CallerConnected(_CallRecord):
    """The node answered: the caller is in the conference."""

    type: Literal["caller-connected"] = "caller-connected"
    attempt: Attempt


class DialFailed(_CallRecord):
    """This attempt brought no connection; the caller is parked again in the same stay."""

    type: Literal["dial-failed"] = "dial-failed"
    attempt: Attempt
    reason: FailureReason
    hangup_cause: int | None = Field(default=None, ge=0, le=255)
    """Q.850 cause, as Asterisk's HANGUPCAUSE gives it."""
    sip_code: int | None = Field(default=None, ge=100, le=699)


class CallerLeft(_CallRecord):
    """This stay is over for good."""

    type: Literal["caller-left"] = "caller-left"
    reason: LeftReason
    hangup_cause: int | None = Field(default=None, ge=0, le=255)


# --- callyard.timers ------------------------------------------------------------------------------------------------


class DeadlinePassed(Sent):
    """A deadline of this desk is due; decided when it is read, after all that came before it."""

    type: Literal["deadline-passed"] = "deadline-passed"
    conference: Conference
    due_ms: Milliseconds


# --- callyard.dials -------------------------------------------------------------------------------------------------


class Notice(str, Enum):
    """What a caller is told."""

    UNREACHABLE = "unreachable"
    """The conference runs but can't be reached now; the caller waits on."""
    GIVEN_UP = "given-up"
    """The conference runs but can't be reached; the call ends."""
    REMOVED = "removed"
    """The caller was removed from the conference; the call ends."""


class _Instruction(Record):
    gateway_id: GatewayId
    call_id: CallId
    conference: Conference
    stay: StayNumber
    attempt: Annotated[int, Field(ge=1, le=2**53 - 1)]
    """Counts all instructions of a stay. Wider than what a gateway may claim: the stream can always count on; gateways
    refuse what is beyond."""
    issued_at_ms: Milliseconds
    deadline_ms: Milliseconds
    """Broker time after which the stream issues the next attempt if it has heard no outcome."""
    partition: Count
    """The desk's partition: epochs are compared within one."""
    epoch: Count = 0
    """The owner's epoch: what an older owner of the partition says after a newer one spoke is void."""

    @property
    def instruction_id(self) -> str:
        """Unique: ``<call id>#<stay>.<attempt>``; a repeated instruction has the same id and the same content."""
        return f"{self.call_id}#{self.stay}.{self.attempt}"


class DialInstruction(_Instruction):
    """To a gateway: redirect this call, in this stay, to this SIP URI."""

    type: Literal["dial-instruction"] = "dial-instruction"
    sip_uri: SipUri
    node_id: NodeId
    source: Source
    instance_id: InstanceId


class TellInstruction(_Instruction):
    """To a gateway: tell this caller, in this stay, this; then the caller waits on or the call ends, as it says."""

    type: Literal["tell-instruction"] = "tell-instruction"
    notice: Notice


Instruction = Annotated[DialInstruction | TellInstruction, Field(discriminator="type")]


# --- callyard.journal -----------------------------------------------------------------------------------------------


class Position(BaseModel):
    """Where an input stands: topic, partition, offset."""

    model_config = ConfigDict(frozen=True)

    topic: str
    partition: Count
    offset: Count


class JournalEntry(Record):
    """One decision: the input, what it changed, what was instructed, and why. Exactly one for each applied input."""

    type: Literal["decision"] = "decision"
    conference: Conference
    version: Annotated[int, Field(ge=1, le=2**53 - 1)]
    """Number of this decision in its desk; no gaps."""
    previous_hash: str | None = None
    """SHA-256 of the value of the desk's previous entry or snapshot, as its bytes stand in Kafka."""
    epoch: Count
    position: Position
    event_type: str
    said: Free | None = None
    """What the input said of its call or registration, without its sender's bookkeeping and the caller's number: what
    the ``changes`` don't hold, a hangup cause, say. None: of an older version, which didn't write it."""
    broker_ms: Milliseconds
    """The broker's timestamp of the input."""
    now_ms: Milliseconds
    """The time that decided: never less than the desk's own."""
    outcome: str
    """What the transition table says: a transition, or a named no-op such as ``duplicate`` or ``stale``."""
    why: str
    """One sentence for people."""
    changes: tuple[Free, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    policy_digest: str


class DeskSnapshot(Record):
    """A desk as it stood before its next decision; a link of its chain. So no replay needs the desk's beginning."""

    type: Literal["desk-snapshot"] = "desk-snapshot"
    conference: Conference
    version: Annotated[int, Field(ge=1, le=2**53 - 1)]
    """The desk's last decision; a snapshot is none and has no number of its own."""
    previous_hash: str | None = None
    """SHA-256 of the desk's record before it, as `JournalEntry.previous_hash`, which may name a snapshot as well."""
    epoch: Count
    taken_ms: Milliseconds
    """The broker's timestamp of the input that is decided next."""
    rows: tuple[Free, ...]
    """All rows of the desk, in the form of `JournalEntry.changes`."""


class EpochBegan(Record):
    """A new owner of a partition: what an older epoch says after this is void."""

    type: Literal["epoch-began"] = "epoch-began"
    partition: Count
    epoch: Count
    worker: str
    policy_digest: str


class PolicyDeclared(Record):
    """The whole policy, written when an epoch begins, and again from time to time; entries carry its digest."""

    type: Literal["policy-declared"] = "policy-declared"
    partition: Count
    digest: str
    policy: Free


RegistrationRecord = ConferenceRegistered | ConferenceUnregistered
CallRecord = CallerParked | CallAlive | DialStarted | CallerConnected | DialFailed | CallerLeft
TimerRecord = DeadlinePassed
InputRecord = RegistrationRecord | CallRecord | TimerRecord
JournalRecord = JournalEntry | DeskSnapshot | EpochBegan | PolicyDeclared

REGISTRATIONS: TypeAdapter[RegistrationRecord] = TypeAdapter(Annotated[RegistrationRecord, Field(discriminator="type")])
CALLS: TypeAdapter[CallRecord] = TypeAdapter(Annotated[CallRecord, Field(discriminator="type")])
TIMERS: TypeAdapter[DeadlinePassed] = TypeAdapter(DeadlinePassed)
DIALS: TypeAdapter[DialInstruction | TellInstruction] = TypeAdapter(Instruction)
JOURNAL: TypeAdapter[JournalRecord] = TypeAdapter(Annotated[JournalRecord, Field(discriminator="type")])

R = TypeVar("R")
PROBLEMS_SAID = 5
"""A record can have a problem in each of its million bytes; so many are told."""


def parse(adapter: TypeAdapter[R], value: bytes | None) -> R:
    """Read one record from its bytes.

    Raises `RecordError` for whatever is not a record of this adapter's topic; the text is for an operator's eyes and
    holds no more than the first 60 bytes of the offending value.
    """
    if value is None:
        raise RecordError("the record has no value (a tombstone); this topic holds JSON objects only")
    try:
        raw = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error}; begins with {value[:60]!r}") from None
    if not isinstance(raw, dict):
        raise RecordError(f"a JSON object is expected, this is {type(raw).__name__}: {value[:60]!r}")
    if missing := [name for name in ("type", "schema_version") if name not in raw]:
        raise RecordError(f"has no {' and no '.join(missing)}: every record names both; begins with {value[:60]!r}")
    version = raw["schema_version"]
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"schema version {version} is newer than this program's ({SCHEMA_VERSION}): upgrade this program first"
        )
    try:
        return adapter.validate_json(value, strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=True)
        said = [_explain(raw, one) for one in problems[:PROBLEMS_SAID]]
        more = [f"and {len(problems) - len(said)} more"] if len(problems) > len(said) else []
        raise RecordError("; ".join(said + more)) from None


def _explain(raw: dict[str, Any], error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "record"
    if error["type"].startswith("union_tag"):
        return f"type {raw.get('type')!r:.60} is none of this topic's record types"
    return f"{where}: {error['msg']} (got {error['input']!r:.60})"


def digest(value: bytes) -> str:
    """SHA-256 of a record's bytes, as hexadecimal text."""
    return hashlib.sha256(value).hexdigest()


def split_sip_uri(uri: str) -> tuple[str, str, int | None, str | None]:
    """A SIP URI's user, host, port and transport. Raises `RecordError` where it isn't of the contract's form."""
    match = re.match(SIP_URI_PATTERN, uri)
    if match is None or uri.endswith("\n"):
        raise RecordError(f"{uri!r:.80} is no SIP URI of the form sip:NUMBER@HOST:PORT;transport=tcp")
    port = match["port"]
    return match["user"], match["host"], int(port) if port else None, match["transport"]
