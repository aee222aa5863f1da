"""The transition tables: for each state and each event, what happens. Complete: a missing entry is a bug of ours.

At-least-once delivery makes repetition the normal case, so most entries are named no-ops. Two rules explain the rest:

* A gateway's records arrive in the order in which they happened (one speaker for each gateway, one partition for each
  conference), so a fact about a call's newer stay ends its older one, and what is said of an older stay is ``stale``.
* A renewal changes no state; only a new stay or a failed dial returns a caller to ``parked``. Exceptions are the states
  that silence produced (``lapsed``, ``gone``): there the gateway's word is taken for what it says.

``streams/state_diagram.py`` draws the page ``docs/states.md`` from these tables.
"""

from __future__ import annotations

from enum import Enum

from streams.rows import RegistrationState, StayState


class Step(str, Enum):
    """What an event does to a stay. The value is the ``outcome`` in the journal."""

    PARK = "parked"
    """A stay begins."""
    ADOPT = "adopted"
    """The gateway speaks of a call that the desk didn't know: taken as it says."""
    REVIVE = "revived"
    """As ``adopted``, of a call that had been written off."""
    RENEW = "renewed"
    """The lease is renewed, nothing else."""
    START = "dialing"
    """Asterisk dials."""
    CONNECT = "connected"
    FAIL = "dial-failed"
    LEAVE = "left"
    DUPLICATE = "duplicate"
    STALE = "stale"
    UNKNOWN = "unknown"
    """The end of something that the desk never knew: nothing to do."""


class Known(str, Enum):
    """States that a call can be in beside those of its row."""

    NOTHING = "nothing"
    """The desk has no row of this call."""
    OLDER_STAY = "older-stay"
    """The desk's row is of an earlier stay than the event."""
    NEWER_STAY = "newer-stay"
    """The desk's row is of a later stay than the event."""


CALL_EVENTS = ("caller-parked", "call-alive", "dial-started", "caller-connected", "dial-failed", "caller-left")

_ = Step
STAYS: dict[Known | StayState, tuple[Step, Step, Step, Step, Step, Step]] = {
    #                       caller-parked, call-alive,  dial-started, caller-connected, dial-failed, caller-left
    Known.NOTHING:         (_.PARK,        _.ADOPT,     _.ADOPT,      _.ADOPT,          _.ADOPT,     _.UNKNOWN),
    Known.OLDER_STAY:      (_.PARK,        _.ADOPT,     _.ADOPT,      _.ADOPT,          _.ADOPT,     _.LEAVE),
    Known.NEWER_STAY:      (_.STALE,       _.STALE,     _.STALE,      _.STALE,          _.STALE,     _.STALE),
    StayState.PARKED:      (_.RENEW,       _.RENEW,     _.START,      _.CONNECT,        _.FAIL,      _.LEAVE),
    StayState.DIALING:     (_.RENEW,       _.RENEW,     _.START,      _.CONNECT,        _.FAIL,      _.LEAVE),
    # A talk that a redirect tore apart: the caller is parked again in the same stay, and that attempt has failed.
    StayState.CONNECTED:   (_.STALE,       _.RENEW,     _.STALE,      _.DUPLICATE,      _.FAIL,      _.LEAVE),
    StayState.LAPSED:      (_.REVIVE,      _.REVIVE,    _.REVIVE,     _.REVIVE,         _.REVIVE,    _.LEAVE),
    StayState.GONE:        (_.REVIVE,      _.REVIVE,    _.REVIVE,     _.REVIVE,         _.REVIVE,    _.LEAVE),
    StayState.LEFT:        (_.STALE,       _.STALE,     _.STALE,      _.STALE,          _.STALE,     _.DUPLICATE),
}  # fmt: skip
del _


def stay_step(state: Known | StayState, event_type: str) -> Step:
    """What an event of this type does to a stay in this state (attempts are compared by `decide`)."""
    return STAYS[state][CALL_EVENTS.index(event_type)]


class RegistrationStep(str, Enum):
    """What an event does to a registration. The value is the ``outcome`` in the journal."""

    REGISTER = "registered"
    RENEW = "renewed"
    REVIVE = "revived"
    END = "ended"
    LOSE = "lost"
    DUPLICATE = "duplicate"
    STALE = "stale"
    UNKNOWN = "unknown"


REGISTRATION_EVENTS = ("conference-registered", "unregistered-ended", "unregistered-lost")

_r = RegistrationStep
REGISTRATIONS: dict[Known | RegistrationState, tuple[RegistrationStep, RegistrationStep, RegistrationStep]] = {
    #                            conference-registered, unregistered: ended, unregistered: lost
    # The end of an unknown instance is remembered: should its registration come late, it is stale.
    Known.NOTHING:              (_r.REGISTER,           _r.END,              _r.UNKNOWN),
    RegistrationState.LIVE:     (_r.RENEW,              _r.END,              _r.LOSE),
    RegistrationState.LAPSED:   (_r.REVIVE,             _r.END,              _r.LOSE),
    RegistrationState.LOST:     (_r.REVIVE,             _r.END,              _r.DUPLICATE),
    RegistrationState.ENDED:    (_r.STALE,              _r.DUPLICATE,        _r.STALE),
}  # fmt: skip
del _r


def registration_step(state: Known | RegistrationState, event: str) -> RegistrationStep:
    """What an event does to a registration in this state."""
    return REGISTRATIONS[state][REGISTRATION_EVENTS.index(event)]
