"""Wind: how strongly a scene moves, as one number that a still does not show.

It is the 95th percentile over an image of mean |F_t|, in px of a grid of 256 x 160 (`motion.strength`).
"""

from __future__ import annotations

import math

# The quantiles 5, 25, 50 and 75 % of 121 real clips, rounded.
WINDS = {"calm": 0.8, "breeze": 1.8, "windy": 4.0, "gusty": 9.0}
LEAST_WIND_PX, MOST_WIND_PX = 0.2, 20.0
DEFAULT_DAMPING = 0.08  # of an interactive image's modes, which wind excites; 1 is critical


def parse_wind(text: str) -> float:
    """Return the wind, px, of one of the words of WINDS or a number; ValueError says what is right."""
    try:
        wind_px = WINDS[text] if text in WINDS else float(text)
    except ValueError:
        wind_px = math.nan
    if not LEAST_WIND_PX <= wind_px <= MOST_WIND_PX:
        right = f"{', '.join(WINDS)}, or a number from {LEAST_WIND_PX:g} to {MOST_WIND_PX:g}"
        raise ValueError(f"{text}: right: {right}")
    return wind_px
