"""evaluate.py ablation: variants of the method trained with one budget, side by side."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from cli.parser import UsageError
from evaluation import out_folder

if TYPE_CHECKING:
    from evaluation.ablation.train import Ablation, Settings

logger = logging.getLogger(__name__)


def make_table(**options: object) -> int:
    """Train and measure what is not finished yet, print the table and write it to --out; 2 where a variant failed."""
    args = argparse.Namespace(**options)
    from tqdm import tqdm

    from cli.parser import check_precision, choose_device
    from cli.run import EXIT_USAGE, user_message
    from data.clips import ClipSet
    from data.result_tables import write_results
    from evaluation.ablation.train import VARIANTS, Ablation
    from training.data_sets import open_sets

    # Early checks
    out = out_folder(args.out, "ablation")
    check_precision(args.precision, choose_device(args.device))
    sets = open_sets(args.data, args.seed)
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
            message = user_message(error)
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
    from evaluation.ablation.train import Settings

    same = "preset grid steps minutes batch_size seed device precision workers backbone clips samples".split()
    return Settings(
        data=tuple(args.data),
        measured_on=tuple(measured_on),
        backbone_weights=None if args.backbone_weights is None else str(args.backbone_weights),
        **{name: getattr(args, name) for name in same},
    )


def _notes(args: argparse.Namespace, settings: Settings, ablation: Ablation) -> list[str]:
    """Say what the budget was, what is measured, and the commands that train the variants."""
    from evaluation.motion.measure import COLUMN_NOTES

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
