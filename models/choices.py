"""Choices and defaults of the networks that flags share, without torch."""

OPERATORS = ("softmax", "gaussian")  # that carry pixels
DEFAULT_STEPS = {"dpm": 20, "ddim": 250, "unipc": 20}  # network calls, by sampler
SAMPLERS, DEFAULT_SAMPLER = tuple(DEFAULT_STEPS), "dpm"
DEFAULT_GUIDANCE = 0.0  # 1 places motion no better, distorts the spectrum and takes twice as long (docs/experiments.md)
LOOP_METHODS, DEFAULT_LOOP_METHOD = ("closing", "projection", "gradient"), "projection"  # see `LoopGuidance`
LOOP_WEIGHT = 200.0
