"""Guard the web server of app.py: what requests may name, how many files stay, and one line for each wrong request."""

import asyncio
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

logger = logging.getLogger(__name__)

LARGEST_UPLOAD_BYTES, MOST_DISK_BYTES = 30 << 20, 2 << 30  # of an image; of all files, which stay for an hour
CLEAN_EVERY_S, KEPT_FOR_S = 600, 3600

Asgi = Callable[..., Awaitable[None]]


class RequestGuard:
    """Web middleware: refuses uploads that would fill `folder`, and answers requests that make no sense."""

    def __init__(self, served: Asgi, folder: Path) -> None:
        self.served, self.folder, self.uploads = served, folder, 0

    async def __call__(self, scope: dict[str, Any], receive: Asgi, send: Asgi) -> None:
        is_upload = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/upload")
        started = False

        async def answer(message: dict[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        async def refuse(status: int, reason: str) -> None:
            from starlette.responses import JSONResponse  # comes with Gradio

            await JSONResponse({"detail": reason}, status)(scope, receive, answer)

        self.uploads += is_upload
        try:
            used = _used_bytes(self.folder) if is_upload else 0
            if used + self.uploads * LARGEST_UPLOAD_BYTES > MOST_DISK_BYTES:
                await refuse(507, "no room for more images now; try again in an hour")
            else:
                await self.served(scope, receive, answer)
        except Exception as error:  # Gradio fails in many ways where a request is not one of its page
            if not started and scope["type"] == "http":
                await refuse(400, "not a request of this page")
            logger.warning("%s: a request is refused: %s", scope["path"][:80], _one_line(error))
        finally:
            self.uploads -= is_upload


def _used_bytes(folder: Path) -> int:
    used = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it was removed meanwhile
                used += os.stat(os.path.join(parent, name)).st_size
    return used


@contextlib.asynccontextmanager
async def removing_old_files(folder: Path) -> AsyncIterator[None]:
    """Look at the files every CLEAN_EVERY_S until the block ends, and remove those older than KEPT_FOR_S.

    Gradio's own `delete_cache` misses those of uploads that were cut off, and ends with its first error.
    """

    def remove() -> None:
        for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
            with contextlib.suppress(OSError):  # it was removed meanwhile, or the folder is not empty
                if time.time() - path.lstat().st_ctime > KEPT_FOR_S:
                    path.rmdir() if path.is_dir() else path.unlink()

    async def repeat() -> None:
        while True:
            await asyncio.sleep(CLEAN_EVERY_S)
            await asyncio.to_thread(remove)

    task = asyncio.create_task(repeat())
    yield
    task.cancel()


def _one_line(error: BaseException) -> str:
    return re.sub(r"[\0-\x1f\x7f\s]+", " ", f"{type(error).__name__}: {error}")[:200]


def limit_requests(gradio: Any, page: Any) -> None:
    """Let Gradio fetch no address that a request names, and log wrong requests as one line, not as a traceback.

    Requests of `page`, whose queue is set up, that nobody listens for no longer end its queue.
    """
    queue, send = page._queue, page._queue.send_message

    async def refuse(*_: Any, **__: Any) -> None:
        raise gradio.Error("an address is not fetched; upload the file", print_exception=False)

    def log_error() -> None:
        logger.warning("a request is refused: %s", _one_line(sys.exc_info()[1]))

    def send_if_known(event: Any, message: Any) -> None:
        # Gradio forgets sessions, and its queue would end for good with the KeyError.
        if event.session_hash in queue.pending_messages_per_session:
            send(event, message)

    queue.send_message = send_if_known
    gradio.processing_utils.async_ssrf_protected_download = refuse
    for module in (gradio.queueing, gradio.routes):
        module.traceback = SimpleNamespace(print_exc=log_error)
