"""Check files before they are read or written, and put them in place only when they are whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MediaError(ValueError):
    """An image, video or path that cannot be used."""

    is_user_error = True


def writing_problem(path: str | Path) -> str | None:
    """Return why `path` could not be made or written, None where it could. Nothing is made."""
    path = Path(path)
    above = path if path.is_dir() else path.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        return f"its folder cannot be made, {above} is a file, not a folder; choose another one"
    if not os.access(above, os.W_OK | os.X_OK):
        return f"its folder {above} is not writable; choose another one"
    if path.is_file() and not os.access(path, os.W_OK):
        return "is there and may not be replaced; choose another name"
    return None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its name, replacing what is there, when the block ends well.

    The block may make a file or a folder there; the suffix is that of `path`. On any exception the temporary is removed
    and the final name is untouched. Missing parent folders are made. Raises MediaError where nothing can be written.
    """
    path = Path(path)
    problem = writing_problem(path) if path.name else "is not a name to write to; name a file or folder in it"
    if problem:
        raise MediaError(f"{path}: {problem}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    _remove(temporary)
    try:
        yield temporary
        _put_in_place(temporary, path)
    except OSError as error:
        ours = error.filename is not None and str(error.filename).startswith(str(temporary))
        if ours or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MediaError(f"{path}: cannot be written ({error.strerror or error})") from error
        raise
    finally:
        _remove(temporary)


def _put_in_place(temporary: Path, path: Path) -> None:
    if not (temporary.is_dir() and path.is_dir()):
        os.replace(temporary, path)
        return
    # A folder cannot be renamed onto a full one, so the old one steps aside first and returns on failure.
    aside = path.with_name(f".{path.name}.old-{os.getpid()}")
    _remove(aside)
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_input_file(path: str | Path, what: str) -> Path:
    """Return `path` when it is a readable file with something in it; a MediaError names `what` is expected."""
    path = Path(path)
    if path.is_dir():
        raise MediaError(f"{path}: is a folder; give {what}")
    if not path.is_file():
        raise MediaError(f"{path}: there is no such file; give {what}")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path}: may not be read; change its permissions or give another file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: is empty (0 bytes); give {what}")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def remove_folder(path: Path) -> None:
    """Remove a folder, renamed first so that an interruption leaves nothing that looks complete."""
    if path.exists():
        doomed = path.with_name(f".{path.name.lstrip('.')}.old")
        _remove(doomed)
        os.replace(path, doomed)
        _remove(doomed)
