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

# Everyday words, by the classes that the network gives what they name.
_WORDS_OF_CLASSES = {
    "sky": "cloud clouds", "tree": "forest trees woods", "plant": "flower flowers plants",
    "tree plant": "bush foliage leaves", "grass": "lawn", "field": "crops", "grass field": "meadow",
    "tree grass plant field": "vegetation",
    "water": "lake pond river", "sea": "ocean", "sea water": "waves", "mountain": "mountains", "person": "people",
    "earth": "soil", "road": "street", "floor road sidewalk earth": "ground", "windowpane": "window",
    "rug": "carpet", "sofa": "couch", "curtain": "fabric", "painting": "picture",
}  # fmt: skip
SYNONYMS = {word: classes.split() for classes, words in _WORDS_OF_CLASSES.items() for word in words.split()}


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
