"""What the embedded store must know of its machine: file systems, reboots, and who else holds money in memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, Final

from ..errors import ConfigError

__all__ = ["boot_id", "lock_memory", "refuse_network_file_system"]

_NETWORK: Final = frozenset(
    ("9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "smbfs")
)


def boot_id() -> str:
    """Changes when the machine starts again; empty where the system has no such id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def file_system(path: str, mounts: str) -> str:
    """The type of the file system that holds ``path``, by the text of /proc/self/mounts; empty if unknown."""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, found, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind


def refuse_network_file_system(path: str) -> None:
    """SQLite's locks do not hold over a network (J06). Raises ``ConfigError``."""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
    except OSError:
        return
    kind = file_system(os.path.realpath(path), mounts)
    if kind in _NETWORK:
        raise ConfigError(f"the ledger {path!r} is on a network file system ({kind}); use a local disk, or PostgreSQL")


def lock_memory() -> IO[bytes]:
    """A ledger in memory serves one process: a second worker under the same parent is refused (C02).

    Raises ``ConfigError``; the lock is free again when the returned file is closed, or the process ends.
    """
    import fcntl

    # One name for each server: its workers share a parent. POSIX locks let one process lock again.
    held = (Path(tempfile.gettempdir()) / f"x402kit-memory-{os.getuid()}-{os.getppid()}").open("ab")
    try:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        held.close()
        raise ConfigError("a ledger in memory can't serve more than one worker; give the paywall a file") from e
    return held
