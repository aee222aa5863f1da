"""Files that are rendered into a directory: whose they are, and what a diff of them shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from callyard.owned_files import HASH, SEMICOLON, XML, Comment, ForeignFileError, Rendered, is_ours, sealed

COMMAND = "callyard render something"
BODY = "[a]\nb = ü ; callyard-digest: none\n"


@pytest.mark.parametrize("comment", [HASH, SEMICOLON, XML])
def test_what_was_changed_or_rendered_by_another_is_not_ours(comment: Comment) -> None:
    content = sealed(BODY, comment, COMMAND)
    assert is_ours(content, comment, COMMAND)
    assert not is_ours(content, comment, "callyard render another")
    assert not is_ours(content + "\n", comment, COMMAND)
    assert not is_ours(f"mine = 1\n{content}", comment, COMMAND)
    for there, instead in (("b = ", "b =  "), ("Rendered", "Edited"), ("callyard-digest", "digest")):
        assert not is_ours(content.replace(there, instead, 1), comment, COMMAND)
    # A line put between those two.
    assert not is_ours(content.replace("\n", "\nmine = 1\n", 1), comment, COMMAND)


def test_what_an_earlier_version_worded_differently_is_ours() -> None:
    digest = hashlib.sha256(BODY.encode()).hexdigest()
    assert is_ours(
        f"; Rendered by '{COMMAND}'. Change Callyard's settings instead of this file: it isn't overwritten once\n"
        f"; it was edited by hand.\n; callyard-digest: {digest}\n{BODY}",
        SEMICOLON, COMMAND,
    )  # fmt: skip


def test_a_file_that_is_no_utf8_is_foreign_and_its_difference_can_be_printed(tmp_path: Path) -> None:
    ours = Rendered(COMMAND, {"a.conf": sealed(BODY, HASH, COMMAND)}, {"a.conf": HASH})
    for foreign in (b"gr\xfc\xdfe\n", sealed(BODY, HASH, COMMAND).encode() + b"\xfc\n"):
        (tmp_path / "a.conf").write_bytes(foreign)
        with pytest.raises(ForeignFileError, match=r"a\.conf"):
            ours.write(tmp_path)
        assert (tmp_path / "a.conf").read_bytes() == foreign
        assert "\N{REPLACEMENT CHARACTER}" in ours.differences(tmp_path).encode().decode()
