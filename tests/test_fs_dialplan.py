"""The dialplan of a node: whose calls it lets into which conference, and how the caller is shown there.

It is run by an evaluator written after FreeSWITCH's sources (tests/support/dialplan.py); no FreeSWITCH runs here.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from callyard.parts.freeswitch_api import Api, cond
from callyard.settings import FreeswitchSettings, NodeSettings
from fs_hooks import render
from fs_hooks.vouching import Entry
from tests.support.dialplan import Call, Switch, match

NOW = 1_795_422_400
GATEWAY = "192.0.2.10"
OUTSIDER = "203.0.113.5"
NODE = NodeSettings(id="node-1", sip_uri="sip:{conference}@192.0.2.7:5060;transport=tcp")
REFUSED = "404 Not Found"

# What BigBlueButton's own dialplan does with what is handed to it, in short (conf/dialplan/public/bbb_sip.xml,
# default/bbb_conference.xml): another way in, beside ours, and the checks that ours must satisfy.
PUBLIC = """<include>
  <extension name="others" continue="true">
    <condition field="destination_number" expression="^3000$"><action application="respond" data="200 OK"/></condition>
  </extension>
</include>"""
DEFAULT = r"""<include>
  <extension name="without_a_name">
    <condition field="${caller_id_name}" expression="^$|^[Aa]nonymous$" break="on-true">
      <action application="hangup" data="CALL_REJECTED"/>
    </condition>
  </extension>
  <extension name="without_a_number">
    <condition field="${caller_id_number}" expression="^$|^[Aa]nonymous$">
      <action application="hangup" data="CALL_REJECTED"/>
    </condition>
  </extension>
  <extension name="conferences">
    <condition field="${bbb_authorized}" expression="true" break="on-false"/>
    <condition field="destination_number" expression="^(\d{5,11})$">
      <action application="answer"/>
      <action application="conference" data="$1@cdquality"/>
    </condition>
  </extension>
</include>"""


class Node:
    """A node with the conference 49123, and a meeting 49200 that nobody has joined by audio."""

    def __init__(self, gateways: str = f"{GATEWAY},198.51.100.0/24", **more: object) -> None:
        self.counts = {"49123": 2, "99999": 1}
        self.api = Api(clock=lambda: NOW)
        self.api.counts = lambda: self.counts
        settings = FreeswitchSettings(gateways=gateways, **more)  # type: ignore[arg-type]
        self.xml = render.dialplan(settings, NODE.exclude)
        self.switch = Switch(
            self.api,
            {
                "public": [*ET.fromstring(self.xml), *ET.fromstring(PUBLIC)],
                "default": list(ET.fromstring(DEFAULT)),
            },
        )

    def call(self, number: str, address: str = GATEWAY, **more: str) -> Call:
        return self.switch.run(Call(address, number, **more))

    def vouch(self, number: str, until: int | None) -> None:
        name, words = Entry(number, until).words
        assert self.api.execute(name, words) == "+OK"


@pytest.mark.parametrize(
    ("address", "number", "vouched_until", "led_to"),
    [
        # from a gateway: what runs there
        (GATEWAY, "49123", None, "49123@cdquality"),
        ("198.51.100.77", "49123", None, "49123@cdquality"),
        # what doesn't
        (GATEWAY, "49124", None, REFUSED),
        (GATEWAY, "49200", None, REFUSED),
        # what the hook vouches for, until the time it names
        (GATEWAY, "49200", NOW + 60, "49200@cdquality"),
        (GATEWAY, "49200", NOW + 1, "49200@cdquality"),
        (GATEWAY, "49200", NOW, REFUSED),
        (GATEWAY, "49200", NOW - 1, REFUSED),
        (GATEWAY, "49123", NOW - 1, "49123@cdquality"),
        # BigBlueButton's test conference is never reached, though it runs and were it vouched for
        (GATEWAY, "99999", None, REFUSED),
        (GATEWAY, "99999", NOW + 60, REFUSED),
        (GATEWAY, "999990", NOW + 60, "999990@cdquality"),
        # whoever else calls goes on to the dialplan that stands behind, and nothing of ours helps there
        (OUTSIDER, "49123", None, None),
        (OUTSIDER, "49200", NOW + 60, None),
        ("192.0.2.100", "49123", None, None),
        ("198.51.101.77", "49123", None, None),
        ("2001:db8::1", "49123", None, None),
        ("", "49123", None, None),
        (OUTSIDER, "3000", None, "200 OK"),
        # a gateway doesn't
        (GATEWAY, "3000", None, REFUSED),
    ],
)
def test_who_is_let_in_where(address: str, number: str, vouched_until: int | None, led_to: str | None) -> None:
    node = Node()
    if vouched_until is not None:
        node.vouch(number, vouched_until)
    call = node.call(number, address)
    assert (call.conference or call.response) == led_to


@pytest.mark.parametrize(
    "number",
    [
        "", "4912", "491234567890", "49123 ", " 49123", "49123\n", "+49123", "٤٩١٢٣", "4912x", "49123;x=1",
        "49123 list count)}${system(id)}", "${system(id)}", "49123)", "49123 kick all", "$1", "all", "list", "count",
        "49123 XML default", "public",
    ],
)  # fmt: skip
def test_what_is_no_conference_number_is_refused_and_asked_nothing_about(number: str) -> None:
    node = Node()
    node.counts |= {"all": 1, "list": 1, "4912": 1, "49123\n": 1}
    call = node.call(number)
    assert (call.conference, call.response) == (None, REFUSED)
    assert {asked.split(" ")[0] for asked in call.asked} == {"acl"}


def test_what_answers_in_another_form_refuses() -> None:
    node = Node()
    for answer in ("", "-ERR no reply", "<API Execute Permission Denied>", "+OK 2", "2 members", "INVALID COMMAND!"):
        node.api._commands["conference"] = lambda _arguments, answer=answer: answer  # type: ignore[misc]
        assert node.call("49123").response == REFUSED, answer


@pytest.mark.parametrize("value", ["", "x", "soon", "-1", "+", ".", "0", "179542246"])
def test_an_entry_that_is_no_time_to_come_vouches_for_nothing(value: str) -> None:
    node = Node()
    node.api.variables["callyard_vouched_49200"] = value
    assert node.call("49200").response == REFUSED


def test_a_variable_of_the_call_is_no_entry() -> None:
    node = Node()
    call = Call(GATEWAY, "49200", variables={"callyard_vouched_49200": str(NOW + 60)})
    assert node.switch.run(call).response == REFUSED


def test_an_entry_of_one_number_is_none_of_another() -> None:
    node = Node()
    node.vouch("49200", NOW + 60)
    node.vouch("49201", NOW + 60)
    node.vouch("49201", None)
    assert [node.call(number).conference for number in ("49200", "49201", "4920", "492001")] == [
        "49200@cdquality", None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gateways", "address", "let_in"),
    [
        ("2001:db8:5::/48", "2001:db8:5::7", True),
        ("2001:db8:5::/48", "2001:db8:6::7", False),
        (f"{GATEWAY},2001:db8:5::/48", GATEWAY, True),
        (f"{GATEWAY},2001:db8:5::/48", "2001:db8:5::7", True),
        # The bits of an IPv6 network read as an IPv4 address, and the other way round: what FreeSWITCH mixes up.
        (f"{GATEWAY},2001:db8:5::/48", "32.1.13.184", False),
        ("2001:db8::/32", "32.1.13.184", False),
        (GATEWAY, "c000:20a::1", False),
    ],
)
def test_addresses_are_only_compared_with_networks_of_their_kind(gateways: str, address: str, let_in: bool) -> None:
    assert (Node(gateways).call("49123", address).conference is not None) == let_in


@pytest.mark.parametrize(
    ("caller", "number", "shown"),
    [
        ("masked", "+493012345678", "+493012345xxx"),
        ("masked", "493012345678", "493012345xxx"),
        ("masked", "493012345xxx", "493012345xxx"),
        ("masked", "110", "xxx"),
        ("masked", "12", "unknown"),
        ("full", "+493012345678", "+493012345678"),
        ("full", "493012345xxx", "493012345xxx"),
        ("none", "+493012345678", "unknown"),
        *(
            (caller, hostile, "unknown")
            for caller in ("masked", "full")
            for hostile in (
                "", "unknown", "anonymous", "w_abc123_1-bbbID-Teacher", "123-bbbID-456", "${system(id)}",
                "49301234567\n", "493012345abc",
                "4930 1234567", "1,2=3", "x" * 40, "1" * 40, "caller_id_name=x", "$1",
            )
        ),
    ],
)  # fmt: skip
def test_how_a_caller_is_shown(caller: str, number: str, shown: str) -> None:
    call = Node(caller=caller).call("49123", caller_id_number=number, caller_id_name="w_abc123_1-bbbID-Teacher")
    assert (call.caller_id_name, call.caller_id_number, call.conference) == (shown, shown, "49123@cdquality")


def test_a_gateway_that_vanishes_leaves_no_caller_behind() -> None:
    assert Node().call("49123").variables["media_timeout"] == "120"
    assert "media_timeout" not in Node(media_timeout_seconds=0).call("49123").variables


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("1 < 2 ? yes : no", "yes"), ("2 < 1 ? yes : no", "no"), ("2 < 2 ? yes : no", "no"),
        ("1 <  ? yes : no", "-ERR"),
        ("1 < abc ? yes : no", "yes"), (" < 1 ? yes : no", "yes"), ("1 < 2 yes : no", "-ERR"), ("", "-ERR"),
        ("2 < 1 ? yes", ""), ("a == a ? yes : no", "yes"), ("a == b ? yes : no", "no"), ("1 < 2", "-ERR"),
    ],
)  # fmt: skip
def test_the_double_compares_as_mod_commands_does(question: str, answer: str) -> None:
    assert cond(question) == answer


def test_expressions_are_matched_by_pcre() -> None:
    assert match("49123\n", r"^\d{5}$") == ["49123"]  # what Python would do, too, and why the dialplan says \z
    assert match("49123\n", r"^\d{5}\z") is None
    assert match("ab", "(a)(x)?b") == ["ab", "a"]
