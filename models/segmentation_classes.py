"""The classes that the segmentation network tells apart. Imports no torch, so that flags can be checked at once."""

import difflib
from collections.abc import Sequence

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


class ClassNameError(ValueError):
    """A word for no class, or a class that shall both move and stay still; the message says what would be right."""

    is_user_error = True


def classes_of(words: Sequence[str]) -> set[str]:
    """Return the classes that words, of `CLASSES` or `SYNONYMS`, stand for."""
    return {name for word in words for name in SYNONYMS.get(word, (word,))}


def check_words(move: Sequence[str], freeze: Sequence[str]) -> None:
    """Raise ClassNameError for a word of either that is not known, and for a class in both."""
    for argument, words in (("move", move), ("freeze", freeze)):
        for word in words:
            if word not in CLASSES and word not in SYNONYMS:
                near = difflib.get_close_matches(word, (*CLASSES, *SYNONYMS), n=1)
                nearest = f"did you mean {near[0]}? " if near else ""
                raise ClassNameError(f"{argument} {word}: no class; {nearest}right: {', '.join(CLASSES)}")
    both = classes_of(move) & classes_of(freeze)
    if both:
        named = ", ".join(sorted(both))
        raise ClassNameError(f"freeze {','.join(freeze)}: {named} shall move too; right: one of the two")
