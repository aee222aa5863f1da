"""The gateway's manager interface (AMI), on panoramisk 1.4: one connection at a time, in order, with honest answers.

This is the only module that touches panoramisk, and it never lets these of its habits through:

* A value with CR, LF or NUL would end its line and begin another header, or another action; a line over 1024 bytes is
  thrown away by Asterisk. Both are refused before anything is written (`UnsafeValueError`), never stripped.
* An action whose answer was lost in a disconnect is queued by panoramisk and sent again after the reconnect. Here it
  is never sent again: who waits for it gets `AmiLostError` (the outcome is unknown; the channel knows it).
* Bytes are decoded chunk by chunk there, which loses a character that two chunks share; here by one decoder.
* A failed login raises nothing there, pings are not checked, whatever speaks TCP is taken for an Asterisk, and
  coroutine callbacks run unordered. So login, pings and greeting are done here, and events only enter a queue.
* Its own reconnect keeps callbacks and half-read text of the old connection. Here each connection is a new `Session`;
  when to connect again is the caller's business.
* The entries of a list whose action was given up look like live events (those of ``ParkedCalls`` are named
  ``ParkedCall``). What carries an ActionID is an answer here, or nothing.
* A ``Shutdown`` event makes it report the connection lost, and its log lines can hold the Login action. Neither here.

Order: Asterisk serves a session with one thread, which writes events between actions and a list in one piece. Events
and complete lists (`Listing`) come out of `Session.next` in the order in which Asterisk wrote them.
"""

from __future__ import annotations

import asyncio
import codecs
import ssl
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from panoramisk.actions import Action
from panoramisk.ami_protocol import AMIProtocol
from panoramisk.manager import Manager

from callyard.settings import AmiSettings

MAX_LINE_BYTES = 1024
"""Longest line that Asterisk's manager reads, with its CR LF."""
MAX_MESSAGE_CHARACTERS = 256 * 1024
"""More text than this without the end of a message isn't AMI."""
PING_SECONDS = 5.0
GREETING = "Asterisk Call Manager/"

Headers = Mapping[str, str | list[str]]
"""One AMI message: header names as Asterisk writes them; a repeated header is a list."""


class AmiError(Exception):
    """Something about the manager interface; the text says what to do."""


class AmiUnreachableError(AmiError):
    """There is no session: try again later."""


class AmiRefusedError(AmiError):
    """There never will be a session with these settings: a person must act."""


class AmiLostError(AmiError):
    """The connection ended, or (`AmiTimeoutError`) no answer came: whether the action was done is unknown."""


class AmiTimeoutError(AmiLostError):
    """No answer came in time."""


class AmiActionError(AmiError):
    """Asterisk answered that it did not do it."""


class UnsafeValueError(ValueError):
    """A value must not be written to the manager interface."""


@dataclass(frozen=True)
class Event:
    """A live event."""

    headers: Headers


@dataclass(frozen=True)
class Listing:
    """The complete answer to `Session.request_list`, in its place among the events; or the error that came instead."""

    action: str
    entries: tuple[Headers, ...]
    error: str | None = None


Pending = asyncio.Future[Any]


def tls_context(settings: AmiSettings) -> ssl.SSLContext:
    """TLS with Asterisk's certificate and name checked. Raises `AmiRefusedError` where the CA can't be loaded."""
    try:
        return ssl.create_default_context(cafile=str(settings.tls_cafile) if settings.tls_cafile else None)
    except (OSError, ssl.SSLError) as error:
        raise AmiRefusedError(f"CALLYARD_AMI_TLS_CAFILE {settings.tls_cafile} cannot be loaded: {error}") from None


def check_line(name: str, value: str) -> None:
    """Raise `UnsafeValueError` unless ``name: value`` is one line that Asterisk reads whole."""
    if any(character in name or character in value for character in "\r\n\0"):
        raise UnsafeValueError(f"{name} holds a line break or NUL: it would be read as another header or action")
    length = len(f"{name}: {value}\r\n".encode(errors="surrogatepass"))
    if length > MAX_LINE_BYTES:
        raise UnsafeValueError(f"{name} makes a line of {length} bytes, Asterisk reads at most {MAX_LINE_BYTES}")


def _headers(message: Any) -> Headers:
    # panoramisk adds a "content" of its own to each message.
    return {name: value for name, value in message.items() if name != "content"}


class _Manager(Manager):  # type: ignore[misc]  # panoramisk has no types
    """A manager for one connection: it neither connects again nor pings nor logs in by itself."""

    def __init__(self, session: Session) -> None:
        super().__init__(encoding="utf8", loop=asyncio.get_running_loop())
        self._session = session

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.fail(AmiLostError(f"Asterisk ended the manager connection ({exc or 'closed'})"))


class _Protocol(AMIProtocol):  # type: ignore[misc]  # panoramisk has no types
    """panoramisk's protocol, mended (see the module's docstring)."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._greeting = ""

    closed: bool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.factory = self._session.manager
        self.factory.protocol = self
        self.encoding = "utf8"

    def send(self, data: Any, as_list: bool | None = None) -> Pending:
        lines = [
            (str(name), str(item))
            for name, value in data.items()
            for item in (value if isinstance(value, (list, tuple)) else [value])
        ]
        for name, item in lines:
            check_line(name, item)
        if self._session.lost is not None:
            raise self._session.lost
        # super().send() would log what it fails to write, secrets included, and go on.
        action = data if isinstance(data, Action) else Action(data)
        action.as_list = as_list
        self.responses[action.id] = action
        self.transport.write(str(action).encode())
        pending: Pending = action.future
        # Somebody who gave up waiting must not turn a later loss into "exception was never retrieved".
        pending.add_done_callback(lambda done: done.cancelled() or done.exception())
        return pending

    def data_received(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        if self.version is None:
            self._greeting += text
            if not self._greeting.startswith(GREETING[: len(self._greeting)]) or len(self._greeting) > 65536:
                self._session.fail(
                    AmiRefusedError(
                        f"what answers at {self._session.address} is not an Asterisk manager (it says"
                        f" {self._greeting[:40]!r}): check CALLYARD_AMI_HOST and CALLYARD_AMI_PORT"
                    )
                )
                return
            if "\r\n" not in self._greeting:
                return
            text = self._greeting
        # Whole characters only: what super() decodes again is complete.
        super().data_received(text.encode())
        if self.queue and len(self.queue[0]) > MAX_MESSAGE_CHARACTERS:
            self._session.fail(AmiLostError("the manager connection sends text without an end: closed"))

    def handle_message(self, message: Any) -> None:
        if message.action_id is None:
            if message.event:
                self.factory.dispatch(message)
            return
        action = self.responses.get(message.action_id)
        if action is not None and action.add_message(message):
            del self.responses[action.id]
            self._session.answered(action)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.transport.close()


class Session:
    """One logged-in connection. Made by `connect`; over when `next` or an answer raises `AmiLostError`."""

    def __init__(self, settings: AmiSettings) -> None:
        self._settings = settings
        self.address = f"{settings.host}:{settings.port}"
        self.lost: AmiError | None = None
        self.manager = _Manager(self)
        self.manager.register_event("*", self._event)
        self._protocol: _Protocol | None = None
        self._items: asyncio.Queue[Event | Listing | None] = asyncio.Queue()
        self._lists: dict[str, str] = {}
        self._pinger: asyncio.Task[None] | None = None

    async def _open(self, ping_seconds: float) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        tls: dict[str, Any] = {}
        if settings.tls:
            tls = {"ssl": tls_context(settings), "server_hostname": settings.tls_server_name or settings.host}
        hint = "check that Asterisk runs and manager.conf is enabled there (CALLYARD_AMI_HOST, CALLYARD_AMI_PORT)"
        try:
            _, self._protocol = await asyncio.wait_for(
                loop.create_connection(lambda: _Protocol(self), settings.host, settings.port, **tls),
                settings.connect_timeout_seconds,
            )
        except ssl.SSLCertVerificationError as error:
            raise AmiRefusedError(
                f"the certificate of the Asterisk manager at {self.address} is not believed ({error.verify_message}):"
                " check CALLYARD_AMI_TLS_CAFILE, CALLYARD_AMI_TLS_SERVER_NAME, and tlscertfile in manager.conf"
            ) from None
        except (OSError, asyncio.TimeoutError) as error:
            raise AmiUnreachableError(f"no Asterisk manager answers at {self.address} ({error!r}): {hint}") from None
        try:
            await self.answer(
                self.send(
                    "Login",
                    {"Username": settings.username, "Secret": settings.secret.get_secret_value(), "Events": "on"},
                )
            )
        except AmiActionError as error:
            raise AmiRefusedError(
                f"Asterisk at {self.address} refuses the manager user {settings.username!r} ({error}): check"
                " CALLYARD_AMI_USERNAME, CALLYARD_AMI_SECRET, and the user's deny/permit in manager.conf"
            ) from None
        except AmiLostError as error:
            if isinstance(self.lost, AmiRefusedError):
                raise self.lost from None
            raise AmiUnreachableError(f"no login at {self.address}: {error}; {hint}") from None
        self._pinger = asyncio.create_task(self._ping(ping_seconds), name="ami ping")
        # A session that nobody pings could be dead without anybody noticing: it ends with its pinger.
        self._pinger.add_done_callback(lambda _: self.fail(AmiLostError("the manager connection is no longer pinged")))

    def send(self, action: str, fields: Mapping[str, str]) -> Pending:
        """Write an action at once; what `answer` takes. Actions are done in the order in which they are sent.

        Raises `UnsafeValueError`, or the `AmiError` that ended the session: then nothing was written.
        """
        pending: Pending = self.manager.send_action({"Action": action, **fields})
        return pending

    async def answer(self, pending: Pending) -> Headers:
        """The answer to one action. Raises `AmiActionError` (not done) or `AmiLostError` (unknown)."""
        timeout = self._settings.connect_timeout_seconds
        done, _ = await asyncio.wait([pending], timeout=timeout)
        if not done:
            raise AmiTimeoutError(f"Asterisk did not answer within {timeout:g} s")
        message = pending.result()
        if not message.success:
            raise AmiActionError(message.message or f"Response: {message.response}")
        return _headers(message)

    def request_list(self, action: str, fields: Mapping[str, str]) -> None:
        """Ask for a list (``Status``, ``ParkedCalls``); it comes out of `next` as a `Listing`."""
        request = Action({"Action": action, **fields})
        self._lists[request.id] = action
        self.manager.send_action(request)

    async def next(self) -> Event | Listing:
        """What comes next. Raises the `AmiError` that ended the session, after all that came before its end."""
        item = await self._items.get()
        if item is None:
            self._items.put_nowait(None)
            assert self.lost is not None  # noqa: S101 - None is only queued by fail()
            raise self.lost
        return item

    def close(self) -> None:
        """End the session; whatever waits for an answer gets `AmiLostError`."""
        self.fail(AmiLostError("the manager connection was closed here"))

    def abort(self) -> None:
        """End the session; what is written and not yet on its way never reaches Asterisk."""
        if self._protocol is not None:
            self._protocol.transport.abort()
        self.fail(AmiLostError("the manager connection was broken off here"))

    def fail(self, error: AmiError) -> None:
        """End the session because of this."""
        if self.lost is not None:
            return
        self.lost = error
        if self._pinger is not None:
            self._pinger.cancel()
        if self._protocol is None and self.manager.protocol is not None:
            self._protocol = self.manager.protocol
        if self._protocol is not None:
            outstanding, self._protocol.responses = self._protocol.responses, {}
            self._protocol.close()
            for action in outstanding.values():
                if not action.future.done():
                    action.future.set_exception(AmiLostError(f"no answer to {action['Action']}: {error}"))
        self._items.put_nowait(None)

    def answered(self, action: Any) -> None:
        """The protocol's word that an action is complete; lists take their place among the events."""
        name = self._lists.pop(action.id, None)
        if name is None:
            return
        first, *rest = action.responses
        if not first.success:
            self._items.put_nowait(Listing(name, (), first.message or "refused"))
            return
        # The last entry only says that the list is complete.
        self._items.put_nowait(Listing(name, tuple(_headers(entry) for entry in rest[:-1])))

    def _event(self, _: Any, message: Any) -> None:
        self._items.put_nowait(Event(_headers(message)))

    async def _ping(self, every_seconds: float) -> None:
        while True:
            await asyncio.sleep(every_seconds)
            try:
                await self.answer(self.send("Ping", {}))
            except AmiTimeoutError:
                self.fail(AmiLostError("Asterisk answers no ping: the manager connection is dead"))
            except AmiError as error:
                if self.lost is None:
                    self.fail(AmiLostError(f"Asterisk refuses to be pinged: {error}"))


async def connect(settings: AmiSettings, ping_seconds: float = PING_SECONDS) -> Session:
    """Connect and log in.

    Raises `AmiUnreachableError` (try again) or `AmiRefusedError` (wrong secret, or no Asterisk: somebody must act).
    """
    session = Session(settings)
    with ExitStack() as undo:
        undo.callback(session.close)
        await session._open(ping_seconds)  # noqa: SLF001 - the other half of this constructor
        undo.pop_all()
    return session
