"""What is no Kubernetes manifest: alert rules and their tests, Dockerfiles, systemd units, each by its own program."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from deploy.check.commands import must, run
from deploy.check.report import CheckError
from deploy.check.tools import Tools

MOST_EXPOSED = 2.0
"""The highest exposure that ``systemd-analyze security`` may give a unit (0 is the best, 10 the worst)."""
_BAD_RULES = "groups: [{name: broken, rules: [{alert: Broken, expr: 'callyard_ready =='}]}]\n"
_BAD_DOCKERFILE = "FROM debian\nRUN cd /tmp && apt-get install python3\n"
_BAD_UNIT = "[Service]\nExecStart=/nowhere/callyard hook\nProtectSystem=sometimes\n"


async def rules(tools: Tools, folder: Path) -> str:
    """Alert rules and their tests. Raises `CheckError` in promtool's words."""
    files, tests = (
        sorted(set(folder.glob("*.yaml")) - set(folder.glob("*.test.yaml"))),
        sorted(folder.glob("*.test.yaml")),
    )
    if not files or not tests:
        raise CheckError(f"{folder} has {len(files)} files of rules and {len(tests)} of tests")
    checked = await must(tools.promtool, "check", "rules", *files)
    tested = await must(tools.promtool, "test", "rules", *(test.name for test in tests), directory=folder)
    if "SUCCESS" not in tested.out:
        raise CheckError(tested.words())
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as broken:
        broken.write(_BAD_RULES)
        broken.flush()
        if (await run(tools.promtool, "check", "rules", broken.name)).status == 0:
            raise CheckError("promtool takes an expression that is cut off")
    counts = re.findall(r"(\d+) rules found", checked.out)
    return f"{sum(map(int, counts))} rules and their tests ({len(tests)} files); a broken one is refused"


async def dockerfiles(tools: Tools, folder: Path) -> str:
    """The Dockerfiles. Raises `CheckError` in hadolint's words: any finding of it."""
    files = sorted(folder.glob("*Dockerfile"))
    if not files:
        raise CheckError(f"{folder} has no Dockerfile")
    await must(tools.hadolint, "--failure-threshold", "style", *files)
    if (await run(tools.hadolint, "--failure-threshold", "style", "-", given=_BAD_DOCKERFILE)).status == 0:
        raise CheckError("hadolint takes a Dockerfile without versions, users and order")
    return f"{', '.join(file.name for file in files)}; a bad one is refused"


async def units(folder: Path) -> str:
    """The systemd units: each is understood as a whole, and hardened. Raises `CheckError` in systemd's words."""
    if shutil.which("systemd-analyze") is None:
        raise CheckError("systemd-analyze is missing: it comes with systemd")
    files = sorted(path for path in folder.iterdir() if path.suffix in {".service", ".timer", ".target", ".socket"})
    notes = []
    with tempfile.TemporaryDirectory() as name:
        copies = [_here(file, Path(name)) for file in files]
        await _verified(copies)
        for copy in (copy for copy in copies if copy.suffix == ".service"):
            analyze = ("systemd-analyze", "security", "--offline=true", "--no-pager")
            done = await must(*analyze, f"--threshold={int(MOST_EXPOSED * 10)}", copy)
            found = re.search(r"exposure level for \S+: ([\d.]+)", done.out)
            notes.append(f"{copy.name} {found[1] if found else '?'}")
        broken = Path(name, "broken.service")
        broken.write_text(_BAD_UNIT, encoding="ascii")
        if not await _complaints([broken]):
            raise CheckError("systemd-analyze takes a unit whose program doesn't exist")
    return f"exposure of {', '.join(notes)} (at most {MOST_EXPOSED}); a broken one is refused"


def _here(unit: Path, folder: Path) -> Path:
    """A copy of the unit for a machine on which Callyard isn't installed."""
    copy = folder / unit.name
    copy.write_text(
        re.sub(r"^(Exec\w+=)/opt/callyard/bin/callyard", r"\1/bin/true", unit.read_text(), flags=re.MULTILINE)
    )
    return copy


async def _verified(units: list[Path]) -> None:
    if complaints := await _complaints(units):
        raise CheckError("\n".join(complaints))


async def _complaints(units: list[Path]) -> list[str]:
    done = await run("systemd-analyze", "verify", "--man=no", *units)
    # It verifies what these need, too: the machine's own units are not ours.
    said = [line for line in (done.err + done.out).splitlines() if any(unit.name in line for unit in units)]
    return said or (["systemd-analyze: " + done.words()] if done.status != 0 and not said else [])
