"""Runs one program so that it ends with its parent, sees its own mounts, and (optionally) another root.

Started as a script with one argument, a JSON object, before the program itself; it replaces itself by the program, so
the process id stays. It must never mount anything that outlives the program: all mounts are made in a mount namespace
of its own, which ends with its last process. Needs the standard library of Linux's Python only, so that it starts fast
(``python -I -S confine.py``).

Without root it takes a user namespace, in which it is root over its own files only.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# <linux/sched.h>, <sys/mount.h>, <linux/prctl.h>: Python names them from 3.12 on, or not at all.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_PR_SET_PDEATHSIG = 1


def command(
    argv: Sequence[str | Path], *, root: Path | None = None, binds: Sequence[tuple[Path, str]] = ()
) -> list[str]:
    """The command line that runs ``argv`` confined, as a child of this process.

    ``root`` is the tree that becomes its root directory; each of ``binds`` is a path of this machine and the absolute
    path (inside ``root``) at which the program sees it. Both must exist.
    """
    plan = {
        "parent": os.getpid(),
        "argv": [str(word) for word in argv],
        "root": str(root) if root else None,
        "binds": [[str(source), target] for source, target in binds],
    }
    return [sys.executable, "-I", "-S", __file__, json.dumps(plan)]


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _enter_namespaces(libc: ctypes.CDLL) -> None:
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        _check(libc.unshare(_CLONE_NEWNS), "a mount namespace of its own (needs CAP_SYS_ADMIN)")
    else:
        _check(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "a user namespace of its own (kernel.unprivileged_userns…)")
        # setgroups must be denied before an unprivileged process may write gid_map: user_namespaces(7).
        for name, content in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path("/proc/self", name).write_text(content, encoding="ascii")
    _check(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "making mounts private")


def _mount(libc: ctypes.CDLL, source: str, target: str) -> None:
    _check(libc.mount(source.encode(), target.encode(), None, _MS_BIND | _MS_REC, None), f"{source} at {target}")


def _run(plan: dict[str, Any]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    root, argv = plan["root"], plan["argv"]
    if root or plan["binds"]:
        _enter_namespaces(libc)
    for source, target in ([["/proc", "/proc"], ["/dev", "/dev"]] if root else []) + plan["binds"]:
        _mount(libc, source, (root or "") + target)
    if root:
        os.chroot(root)
        os.chdir("/")
    # Last: entering a user namespace changes credentials, and that clears the signal (prctl(2)). A parent that died
    # before this line is noticed by the comparison.
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != plan["parent"]:
        sys.exit("its parent is gone")
    os.execvp(argv[0], argv)  # noqa: S606 - running this program is the purpose


if __name__ == "__main__":
    try:
        _run(json.loads(sys.argv[1]))
    except OSError as error:
        sys.exit(f"cannot run {json.loads(sys.argv[1])['argv'][0]}: {error.strerror or error}")
