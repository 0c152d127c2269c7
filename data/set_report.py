"""Say in a few lines what a clip set holds and why clips were dropped, however many there are."""

from __future__ import annotations

import itertools
from collections import Counter

from data.clips import DROPPED, KEPT, PAIRS_ONLY, ClipRow, ClipSet

# dropped clips that are listed by name; the table has all
MOST_LISTED = 10


def describe_set(clip_set: ClipSet) -> list[str]:
    """Return lines: clips by status and split, dropped clips by reason with a few of each, and the whole."""
    rows = clip_set.rows(status=(KEPT, PAIRS_ONLY, DROPPED))
    counts = Counter((row.status, row.split) for row in rows)
    lines = [f"{count:6d} {status:10} {split}" for (status, split), count in sorted(counts.items())]
    causes: dict[str, list[ClipRow]] = {}
    for row in rows:
        if row.status == DROPPED:
            causes.setdefault(row.reason.split(":")[0], []).append(row)
    by_cause = sorted(causes.items(), key=lambda cause: -len(cause[1]))
    # one of each cause, then a second of each, and so on: a rare cause is seen beside a frequent one
    turns = itertools.zip_longest(*(dropped for _, dropped in by_cause))
    listed = [row for turn in turns for row in turn if row is not None]
    lines += [f"dropped {row.id}: {row.reason}" for row in listed[:MOST_LISTED]]
    if len(listed) > MOST_LISTED:
        lines.append(f"{len(listed) - MOST_LISTED} more were dropped; all are in {clip_set.folder / 'clips.csv'}")
    why = ", ".join(f"{len(dropped)} {cause}" for cause, dropped in by_cause)
    return [*lines, f"{clip_set.folder}: {len(rows)} clips" + (f" ({why})" if why else "")]
