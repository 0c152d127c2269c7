"""Check files before they are read or written, list folders, and write files whole or not at all."""

import errno
import functools
import hashlib
import logging
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.storage import list_folder, local_output, url_of

logger = logging.getLogger(__name__)

LONGEST_NAME = 255  # bytes, of most file systems
LONGEST_STEM = 235  # bytes, which leaves room for suffixes
# Folders that systems keep for themselves, with files as a user has them: thumbnails, deleted ones.
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"}
# In the videos that we make, at the beginning or the end of the file.
OUTPUT_MARK = "made from one image by generative image dynamics"
_MARK_WITHIN = 1 << 18
# What the system says of disks without room, and torch, which leaves it out.
_NO_ROOM = re.compile("|".join(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))))
_NO_ROOM_IN_TORCH = re.compile("PytorchStreamWriter failed|inline_container.*unexpected pos|iostream error")


class MediaError(ValueError):
    """An image, video or path that cannot be used."""

    is_user_error = True


@functools.lru_cache(maxsize=1000)
def warn_once(message: str, level: int = logging.WARNING) -> None:
    """Log a message the first time that it is given, as files are read and listed several times."""
    logger.log(level, "%s", re.sub(r"[\0-\x1f\x7f]", "?", message))  # names may hold line breaks


def file_name(text: str, extra: str = "", *, unsafe: str = r"[\0-\x1f\x7f\ud800-\udfff]") -> str:
    """Return a file name of at most LONGEST_STEM bytes: the text and, at its end, `extra`.

    Characters that match `unsafe` become _, and what is too long is cut; without `extra` a digest tells these apart.
    """
    name = re.sub(unsafe, "_", text).encode()[: LONGEST_STEM - len(extra)].decode(errors="ignore")
    if name != text and not extra:
        digest = hashlib.sha1(os.fsencode(text)).hexdigest()[:8]
        name = f"{name.encode()[: LONGEST_STEM - 9].decode(errors='ignore')}-{digest}"
    return re.sub(r"(?i)^(?=(con|prn|aux|nul|com\d|lpt\d)(\.|$))", "_", name + extra)


def output_names(files: Sequence[Path]) -> list[str]:
    """Name an output for each of many files: by its stem, or by its whole name where others share the stem."""
    stems, names = Counter(path.stem for path in files), dict[str, Path]()
    for path in files:
        name = path.stem if stems[path.stem] == 1 and path.stem not in names else path.name.replace(".", "_")
        if name in names:
            raise MediaError(f"{names[name]} and {path} have one name; right: outputs in different folders")
        names[name] = path
    return [file_name(name) for name in names]


def is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a path below a folder is hidden, or lies where the system keeps its own or deleted files."""
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in path.relative_to(folder).parts)


def is_output(path: Path) -> bool:
    """Return whether a video, as its suffix says, carries OUTPUT_MARK."""
    is_video = path.suffix.lower() in (".gif", ".mp4", ".webm")
    if not (is_video and path.is_file() and os.access(path, os.R_OK)):
        return False
    with path.open("rb") as file:
        head = file.read(_MARK_WITHIN)
        file.seek(max(0, path.stat().st_size - 2 * len(OUTPUT_MARK)))
        return OUTPUT_MARK.encode() in head + file.read()


def list_files(folder: Path, suffixes: Sequence[str], *, below: bool = False) -> list[Path]:
    """Return a folder's files, or also those `below` it, of these suffixes, sorted.

    Hidden files and videos with OUTPUT_MARK are left out; a logged line counts and names what is.
    """
    found, left_out = [], {"hidden": [], "made by an earlier run": [], "of another kind": []}
    for path in list_folder(folder, below=below):
        is_wanted = path.suffix.lower() in suffixes
        if path.is_dir() or (is_hidden(path, folder) and not is_wanted):
            continue
        why = "hidden" if is_hidden(path, folder) else "of another kind" if not is_wanted else ""
        if not why and is_output(path):
            why = "made by an earlier run"
        (left_out[why] if why else found).append(path)
    parts = [f"{len(paths)} {why} (such as {paths[0].relative_to(folder)})" for why, paths in left_out.items() if paths]
    if parts:
        warn_once(f"{folder}: left out are {', '.join(parts)}", logging.INFO)
    return found


def writing_problem(path: str | Path) -> str | None:
    """Return why `path` could not be made or written, None where it could. Nothing is made."""
    path = Path(path)
    if url_of(path):
        return None
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > LONGEST_NAME:
        return f"a name of {longest} bytes is too long; choose one of at most {LONGEST_NAME}"
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

    The block may make a file or a folder there, for a URL a file alone; the suffix is that of `path`. On any exception
    the temporary is removed and `path` untouched. Parent folders are made. MediaError where nothing can be written.
    """
    path = Path(path)
    if url_of(path):
        with local_output(path) as temporary:
            yield temporary
        return
    problem = writing_problem(path) if path.name else "is not a name to write to; name a file or folder in it"
    if problem:
        raise MediaError(f"{path}: {problem}")
    # not of its name, which may be as long as names can be
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.tmp-{os.getpid()}{path.suffix}")
    with writing(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        try:
            yield temporary
            _put_in_place(temporary, path)
        finally:
            _remove(temporary)


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Raise MediaError naming `path` where the block finds no room on the disk, or may not write `temporary`."""
    try:
        yield
    except Exception as error:
        no_room = _NO_ROOM.search(str(error))
        named = str(getattr(error, "filename", None) or "")
        if no_room:
            reason = no_room[0]
        elif _NO_ROOM_IN_TORCH.search(str(error)):
            reason = os.strerror(errno.ENOSPC)
        elif isinstance(error, OSError) and temporary is not None and named.startswith(str(temporary)):
            reason = error.strerror or error
        else:
            raise
        raise MediaError(f"{path}: cannot be written ({reason})") from error


def _put_in_place(temporary: Path, path: Path) -> None:
    if not (temporary.is_dir() and path.is_dir()):
        os.replace(temporary, path)
        return
    # A folder cannot be renamed onto a full one, so the old one steps aside first and returns on failure.
    aside = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.old-{os.getpid()}")
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
        # file names may be any bytes
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def remove_folder(path: Path) -> None:
    """Remove a folder, renamed first so that an interruption leaves nothing that looks complete."""
    if path.exists():
        doomed = path.with_name(f".{path.name.lstrip('.')}.old")
        _remove(doomed)
        os.replace(path, doomed)
        _remove(doomed)
