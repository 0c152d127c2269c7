"""evaluate.py data: clip sets side by side."""

from __future__ import annotations

import argparse
import functools
import logging
from pathlib import Path

from training.cli import UsageError, add_shared_flags, positive_int

from . import DEFAULT_OUT, out_folder

logger = logging.getLogger(__name__)


def add_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("data", help="clip sets side by side: mean amplitude per bin, clips, confidence")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is measured")
    data_help = "clip sets of prepare_data.py; ratios are to the first"
    group.add_argument("--data", type=Path, nargs="+", required=True, metavar="SET", help=data_help)
    group.add_argument("--split", choices=("train", "test", "all"), default="train", help="kept clips of this split")
    group.add_argument("--clips", type=positive_int, metavar="N", help="only N clips of each set, drawn by --seed")
    add_shared_flags(parser, "seed", "out", out={"metavar": "DIR", "help": f"default: {DEFAULT_OUT}/data"})


def make_table(args: argparse.Namespace) -> int:
    """Measure the sets, print the tables of bins and of sets, and write them to --out and --out/sets."""
    from tqdm import tqdm

    from data.clips import ClipSet
    from training.metrics import write_results
    from training.set_comparison import bin_rows, choose_rows, column_names, disagreement, measure_set

    # Early checks
    out = out_folder(args, "data")
    clip_sets = [ClipSet(folder) for folder in args.data]
    try:
        names = column_names(args.data)
    except ValueError as error:
        raise UsageError(f"--data: {error}; name each once") from error
    split = None if args.split == "all" else args.split
    chosen = [choose_rows(clip_set, split, args.clips, args.seed) for clip_set in clip_sets]

    # Measure
    sets = []
    for name, clip_set, rows in zip(names, clip_sets, chosen, strict=True):
        bar = functools.partial(tqdm, desc=name, unit="clip", disable=None, dynamic_ncols=True)
        sets.append(measure_set(name, clip_set, rows, bar))
    periods = {figures.period_s for figures in sets}
    if len(periods) > 1:
        raise UsageError(f"--data: the sets have different periods, {sorted(periods)} s; their bins do not compare")

    # Write
    table, summary = bin_rows(sets), [figures.summary() for figures in sets]
    notes = [
        f"data: {', '.join(map(str, args.data))}, split {args.split}, kept clips: "
        + ", ".join(f"{row['row']} {row['clips']} of {row['source_files']} source files" for row in summary),
        "amplitude: |S_k| over both directions (bin 0: the drift), px of the motion grid; mean over the pixels of a "
        "clip weighted by confidence, then mean (and median) over clips",
        *disagreement(table, sets),
        f"seed {args.seed} (choice of clips); computed on the CPU",
        f"command: {args.command}",
    ]
    print(write_results(out / "sets", summary, title="Clip sets", notes=notes[:1] + notes[-2:]))
    print(write_results(out, table, title="Mean amplitude per bin", notes=notes))
    logger.info("written to %s", out)
    return 0
