"""Languages: sounds spoken by the real espeak-ng, cut by the real sox, played by the real Asterisk."""

from __future__ import annotations

import subprocess
import wave
from collections.abc import Sequence
from pathlib import Path

import pytest

from ast_config import speech
from ast_config.sounds import files, languages, missing_sounds, needed, place
from ast_config.texts import TEXTS
from callyard.errors import CommandError
from callyard.parts import confine, sipp
from callyard.parts.prepare import INSTANCE, found
from callyard.settings import AsteriskSettings
from tests.support.asterisk import conference_number, problems
from tests.test_ast_dialogue import calling, gateway_with, hears

BOTH = {"language_numbers": "4930=de", "read_back": True, "announce_seconds": 20}


def packaged(directory: Path) -> Path:
    """Asterisk's own sounds: in the prepared tree, "en" is a link that leads out of it."""
    root = found().asterisk_root
    sounds = (root or Path("/")) / "usr/share/asterisk/sounds"
    if root is None:
        return sounds
    directory.mkdir()
    (directory / "en").symlink_to(sounds / "en_US_f_Allison")
    return directory


def in_tree(directory: Path) -> speech.Runner:
    """Runs espeak-ng and sox of the prepared tree, where ``directory`` is mounted as in an instance."""
    root = found().asterisk_root

    def runner(argv: Sequence[str]) -> None:
        if root is None:
            speech.run(argv)
            return
        inside = [word.replace(str(directory), INSTANCE).replace(str(root), "") for word in argv]
        subprocess.run(
            confine.command(inside, root=root, binds=[(directory, INSTANCE)]), check=True, capture_output=True
        )

    return runner


def test_each_sound_has_a_text_in_each_language_that_is_complete() -> None:
    names = set(needed(AsteriskSettings(read_back=True)))
    assert {language: names - set(texts) for language, texts in TEXTS.items()} == {"en": set(), "de": set()}


def test_missing_sounds_are_named_by_language(tmp_path: Path) -> None:
    settings = AsteriskSettings(language_numbers="4930=de,4930123=de_AT", prompt_greeting="", prompt_connected="beep")
    assert languages(settings) == ["en", "de", "de_AT"]
    for language in ("en", "de"):
        for name in needed(settings):
            (tmp_path / language).mkdir(exist_ok=True)
            (tmp_path / language / f"{name}.gsm").touch()
    assert missing_sounds(settings, tmp_path) == []
    (tmp_path / "en" / "beep.gsm").unlink()
    (tmp_path / "de" / "vm-goodbye.gsm").rename(tmp_path / "de" / "vm-goodbye.mp3")
    assert missing_sounds(settings, tmp_path) == ["de/vm-goodbye", "de_AT/vm-goodbye", "en/beep"]
    elsewhere = settings.model_copy(update={"sounds_directory": str(tmp_path / "none")})
    assert len(missing_sounds(elsewhere, tmp_path)) == 3 * len(needed(settings))


def test_what_cannot_be_made_is_named(tmp_path: Path) -> None:
    settings = AsteriskSettings(language="fr", sounds_directory=str(tmp_path / "made"))
    (tmp_path / "moh").mkdir()
    (tmp_path / "moh" / "song.wav").touch()
    with pytest.raises(CommandError, match="fr/conf-getconfno"):
        speech.make(settings, tmp_path / "none", tmp_path / "moh", lambda _: None)
    elsewhere = settings.model_copy(update={"sounds_directory": str(tmp_path / "other")})
    with pytest.raises(CommandError, match="no music"):
        speech.make(elsewhere, tmp_path / "none", tmp_path / "nowhere", lambda _: None)
    with pytest.raises(CommandError, match="SOUNDS_DIRECTORY"):
        speech.make(AsteriskSettings(), tmp_path, tmp_path)


@pytest.mark.asterisk
async def test_german_is_spoken_to_who_dials_the_german_number(tmp_path: Path) -> None:
    directory = tmp_path / "gateway"
    made = directory / "sounds"
    made.mkdir(parents=True)
    here = AsteriskSettings.model_validate({**BOTH, "sounds_directory": str(made)})
    own = place(made, "de", "vm-goodbye").with_suffix(".gsm")
    own.parent.mkdir(parents=True)
    own.write_bytes(b"")
    one_song = tmp_path / "gateway" / "songs"
    one_song.mkdir()
    with wave.open(str(one_song / "song.wav"), "wb") as song:
        song.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        song.writeframes(bytes(2 * 8000 * 45))
    speech.make(here, packaged(tmp_path / "packaged"), one_song, in_tree(directory))

    assert missing_sounds(here, Path("/nowhere")) == []
    # English comes recorded, German spoken; what was there stays.
    assert [file.suffix for file in files(place(made, "en", "conf-getconfno"))] == [".gsm"]
    assert own.read_bytes() == b""
    assert [file.name for file in files(place(made, "de", "vm-goodbye"))] == ["vm-goodbye.gsm"]
    with wave.open(str(files(place(made, "de", "conf-getconfno"))[0])) as spoken:
        assert (spoken.getframerate(), spoken.getnchannels()) == (8000, 1)
        assert 2 < spoken.getnframes() / spoken.getframerate() < 10
    lengths = []
    for piece in sorted((made / "music-20").iterdir()):
        with wave.open(str(piece)) as cut:
            lengths.append(cut.getnframes() / cut.getframerate())
    assert lengths == [20, 20, 5]
    assert speech.make(here, Path("/nowhere"), Path("/nowhere"), in_tree(directory)) == []

    inside = INSTANCE if found().asterisk_root else str(directory)
    numbers = [conference_number() for _ in range(2)]
    async with gateway_with(tmp_path, **{**BOTH, "sounds_directory": f"{inside}/sounds"}) as (gateway, client):
        async with calling(gateway, tmp_path, sipp.Call("4930111", f"{numbers[0]}#", dials="+493055")):
            await client.event("ParkedCall", CALLYARD_CONFERENCE=numbers[0], timeout=30)
            await hears(
                gateway, *(f"{inside}/sounds/{name}" for name in ("hello", "you-entered", "conf-waitforleader"))
            )
            spoken_in = [line for line in gateway.log().splitlines() if "Playing" in line]
            assert spoken_in
            assert all("(language 'de')" in line for line in spoken_in)
        async with calling(gateway, tmp_path / "other", sipp.Call("4930111", f"{numbers[1]}#", dials="4940")):
            await client.event("ParkedCall", CALLYARD_CONFERENCE=numbers[1], timeout=30)
            assert "(language 'en')" in gateway.log()
        assert list(problems(gateway.log())) == []
