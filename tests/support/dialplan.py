"""What FreeSWITCH does with a dialplan, as far as Callyard's and BigBlueButton's use it, for tests.

Written after mod_dialplan_xml.c (``dialplan_hunt``, ``parse_exten``), switch_channel.c
(``switch_channel_expand_variables_check``, ``switch_channel_get_variable_dup``) and switch_regex.c. Expressions are
matched by PCRE2 itself, as there. What isn't written here fails: a dialplan that needs more isn't tested by silence.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from callyard.parts.freeswitch_api import Api

_PCRE = ctypes.CDLL(ctypes.util.find_library("pcre2-8") or "libpcre2-8.so.0")
for _name, _result in (
    ("pcre2_compile_8", ctypes.c_void_p), ("pcre2_match_data_create_from_pattern_8", ctypes.c_void_p),
    ("pcre2_get_ovector_pointer_8", ctypes.POINTER(ctypes.c_size_t)), ("pcre2_match_8", ctypes.c_int),
):  # fmt: skip
    getattr(_PCRE, _name).restype = _result
_ZERO_TERMINATED = ctypes.c_size_t(-1)
_UNSET = ctypes.c_size_t(-1).value


def match(subject: str, pattern: str) -> list[str] | None:
    """The groups of a match, the whole first; None: no match. Raises `AssertionError` for what isn't an expression."""
    assert not pattern.startswith(("/", "_")), "expressions with slashes or Asterisk's are not written here"
    code, offset = ctypes.c_int(), ctypes.c_size_t()
    compiled = _PCRE.pcre2_compile_8(
        pattern.encode(), _ZERO_TERMINATED, 0, ctypes.byref(code), ctypes.byref(offset), None
    )
    assert compiled, f"PCRE doesn't compile {pattern!r} (error {code.value} at {offset.value})"
    data = ctypes.c_void_p(_PCRE.pcre2_match_data_create_from_pattern_8(ctypes.c_void_p(compiled), None))
    text = subject.encode()
    count = _PCRE.pcre2_match_8(
        ctypes.c_void_p(compiled), text, ctypes.c_size_t(len(text)), ctypes.c_size_t(0), 0, data, None
    )
    groups: list[str] | None = None
    if count > 0:
        found = _PCRE.pcre2_get_ovector_pointer_8(data)
        spans = [(found[2 * i], found[2 * i + 1]) for i in range(count)]
        groups = ["" if begin == _UNSET else text[begin:end].decode() for begin, end in spans]
    _PCRE.pcre2_match_data_free_8(data)
    _PCRE.pcre2_code_free_8(ctypes.c_void_p(compiled))
    return groups


@dataclass
class Call:
    """A call as the dialplan sees it, and what the dialplan has done with it."""

    network_addr: str
    destination_number: str
    caller_id_number: str = "493012345xxx"
    caller_id_name: str = "493012345xxx"
    variables: dict[str, str] = field(default_factory=dict)
    response: str | None = None
    conference: str | None = None
    asked: list[str] = field(default_factory=list)
    """The ``api`` commands that were run for it."""

    def profile(self, name: str) -> str | None:
        """A field of the caller profile (switch_caller_get_field_by_name)."""
        fields = ("network_addr", "destination_number", "caller_id_number", "caller_id_name")
        return str(getattr(self, name)) if name in fields else None


class Switch:
    """Runs calls through contexts of extensions; ``api`` answers what the dialplan asks."""

    def __init__(self, api: Api, contexts: dict[str, list[ET.Element]]) -> None:
        self._api = api
        self._contexts = contexts

    def run(self, call: Call, context: str = "public") -> Call:
        """Route the call, and again where it is transferred."""
        for application, data in self._hunt(call, context):
            expanded = self._expand(call, data)
            match application:
                case "set":
                    name, _, value = expanded.partition("=")
                    call.variables[name] = value
                case "set_profile_var":
                    name, _, value = expanded.partition("=")
                    assert call.profile(name) is not None, f"no profile field {name}"
                    setattr(call, name, value)
                case "transfer":
                    call.destination_number, dialplan, onward = expanded.split(" ")
                    assert dialplan == "XML"
                    return self.run(call, onward)
                case "respond":
                    call.response = expanded
                    return call
                case "hangup":
                    call.response = f"hangup {expanded}"
                    return call
                case "conference":
                    call.conference = expanded
                    return call
                case "answer" | "jitterbuffer" | "export" | "log":
                    pass
                case _:
                    raise AssertionError(f"application {application} is not written here")
        return call

    def _hunt(self, call: Call, context: str) -> list[tuple[str, str]]:
        actions: list[tuple[str, str]] = []
        for extension in self._contexts[context]:
            if self._extension(call, extension, actions) and extension.get("continue") != "true":
                break
        return actions

    def _extension(self, call: Call, extension: ET.Element, actions: list[tuple[str, str]]) -> bool:
        """``parse_exten``: whether to stay with this extension (its ``proceed``)."""
        proceed = False
        for condition in extension.findall("condition"):
            assert set(condition.attrib) <= {"field", "expression", "break", "regex"}, condition.attrib
            assert condition.find("condition") is None, "nested conditions are not written here"
            breaks = condition.get("break", "on-false")
            groups: list[str] = []
            if (rule := condition.get("regex")) is not None:
                assert rule == "any", "regex=all and xor are not written here"
                passed = False
                for regex in condition.findall("regex"):
                    expression = self._expand(call, regex.get("expression", ""))
                    assert "(" not in expression, "captures in <regex> are not written here"
                    proceed = match(self._field(call, regex.get("field", "")), expression) is not None
                    if proceed:
                        passed = True
                        break
                expression = ""
            elif (name := condition.get("field")) is not None:
                expression = self._expand(call, condition.get("expression", ""))
                found = match(self._field(call, name), expression)
                proceed = passed = found is not None
                groups = found or []
            else:
                expression, proceed, passed = "", True, True
            if passed:
                for action in condition.findall("action"):
                    data = action.get("data", "")
                    actions.append((action.get("application", ""), _substitute(data, groups, expression)))
            else:
                for action in condition.findall("anti-action"):
                    actions.append((action.get("application", ""), action.get("data", "")))
                    proceed = True
            assert breaks in {"on-true", "on-false", "always", "never"}
            if breaks in {"always", "on-true" if passed else "on-false"}:
                break
        return proceed

    def _field(self, call: Call, name: str) -> str:
        if "$" in name:
            return self._expand(call, name)
        return call.profile(name) or ""

    def _variable(self, call: Call, name: str) -> str:
        found = call.variables.get(name)
        if found is None:
            found = call.profile(name)
        if found is None:
            found = self._api.variables.get(name)
        return "" if found is None else self._expand(call, found)

    def _expand(self, call: Call, text: str) -> str:
        """``switch_channel_expand_variables_check``, of what begins with ``${``."""
        out, at = "", 0
        while (begin := text.find("${", at)) >= 0:
            out += text[at:begin]
            end = _closing(text, begin + 2, "{", "}")
            out += self._one(call, text[begin + 2 : end])
            at = end + 1
        return out + text[at:]

    def _one(self, call: Call, inside: str) -> str:
        ends = [at for at in (inside.find(" "), inside.find("(")) if at >= 0]
        if not ends:
            return self._variable(call, inside)
        at = min(ends)
        assert inside[at] == "(", "${api arguments} without brackets is not written here"
        name, arguments = inside[:at], self._expand(call, inside[at + 1 : _closing(inside, at + 1, "(", ")")])
        call.asked.append(f"{name} {arguments}".rstrip())
        answer = self._api.execute(name, arguments)
        return "" if answer is None else answer


def _closing(text: str, at: int, opening: str, closing: str) -> int:
    depth = 1
    for position in range(at, len(text)):
        if text[position] == opening:
            depth += 1
        elif text[position] == closing:
            depth -= 1
            if depth == 0:
                return position
    raise AssertionError(f"{closing} is missing in {text!r}")


def _substitute(data: str, groups: list[str], expression: str) -> str:
    """``switch_perform_substitution``: only where the condition's expression has a round bracket."""
    if "(" not in expression:
        return data
    out, at = "", 0
    while at < len(data):
        if data[at] != "$" or not data[at + 1 : at + 2].isdigit():
            assert data[at : at + 2] != "${" or not data[at + 2 : at + 3].isdigit(), "${1} is not written here"
            out += data[at]
            at += 1
            continue
        end = at + 1
        while data[end : end + 1].isdigit():
            end += 1
        number = int(data[at + 1 : end])
        out += groups[number] if number < len(groups) else ""
        at = end
    return out
