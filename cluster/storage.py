"""Files at URLs of fsspec, such as s3://bucket/clips: fetched to be read, and written by a single put or a rename.

A path at a command line may be a URL. As a `Path` it loses a slash ("s3:/bucket/clips"), and `url_of` tells it apart.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# Where a put makes the whole object appear at once; elsewhere files are written aside and renamed.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}


class StorageError(OSError):
    """A URL that cannot be read or written."""

    is_user_error = True


def path_or_url(text: str) -> Path:
    """Parse a path or a URL of a command line; file:// is a plain path."""
    return Path(re.sub(r"^(file|local)://", "", text))


def url_of(path: str | Path) -> str | None:
    """Return the URL that a path stands for, None for a file of this machine."""
    found = re.match(r"([a-z][a-z0-9+]+):/+(.*)", str(path))
    return f"{found[1]}://{found[2]}" if found else None


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a URL and the name in it; StorageError for what goes wrong in the block."""
    url = url_of(path)
    try:
        import fsspec

        # what other machines write must be seen
        yield fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise StorageError(f"{url}: {error}") from None  # names the package
    except FileNotFoundError:
        raise StorageError(f"{url}: is not there") from None
    except Exception as error:  # every service has its own
        name, said = type(error).__name__, " ".join(str(error).split())[:200]
        if "credentials" in said.lower() or "credentials" in name.lower():
            said = f"no credentials ({said}); set those of the service, for s3 AWS_ACCESS_KEY_ID and its secret"
        raise StorageError(f"{url}: {said or name}") from error


def exists(path: Path) -> bool:
    if url_of(path) is None:
        return path.exists()
    with _opened(path) as (system, name):
        return system.exists(name)


def existing(paths: Iterable[Path]) -> set[Path]:
    """Return those of many files that exist, by a listing of each folder at a URL."""
    paths = list(paths)
    listed = {path for folder in {path.parent for path in paths if url_of(path)} for path in list_folder(folder)}
    return {path for path in paths if path in listed or (not url_of(path) and path.exists())}


def is_folder(path: Path) -> bool:
    if url_of(path) is None:
        return path.is_dir()
    with _opened(path) as (system, name):
        return system.isdir(name)


def list_folder(folder: Path, *, below: bool = False) -> list[Path]:
    """Return what lies in a folder, or also below it (then of a URL files alone), sorted; [] for a URL of nothing."""
    if url_of(folder) is None:
        return sorted(folder.rglob("*") if below else folder.iterdir())
    with _opened(folder) as (system, name):
        found = system.find(name, maxdepth=None if below else 1)
        return sorted(folder / one.removeprefix(name).lstrip("/") for one in found)


def read_texts(paths: list[Path]) -> dict[Path, bytes]:
    """Read small files of one URL at once."""
    if not paths:
        return {}
    with _opened(paths[0]) as (system, _):
        names = {system._strip_protocol(url_of(path)): path for path in paths}
        return {names[name]: content for name, content in system.cat(list(names)).items()}


@contextmanager
def local_input(path: str | Path) -> Iterator[Path]:
    """Yield a file to read: the path itself, or for a URL a copy that the end of the block removes."""
    path = Path(path)
    if url_of(path) is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        with _opened(path) as (system, name):
            system.get_file(name, str(local))
        yield local


def open_binary(path: Path) -> BinaryIO:
    """Open a file to read parts of it."""
    if url_of(path) is None:
        return open(path, "rb")
    with _opened(path) as (system, name):
        return system.open(name, "rb")


@contextmanager
def local_output(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write for a URL, put there when the block ends well."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        yield local
        with _opened(path) as (system, name):
            protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
            if protocols & _OBJECT_STORES:
                system.put_file(str(local), name)
                return
            above, _, last = name.rpartition("/")
            aside = f"{above}/.{Path(folder).name}-{last}"
            system.makedirs(above, exist_ok=True)
            system.put_file(str(local), aside)
            system.mv(aside, name)
