"""Keep two programs from writing into one folder at the same time; a program that is killed leaves nothing to clear."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

from data.files import MediaError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

LOCK_NAME = ".lock"


class FolderBusyError(MediaError):
    """Another process holds the folder."""


class FolderLock:
    """Holds a folder from its making to `release`, or to the end of the process, however that comes.

    What holds is the system's lock (flock) on the open file FOLDER/.lock, which dies with its process: a file left
    behind by one that was killed locks nothing. It names the process, and is removed by `release`. Folders of file
    systems without such locks are not guarded.
    """

    def __init__(self, folder: str | Path) -> None:
        """Take the lock of a folder that exists; FolderBusyError, naming the process, where another holds it."""
        self._path = Path(folder) / LOCK_NAME
        self._file: IO[str] | None = None
        while fcntl is not None:
            file = self._path.open("a+", encoding="utf-8")  # not emptied: it may be another's
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip()
                file.close()
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    self._path.unlink(missing_ok=True)
                    return  # no locks on this file system
                who = f"another run (process {holder})" if holder else "another run"
                raise FolderBusyError(
                    f"{folder}: {who} is writing there; wait for its end or name another folder"
                ) from None
            if self._is_in_place(file):
                file.truncate(0)
                file.write(f"{os.getpid()}\n")
                file.flush()
                self._file = file
                return
            # its last holder removed the name after we had opened it
            file.close()

    def _is_in_place(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the folder back; a second call does nothing."""
        if self._file is not None:
            # while it is still held: after that the name may be another's
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
