"""evaluate.py ablation: variants of the method trained with one budget, side by side."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from training.cli import HALF_PRECISION, ON_CPU, UsageError, add_shared_flags, positive_float, positive_int, size_px

from . import DEFAULT_OUT, out_folder

if TYPE_CHECKING:
    from training.ablation import Ablation, Settings

logger = logging.getLogger(__name__)

MEMORY_FLAGS = ("--batch-size", "--grid", "--samples", HALF_PRECISION, ON_CPU)
# As in training/ablation.py, which --help cannot wait for; a test holds them together.
KEYS = ("full", "linear", "independent", "volume", "k4", "k8", "k24", "multi-scale", "single-scale")


def add_flags(tables: argparse._SubParsersAction) -> None:
    """Add the flags of this table."""
    parser = tables.add_parser("ablation", help="variants trained with the same budget; called again it goes on")
    parser.set_defaults(make_table=make_table)
    group = parser.add_argument_group("what is trained")
    add = group.add_argument
    add("--data", nargs="+", required=True, metavar="SET[:WEIGHT]", help="clip sets to train on")
    add("--variants", nargs="+", choices=KEYS, default=list(KEYS), metavar="KEY", help=f"of {', '.join(KEYS)}")
    budget = group.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=positive_int, metavar="N", help="budget of each training, a VAE's too")
    budget.add_argument("--minutes", type=positive_float, metavar="MIN", help="the same as time, at a constant rate")
    add("--preset", choices=("tiny", "small", "paper"), default="tiny", help="size of the networks")
    add("--grid", type=size_px, default=(160, 256), metavar="WIDTHxHEIGHT", help="motion grid, px")
    add("--batch-size", type=positive_int, metavar="N", help="samples in one pass; by default the presets'")
    add("--backbone", choices=("squeezenet", "none"), default="none", help="picture network of the condition")
    add("--backbone-weights", type=Path, metavar="FILE", help="ImageNet weights of SqueezeNet 1.1")
    group = parser.add_argument_group("what is measured")
    test_help = "clip sets whose test clips are measured; by default those of --data"
    group.add_argument("--test-data", type=Path, nargs="+", metavar="SET", help=test_help)
    group.add_argument("--clips", type=positive_int, metavar="N", help="only N clips of each set, drawn by --seed")
    group.add_argument("--samples", type=positive_int, default=4, metavar="M", help="motions for each picture")
    out = {"metavar": "DIR", "help": f"folder of all runs and of the table; default: {DEFAULT_OUT}/ablation"}
    add_shared_flags(parser, "seed", "device", "precision", "workers", "out", "dry-run", out=out)


def make_table(args: argparse.Namespace) -> int:
    """Train and measure what is not finished yet, print the table and write it to --out; 2 where a variant failed."""
    from tqdm import tqdm

    from data.clips import ClipSet
    from training.ablation import VARIANTS, Ablation
    from training.cli import EXIT_USAGE, check_precision, choose_device, user_message
    from training.data_sets import open_sets
    from training.results import write_results

    # Early checks
    out = out_folder(args, "ablation")
    check_precision(args.precision, choose_device(args.device))
    sets = open_sets(args.data, args.seed, args.device)
    test_sets = [ClipSet(folder) for folder in args.test_data or ()] or [clip_set for clip_set, _ in sets]
    test_sets = [clip_set for clip_set in test_sets if clip_set.rows("test")]
    if not test_sets:
        raise UsageError("--data: no clip of split test to measure; right: --test-data SET")
    settings = _settings(args, [str(clip_set.folder) for clip_set in test_sets])
    keys = [key for key in VARIANTS if key in args.variants]
    if args.dry_run:
        print("\n".join(Ablation(out, settings, sets, test_sets, dry_run=True).commands(keys)))
        return 0
    ablation = Ablation(out, settings, sets, test_sets)

    # Train and measure
    failed: dict[str, str] = {}
    for key in tqdm(keys, unit="variant", disable=None, dynamic_ncols=True):
        try:
            ablation.make(key)
        except Exception as error:
            # One that fails, for memory above all, must not keep the others from their turn.
            message = user_message(error, MEMORY_FLAGS)
            if message is None:
                raise
            failed[key] = message
            logger.warning("%s failed: %s", key, message)

    # Write
    rows = [row for key in VARIANTS if (row := ablation.result(key)) is not None]
    if not rows:
        raise UsageError(f"no variant could be trained; {'; '.join(f'{key}: {why}' for key, why in failed.items())}")
    notes = [*_notes(args, settings, ablation), *(f"{key} failed: {why}" for key, why in failed.items())]
    print(write_results(out, rows, title="Ablation", notes=[*notes, f"command: {args.command}"]))
    logger.info("written to %s", out)
    return EXIT_USAGE if failed else 0


def _settings(args: argparse.Namespace, measured_on: list[str]) -> Settings:
    from training.ablation import Settings

    same = "preset grid steps minutes batch_size seed device precision workers backbone clips samples".split()
    return Settings(
        data=tuple(args.data),
        measured_on=tuple(measured_on),
        backbone_weights=None if args.backbone_weights is None else str(args.backbone_weights),
        **{name: getattr(args, name) for name in same},
    )


def _notes(args: argparse.Namespace, settings: Settings, ablation: Ablation) -> list[str]:
    """Say what the budget was, what is measured, and the commands that train the variants."""
    from training.motion_comparison import COLUMN_NOTES

    if settings.steps is not None:
        budget = f"{settings.steps} steps for each training"
    else:
        budget = f"{settings.minutes:g} minutes for each training, at a constant rate"
    sampling = f"{settings.samples} samples a picture by the default sampler and guidance, seed {settings.seed}"
    return [
        f"data: {', '.join(settings.data)}; measured on the test clips of {', '.join(settings.measured_on)}"
        + (f", {settings.clips} of each" if settings.clips else ""),
        f"budget: {budget}, preset {settings.preset}, VAEs the same; variants that need the same VAE share one; "
        "samples: clips drawn; seconds: of the last call of the script, encoding of latents included",
        f"{sampling}; clips and samples are compared as series of 24 bins, gain and shape over a variant's own bins",
        *(note for note in COLUMN_NOTES if not note.startswith("nearest")),
        "renderer: psnr_db of held-out rendering pairs, beside their average splat and frame 0",
        *ablation.commands([key for key in args.variants if ablation.result(key)]),
    ]
