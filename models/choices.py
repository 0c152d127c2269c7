"""Choices and defaults of the networks that flags share, without torch."""

OPERATORS = ("softmax", "gaussian")  # that carry pixels
DEFAULT_STEPS = {"dpm": 20, "ddim": 250, "unipc": 20}  # network calls, by sampler
SAMPLERS, DEFAULT_SAMPLER = tuple(DEFAULT_STEPS), "dpm"
# Measured with the default weights on held-out clips (docs/experiments.md): 1 places motion no better than 0 (average
# precision 0.52 for both), distorts the spectrum more (amplitude ratio 1.46 instead of 1.33) and takes twice as long.
DEFAULT_GUIDANCE = 0.0
LOOP_METHODS, DEFAULT_LOOP_METHOD = ("closing", "projection", "gradient"), "projection"  # see `LoopGuidance`
LOOP_WEIGHT = 200.0
