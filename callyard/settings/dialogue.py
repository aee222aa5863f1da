"""What the gateway's callers meet: the settings of the dialogue, part of the group ``asterisk`` (`callyard.settings`).

Each value goes into Asterisk's dialplan as it stands. So each pattern here admits only what cannot end a line, begin a
comment, an argument or an expression there.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

PROMPT = r"^[A-Za-z0-9_./-]+(&[A-Za-z0-9_./-]+)*$"
"""Sound files, played one after the other."""
ONE_PROMPT = r"^[A-Za-z0-9_./-]+$"
NO_PROMPT = r"^([A-Za-z0-9_./-]+(&[A-Za-z0-9_./-]+)*)?$"
_LANGUAGE = r"[A-Za-z]{2,3}(_[A-Za-z0-9]{1,8})*"
_BY_NUMBER = rf"^([0-9]{{1,20}}={_LANGUAGE}(,[0-9]{{1,20}}={_LANGUAGE})*)?$"
_BY_TRUNK = rf"^([A-Za-z0-9_.-]{{1,60}}={_LANGUAGE}(,[A-Za-z0-9_.-]{{1,60}}={_LANGUAGE})*)?$"


def pairs(value: str) -> list[tuple[str, str]]:
    """``a=b,c=d`` as pairs, in that order."""
    return [(left, right) for left, _, right in (item.partition("=") for item in value.split(",") if item)]


def words(value: str) -> list[str]:
    """``a,b`` as a list; empty where there is nothing."""
    return [item for item in value.split(",") if item]


class DialogueSettings(BaseModel):
    """What callers hear, may do, and are limited to."""

    number_pattern: str = Field(
        "", pattern=r"^(\[[0-9-]+\]|\{[0-9]+(,[0-9]*)?\}|[0-9()|*+?])*$",
        description="Regular expression (POSIX extended, digits only) that a conference number must match as a whole,"
        " beside its length, for example [1-9][0-9]+; empty: any digits.",
    )  # fmt: skip
    direct_numbers: str = Field(
        "", pattern=r"^([0-9]{3,20}=[0-9]{5,11}(,[0-9]{3,20}=[0-9]{5,11})*)?$",
        description="Dialled numbers that lead to a conference without asking: number=conference, comma-separated. The"
        " number as the trunk sends it, without +.",
    )  # fmt: skip
    direct_prefixes: str = Field(
        "", pattern=r"^([0-9]{1,20}(,[0-9]{1,20})*)?$",
        description="Beginnings of dialled numbers, comma-separated: what follows one is the conference number, and"
        " nobody is asked. As the trunk sends it, without +.",
    )  # fmt: skip
    language_numbers: str = Field(
        "", pattern=_BY_NUMBER,
        description="Languages by the beginning of the dialled number: beginning=language, comma-separated; the"
        " longest beginning decides.",
    )  # fmt: skip
    language_trunks: str = Field(
        "", pattern=_BY_TRUNK,
        description="Languages by trunk: name of its endpoint in pjsip.conf=language, comma-separated; the dialled"
        " number decides first.",
    )  # fmt: skip
    sounds_directory: str = Field(
        "", pattern=r"^(/[A-Za-z0-9_./-]+)?$",
        description="Directory (absolute) into which 'callyard render sounds' wrote spoken prompts and cut music;"
        " empty: none, the prompts are Asterisk's own.",
    )  # fmt: skip
    read_back: bool = Field(False, description="Whether the entered digits are read back before the wait begins.")
    announce_seconds: int = Field(
        30, ge=5, le=3600,
        description="Seconds of music between two announcements to who waits: the length of the pieces that 'callyard"
        " render sounds' cuts. Without such pieces, each whole piece of music is followed by one.",
    )  # fmt: skip
    warn_seconds: int = Field(
        30, ge=0, le=3600,
        description="Seconds before the longest wait, or the longest call, is over in which the caller is warned;"
        " 0: no warning.",
    )  # fmt: skip
    star: Literal["ask", "nothing"] = Field(
        "ask", description="What * does while a caller waits: ask for another number, or nothing."
    )
    outage_seconds: int = Field(
        600, ge=0, le=86400,
        description="Seconds that callers wait on while nobody could put them through (no agent with a connection to"
        " Kafka), before they are told and the call ends; 0: up to the longest wait.",
    )  # fmt: skip
    longest_call_seconds: int = Field(
        0, ge=0, le=604_800, description="Seconds after which a call ends, in a conference, too; 0: no limit."
    )
    caller_parked_limit: int = Field(
        0, ge=0, le=100_000,
        description="Most calls of one caller's number that wait at the same time; 0: no limit. Where many call from"
        " one number (a company), not less than those.",
    )  # fmt: skip
    caller_tries_limit: int = Field(
        20, ge=0, le=100_000,
        description="Most conference numbers that one caller's number may enter in a minute, against guessing;"
        " 0: no limit.",
    )  # fmt: skip
    trunk_parked_limit: int = Field(
        0, ge=0, le=100_000, description="Most calls of one trunk that wait at the same time; 0: no limit."
    )
    trunk_tries_limit: int = Field(
        0, ge=0, le=1_000_000,
        description="Most conference numbers that all callers of one trunk may enter in a minute; 0: no limit.",
    )  # fmt: skip
    caller_id: Literal["masked", "full", "first", "none"] = Field(
        "masked",
        description="How nodes see the caller's number: its last digits as x, in full, its first digits only, or not"
        " at all.",
    )  # fmt: skip
    caller_id_digits: int = Field(
        3, ge=1, le=15, description="With masked, how many last digits become x; with first, how many are shown."
    )
    caller_name: str = Field(
        "{number}", pattern=r"^([A-Za-z0-9 ._+-]|\{number\}){1,60}$",
        description="The name that the meeting shows; {number} stands for the number as nodes see it.",
    )  # fmt: skip
    unknown_caller: str = Field(
        "unknown", pattern=r"^[A-Za-z0-9_-]{1,40}$",
        description="Number for who has none to show or withholds it; nodes reject an empty or anonymous one.",
    )  # fmt: skip
    unknown_name: str = Field(
        "unknown", pattern=r"^[A-Za-z0-9._+-]([A-Za-z0-9 ._+-]{0,58}[A-Za-z0-9._+-])?$",
        description="Name for who has no number to show or withholds it.",
    )  # fmt: skip

    prompt_greeting: str = Field(
        "hello", pattern=NO_PROMPT, description="Before a caller is asked the first time; empty: nothing."
    )
    prompt_number: str = Field("conf-getconfno", pattern=PROMPT, description="Asks for the conference number and #.")
    prompt_nothing: str = Field(
        "vm-sorry", pattern=PROMPT, description="No digit came within the time; the caller is asked again."
    )
    prompt_wrong: str = Field("conf-invalid", pattern=PROMPT, description="The number's form is wrong; asks again.")
    prompt_goodbye: str = Field("vm-goodbye", pattern=PROMPT, description="After the last wrong number.")
    prompt_read_back: str = Field("you-entered", pattern=PROMPT, description="Before the digits are read back.")
    prompt_waiting: str = Field(
        "conf-waitforleader", pattern=ONE_PROMPT,
        description="The announcement between the music, to who waits (one file); at the beginning of a wait, too.",
    )  # fmt: skip
    prompt_after_talk: str = Field(
        "one-moment-please", pattern=ONE_PROMPT,
        description="The same announcement to who waits after a talk that the node's side ended (one file).",
    )  # fmt: skip
    prompt_warning: str = Field(
        "queue-thankyou", pattern=ONE_PROMPT, description="The wait, or the call, is over soon (one file)."
    )
    prompt_connected: str = Field(
        "", pattern=r"^[A-Za-z0-9_./-]*$",
        description="To the caller when the node has answered, before they are connected (one file, for example beep);"
        " empty: nothing, and no delay.",
    )  # fmt: skip
    prompt_call_over: str = Field("vm-goodbye", pattern=PROMPT, description="The longest call is over.")
    prompt_full: str = Field("all-circuits-busy-now", pattern=PROMPT, description="No place is left to wait at.")
    prompt_limited: str = Field(
        "simul-call-limit-reached&please-try-call-later&vm-goodbye", pattern=PROMPT,
        description="This caller, or this trunk, waits too often or has tried too many numbers; the call ends.",
    )  # fmt: skip
    prompt_waited: str = Field(
        "please-try-call-later&vm-goodbye", pattern=PROMPT, description="The longest wait is over."
    )
    prompt_outage: str = Field(
        "sorry-youre-having-problems&please-try-call-later&vm-goodbye", pattern=PROMPT,
        description="For outage_seconds nobody could have put the caller through; the call ends.",
    )  # fmt: skip
    prompt_unreachable: str = Field(
        "sorry-youre-having-problems&one-moment-please", pattern=PROMPT,
        description="The conference runs but can't be reached; the caller waits on.",
    )  # fmt: skip
    prompt_given_up: str = Field(
        "sorry-youre-having-problems&please-try-call-later&vm-goodbye", pattern=PROMPT,
        description="The conference runs but can't be reached; the call ends.",
    )  # fmt: skip
    prompt_removed: str = Field(
        "conf-kicked&vm-goodbye", pattern=PROMPT, description="The caller was removed from the conference."
    )

    @field_validator("*")
    @classmethod
    def _stays_inside(cls, value: object) -> object:
        if isinstance(value, str) and ".." in value:
            raise ValueError("must not hold '..'")
        return value

    @field_validator("unknown_caller", "unknown_name", "caller_name")
    @classmethod
    def _not_anonymous(cls, value: str) -> str:
        if value.strip().lower() in {"anonymous", ""}:
            raise ValueError("must not be empty or 'anonymous'")
        return value

    @field_validator("number_pattern")
    @classmethod
    def _regular(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _each_number_once(self) -> DialogueSettings:
        for name in ("direct_numbers", "language_numbers", "language_trunks"):
            keys = [key for key, _ in pairs(getattr(self, name))]
            if len(keys) != len(set(keys)):
                raise ValueError(f"CALLYARD_ASTERISK_{name.upper()} names something twice")
        return self
