"""Flags of scripts whose items a cluster can work on."""

from cli.run import EXIT_SKIPPED, EXIT_USAGE, user_message

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cli.parser import Arguments, Parser, non_negative_float, positive_float, positive_int, refuse_flags
from cluster.items import Workers, run_items
from cluster.storage import existing

logger = logging.getLogger(__name__)

CLUSTER_FLAGS = ("--cpus-per-worker", "--gpus-per-worker", "--item-seconds")


def add_cluster_flags(parser: Parser) -> None:
    """Add the group; scripts that have processes of their own bring --workers."""
    add = parser.add_argument_group("cluster", "items are worked on by Ray; see docs/scale.md").add_argument
    add("--cluster", metavar="local|auto|HOST:PORT", help="start Ray here, find it, or join the one at HOST:PORT")
    if not any("--workers" in action.option_strings for action in parser._actions):
        add("--workers", type=positive_int, metavar="N", help="of the cluster; default: as many as it has room for")
    add("--cpus-per-worker", type=positive_int, default=1, metavar="N", help="cores, and threads, of each worker")
    add("--gpus-per-worker", type=non_negative_float, default=0.0, metavar="X", help="below 1: some share one")
    add("--item-seconds", type=positive_float, metavar="S", help="an item that takes longer is tried again, twice")


def cluster_workers(args: Arguments) -> Workers:
    """Return who works on the items; UsageError for flags that would do nothing."""
    if not args.cluster:
        refuse_flags(args, CLUSTER_FLAGS, "belongs to --cluster; right: both, or neither")
        return Workers(args.workers or 0)
    count = args.workers if "--workers" in args.typed else None
    return Workers(count or None, args.cluster, args.cpus_per_worker, args.gpus_per_worker, args.item_seconds)


def without_existing(jobs: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Return the (input, output) whose output is not there yet; a logged line counts the others."""
    there = existing(output for _, output in jobs)
    if there:
        logger.info("%d of %d are there already and are skipped", len(there), len(jobs))
    return [job for job in jobs if job[1] not in there]


def run_each(
    script: str, function: Callable[[Any, Any], Any], items: Sequence[Any], workers: Workers, *,
    load: Callable[[], Any], many: bool,
) -> int:  # fmt: skip
    """Work on a script's images and print a line for each that fails; return the exit code. Of one, raise its error."""
    if not items:  # nothing is loaded
        return 0
    failed = 0
    with run_items(function, items, workers, "image", load=load, progress=workers.cluster is not None) as results:
        for done in results:
            if done.error is None:
                continue
            message = user_message(done.error)
            if not many or (message is None and not workers.cluster):
                raise done.error
            print(f"{script}: error: {message or done.reason}", file=sys.stderr)
            failed += 1
    if failed:
        print(f"{script}: {failed} of {len(items)} images failed", file=sys.stderr)
    return 0 if not failed else EXIT_SKIPPED if failed < len(items) else EXIT_USAGE
