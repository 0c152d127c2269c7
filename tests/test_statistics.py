"""Intervals and the sign-flip test against values that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

import metrics.statistics
from metrics.statistics import SIGN_DRAWS, bootstrap_interval, sign_flip_p


def test_sign_flips_counted_by_hand() -> None:
    # Sums 1 and 2: |mean| of the patterns ++ 3, +- 1, -+ 1, -- 3: two of four are at least 3.
    assert sign_flip_p([1.0, 2.0], ["a", "b"], 0) == 0.5
    # 3, -1, 1: |sum| is 3 as found, and 1, 5, 3 for the other three patterns; each of the four has its mirror image.
    assert sign_flip_p([3.0, -1.0, 1.0], ["a", "b", "c"], 0) == 0.75
    assert sign_flip_p([0.0, 0.0], ["a", "b"], 0) == 1.0
    # the least there is with ten sources, whatever the numbers, and the rounding of their sums is no difference
    assert sign_flip_p([0.1] * 10, [str(i) for i in range(10)], 0) == 2 / 2**10


def test_clips_of_a_source_turn_together() -> None:
    # As six clips of their own p would be 2 / 64; they are two sources.
    assert sign_flip_p([1.0] * 6, ["a"] * 3 + ["b"] * 3, 0) == 0.5
    assert sign_flip_p([1.0] * 6, ["a"] * 6, 0) is None and bootstrap_interval([1.0] * 6, 0, ["a"] * 6) is None


def test_many_sources_are_drawn_by_the_seed() -> None:
    sources = [str(i) for i in range(20)]
    # Of 20 equal differences no drawn pattern but all + or all - is as far: p is that of the one found alone, twice.
    assert sign_flip_p([1.0] * 20, sources, 3) == pytest.approx(2 / (SIGN_DRAWS + 1))
    values = np.random.default_rng(0).normal(0.2, 1, 20).tolist()
    assert sign_flip_p(values, sources, 3) == sign_flip_p(values, sources, 3) != sign_flip_p(values, sources, 4)


def test_interval_of_two_sources_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Draws of two: (a, a) 0, (a, b) twice 1, (b, b) 2, a quarter each: the 2.5 and 97.5 % points are the ends.
    assert bootstrap_interval([0.0, 2.0], 0, ["a", "b"]) == (0.0, 2.0)
    # The middle half is (a, b), whose mean is over clips: (0 + 3 * 2) / 4, not 1.
    monkeypatch.setattr(metrics.statistics, "BOOTSTRAP_INTERVAL", 0.4)
    assert bootstrap_interval([0.0, 2.0, 2.0, 2.0], 0, ["a", "b", "b", "b"]) == (1.5, 1.5)


def test_interval_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    low, high = bootstrap_interval(values.tolist(), 0)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.01)
    # The same clips twice over are not twice as many sources.
    twice = bootstrap_interval([*values, *values], 0, [*range(400)] * 2)
    assert twice == pytest.approx((low, high), abs=1e-9)
