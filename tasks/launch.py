"""What happens between the fork and the exec of a child: `python launch.py '<json>' program arguments…`.

The law: this file runs on its own, with the standard library only, and ends by becoming the program.
It exists because none of this can be done safely by `preexec_fn` in a process with threads:

* the child dies with its parent (PR_SET_PDEATHSIG, Linux), so that a `kill -9` leaves nothing behind;
* the child gives up root, since Postgres refuses to run as root;
* where the new account may not pass the folders above the data or the programs (`/root` is 0700), it
  keeps the one capability to pass them. The alternative, opening those folders to everybody, would
  change the user's machine for good.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAPABILITY_VERSION_3 = 0x20080522


def main() -> None:
    """Do what the order says, then become the program."""
    order = json.loads(sys.argv[1])
    program = sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if order["uid"] is not None:
        _become(libc, order["uid"], order["gid"], order["capability"])
    if sys.platform == "linux":
        # After the change of account, which clears it.
        _prctl(libc, PR_SET_PDEATHSIG, order["death_signal"])
        if os.getppid() != order["parent"]:
            sys.exit("the parent is gone already")
    os.execv(program[0], program)  # noqa: S606 - no shell is wanted


def _become(libc: ctypes.CDLL, uid: int, gid: int, capability: int | None) -> None:
    os.setgroups([])
    if capability is not None:
        # Without this bit access(2), by which Postgres checks its own programs, ignores capabilities.
        _prctl(libc, PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgid(gid)
    os.setuid(uid)
    if capability is not None:
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        mask = 1 << capability
        data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)  # effective, permitted, inheritable
        _check(libc.capset(header, data), "capset")
        _prctl(libc, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def _prctl(libc: ctypes.CDLL, option: int, *values: int) -> None:
    padded = [*values, 0, 0, 0, 0][:4]
    _check(libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
