"""Which system account runs Postgres, which refuses to run as root.

The law: an ordinary user's servers run as that user. Root's run as the owner of the data, or for new
data as `postgres` or `nobody`. No account is created and no permission of a folder that we did not
make is changed: where the account may not pass such a folder, the server keeps one capability to
pass it (launch.py), and where even root has none, the error names the folder.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

from .errors import ConfigurationError
from .processes import Account

ACCOUNTS = ("postgres", "nobody")
# The weaker one first: reading what it may not is less than writing it. Containers often have only
# the second.
CAP_DAC_READ_SEARCH = 2
CAP_DAC_OVERRIDE = 1


def server_account(data: Path, needs: Iterable[Path]) -> Account | None:
    """The account for a server with this data folder, which must reach `needs` too; None for our own.

    Raises ConfigurationError where it cannot reach them.
    """
    if os.geteuid() != 0:
        return None
    owner = data.stat().st_uid if data.exists() else None
    entry = _entry(owner)
    blocked = next(
        (folder for path in (data.parent, *needs) if (folder := closed(path, entry.pw_uid, entry.pw_gid))),
        None,
    )
    if blocked is None:
        return Account(entry.pw_uid, entry.pw_gid)
    capability = next((c for c in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE) if c in _capabilities()), None)
    if capability is None:
        raise ConfigurationError(
            f"Postgres does not run as root, and the account {entry.pw_name!r} may not enter {blocked}: "
            "run as an ordinary user, or keep the project and its environment where everybody may enter"
        )
    return Account(entry.pw_uid, entry.pw_gid, capability)


def check_owner(home: Path) -> None:
    """Refuse a folder in which another user, say root, ran before; root may use any.

    Raises ConfigurationError that names the file and its owner.
    """
    me = os.geteuid()
    if me == 0 or not home.exists():
        return
    ours = [home / name for name in ("logs", "run", "postgres", "redis")]
    for path in (home, *ours, *(file for folder in ours for file in folder.glob("*"))):
        owner = path.stat().st_uid if path.exists() else me
        if owner != me:
            raise ConfigurationError(
                f"{path} belongs to {_name(owner)}, not to {_name(me)}: run as that user, take it over with "
                f"`sudo chown -R {_name(me)} {home}`, or choose another --home"
            )


def closed(path: Path, uid: int, gid: int) -> Path | None:
    """The first folder on the way to `path`, or path itself, that an account may not enter or read."""
    for folder in (*reversed(path.parents), path):
        mode = folder.stat()
        if mode.st_uid == uid:
            shift = 6
        elif mode.st_gid == gid:
            shift = 3
        else:
            shift = 0
        wanted = 0o1 if stat.S_ISDIR(mode.st_mode) else 0o4
        if not (mode.st_mode >> shift) & wanted:
            return folder
    return None


def _entry(owner: int | None) -> pwd.struct_passwd:
    if owner:
        try:
            return pwd.getpwuid(owner)
        except KeyError:
            raise ConfigurationError(
                f"the embedded Postgres belongs to the user id {owner}, which this machine does not know: "
                "give its folder to an account of this machine, or choose another --home"
            ) from None
    for name in ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ConfigurationError(
        f"Postgres does not run as root, and this machine has no account {' or '.join(ACCOUNTS)}: "
        "run as an ordinary user, or set TRELLIS_DATABASE_URL to a server"
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user id {uid}"


def _capabilities() -> set[int]:
    """The capabilities of this process; empty where the system has none."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return set()
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return {bit for bit in range(64) if mask >> bit & 1}
    return set()
