"""Which of many items to take, and in which order; seeds draw it."""

import functools

import numpy as np

MIXED_BLOCKS = 8


def evenly(count: int, limit: int) -> range:
    """Return at most `limit` numbers below `count`, evenly spread, 0 among them."""
    return range(0, count, max(1, -(-count // limit)))


@functools.lru_cache(maxsize=32)
def permutation(length: int, *seeds: int) -> np.ndarray:
    """Return a permutation of range(length), another for other seeds."""
    # SeedSequence is stable across numpy versions; Generator.permutation is not promised to be.
    return np.argsort(np.random.SeedSequence(seeds).generate_state(length, np.uint64), kind="stable")


def block_order(length: int, block: int, place: int, *seeds: int, mixed: int = MIXED_BLOCKS) -> int:
    """Return the item at `place` of an epoch, without a list of all items.

    Blocks come in random order; the items of `mixed` blocks are shuffled together; those that fill no block come last.
    """
    whole = length // block
    group, inside = divmod(place, mixed * block)
    blocks = permutation(whole, *seeds)[group * mixed : (group + 1) * mixed]
    if place >= whole * block:
        return whole * block + int(permutation(length - whole * block, *seeds, 0)[place - whole * block])
    inner = int(permutation(len(blocks) * block, *seeds, 1 + group)[inside])
    return int(blocks[inner // block]) * block + inner % block
