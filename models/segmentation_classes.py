"""The classes that the segmentation network tells apart. Imports no torch, so that flags can be checked at once."""

from __future__ import annotations

# In the order of the network's logits: the 31 most frequent classes of ADE20K [Zhou et al., CVPR 2017] after the rest.
CLASSES = (
    "other", "wall", "building", "sky", "floor", "tree", "ceiling", "road",
    "bed", "windowpane", "grass", "cabinet", "sidewalk", "person", "earth", "door",
    "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting",
    "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair",
)  # fmt: skip

# Everyday words, each with the classes that the network gives what they name.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "bush": ("plant", "tree"),
    "carpet": ("rug",),
    "cloud": ("sky",),
    "clouds": ("sky",),
    "couch": ("sofa",),
    "crops": ("field",),
    "fabric": ("curtain",),
    "flower": ("plant",),
    "flowers": ("plant",),
    "foliage": ("tree", "plant"),
    "forest": ("tree",),
    "ground": ("floor", "road", "sidewalk", "earth"),
    "lake": ("water",),
    "lawn": ("grass",),
    "leaves": ("tree", "plant"),
    "meadow": ("grass", "field"),
    "mountains": ("mountain",),
    "ocean": ("sea",),
    "people": ("person",),
    "picture": ("painting",),
    "plants": ("plant",),
    "pond": ("water",),
    "river": ("water",),
    "soil": ("earth",),
    "street": ("road",),
    "trees": ("tree",),
    "vegetation": ("tree", "grass", "plant", "field"),
    "waves": ("sea", "water"),
    "window": ("windowpane",),
    "woods": ("tree",),
}
