"""Say in words what of a photograph may move."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from animation.options import DEFAULT_SIZE_PX
from cluster.storage import local_input
from data.media import list_images, read_image
from models.checkpoints import DEFAULT_CHECKPOINT, CheckpointError
from models.class_masks import class_fractions, class_mask, class_probabilities
from models.segmentation import SegmentationModel
from motion.motion_file import Motion

logger = logging.getLogger(__name__)

REMEDY = "right: a copy of checkpoints/default/segmentation in it"


@dataclass(frozen=True)
class ClassControl:
    """What may move in every photograph of a call, as `models.class_masks.class_mask` takes it."""

    network: SegmentationModel | None  # may be None where no class is named
    move: Sequence[str] = ()
    freeze: Sequence[str] = ()

    @classmethod
    def load(cls, checkpoint: Path | None, move: Sequence[str], freeze: Sequence[str]) -> ClassControl:
        """Load the network where there are words; CheckpointError when it cannot be used."""
        return cls(load_segmentation(checkpoint) if move or freeze else None, move, freeze)

    def apply(self, motion: Motion, image: Tensor, name: str) -> Motion:
        """Return the motion of image (3, H, W), still where it may not move; `name`: of the image, for notes."""
        if not self.move and not self.freeze:
            return motion
        if self.network is None:
            raise CheckpointError(f"the checkpoint has no segmentation network; {REMEDY}")
        mask, absent = class_mask(self.network, image, move=self.move, freeze=self.freeze)
        for word in absent:
            logger.info("%s: no %s is found in it; the word 'list' prints what is", name, word)
        return motion.controlled(mask=mask)


def load_segmentation(checkpoint: Path | None) -> SegmentationModel:
    """Load a checkpoint's segmentation network (None: the default one's); CheckpointError when it cannot be used."""
    folder = Path(checkpoint or DEFAULT_CHECKPOINT) / "segmentation"
    if not folder.exists():
        raise CheckpointError(f"{folder.parent}: has no segmentation network; {REMEDY}")
    return SegmentationModel.from_pretrained(folder)


def list_classes(inputs: Sequence[Path], checkpoint: Path | None) -> Iterator[str]:
    """Yield a line for each class that an image shows, largest first; above them the file's name if there are more."""
    images, network = list_images(inputs), load_segmentation(checkpoint)
    for path in images:
        with local_input(path) as file:
            image = read_image(file, max_side=DEFAULT_SIZE_PX)
        fractions = class_fractions(class_probabilities(network, image))
        if len(images) > 1:
            yield f"{path}:"
        yield from (f"{100 * fraction:5.1f} % {name}" for name, fraction in fractions.items())
