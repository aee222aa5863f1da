"""Callers' numbers: which form is kept of them, and how all calls of one number are found again."""

from __future__ import annotations

import pytest

from callyard.numbers import forms, hashed, shown
from callyard.records import CallerForm
from callyard.settings import GatewaySettings, PrivacySettings, SettingsError, load

KEY = "a key of more than sixteen characters"


@pytest.mark.parametrize(
    ("number", "form", "told"),
    [
        ("+4930123456", CallerForm.MASKED, "+493012****"),
        ("12345", CallerForm.MASKED, "1****"),
        ("1234", CallerForm.MASKED, "****"),
        ("12", CallerForm.MASKED, "**"),
        ("", CallerForm.MASKED, None),
        ("+4930123456", CallerForm.FULL, "+4930123456"),
        ("+4930123456", CallerForm.NONE, None),
    ],
)
def test_the_form_of_callers_numbers(number: str, form: CallerForm, told: str | None) -> None:
    assert shown(number, form) == (told, CallerForm.NONE if told is None else form)


def test_a_hash_is_the_same_for_each_spelling_of_one_number_and_another_under_another_key() -> None:
    told, form = shown("+49 30 123456", CallerForm.HASHED, KEY)
    assert (told, form) == (hashed("4930123456", KEY), CallerForm.HASHED)
    assert told is not None
    assert told.startswith("hash:")
    assert "123456" not in told
    assert told != hashed("4930123456", KEY + "!")
    assert told != hashed("4930123457", KEY)
    assert hashed("anonymous", KEY) != hashed("unknown", KEY)
    with pytest.raises(ValueError, match="without a key"):
        shown("+4930123456", CallerForm.HASHED)


def test_a_number_is_looked_for_in_each_form_that_records_may_hold() -> None:
    assert forms("+4930123456") == {"+4930123456", "+493012****"}
    assert forms("+4930123456", KEY) == {"+4930123456", "+493012****", hashed("+4930123456", KEY)}
    assert forms("+493012****", KEY) == {"+493012****"}
    assert forms("hash:00", KEY) == {"hash:00"}


def test_hashes_ask_for_a_key_and_the_key_for_its_length() -> None:
    environment = {"CALLYARD_GATEWAY_CALLER_NUMBER": "hashed"}
    loaded = load(GatewaySettings, PrivacySettings, environment=environment)
    with pytest.raises(SettingsError, match=r"CALLYARD_PRIVACY_CALLER_KEY .* is not set"):
        loaded[PrivacySettings].key_for(CallerForm.HASHED)
    assert loaded[PrivacySettings].key_for(CallerForm.MASKED) == ""
    with pytest.raises(SettingsError, match="16 characters or more"):
        load(PrivacySettings, environment={"CALLYARD_PRIVACY_CALLER_KEY": "short"})
    loaded = load(PrivacySettings, environment={"CALLYARD_PRIVACY_CALLER_KEY": KEY})
    assert loaded[PrivacySettings].key_for(CallerForm.HASHED) == KEY
