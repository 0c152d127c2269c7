"""Motion self-guidance ([GID] eq. 5): sampling guided to motion that loops after another number of frames.

Two things differ from [GID]. A guidance step changes the predicted clean latents and is bounded: it ends where the
linearised objective is zero, while eq. 5's may go a million times too far. The method "projection" needs no gradient:
the nearest motion that loops is known in closed form (`motion.looping.closed`), and the encoder brings it back.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.choices import DEFAULT_LOOP_METHOD, LOOP_METHODS, LOOP_WEIGHT
from models.vae import MotionVAE
from motion.looping import closed, is_whole_periods, loop_closure_error
from motion.spectrum import without_drift


@dataclass(frozen=True)
class LoopGuidance:
    """How sampling is guided to motion that is back at frame 0, with frame 0's velocity, after L = phase x T frames.

    "closing" samples without guidance. "gradient" is [GID]'s: eps + u sigma_t grad L, L being `loop_closure_error`.
    "projection" is ours, see above. All three project the sampled motion at the end.
    """

    phase: float  # L / T
    method: str = DEFAULT_LOOP_METHOD
    weight: float = LOOP_WEIGHT  # u of the gradient; 200 in [GID]
    recurrences: int = 1  # how often each step is taken, with noise added again in between; 2 in [GID]
    # Largest sigma / alpha of guided steps; the last always is one. None: 0.5, for the gradient all, as in [GID].
    highest_noise: float | None = None

    def __post_init__(self) -> None:
        if self.method not in LOOP_METHODS:
            raise ValueError(f"method: expected one of {', '.join(LOOP_METHODS)}, got {self.method!r}")
        if not 0 < self.phase < float("inf"):
            raise ValueError(f"phase: expected a positive number, got {self.phase}")
        if self.weight < 0 or self.recurrences < 1:
            raise ValueError("weight: expected at least 0, recurrences at least 1")
        if self.highest_noise is None:
            object.__setattr__(self, "highest_noise", math.inf if self.method == "gradient" else 0.5)

    @property
    def is_needed(self) -> bool:
        """Whole periods close by themselves."""
        return not is_whole_periods(self.phase)

    @property
    def guides_sampling(self) -> bool:
        """Sampling itself is changed, and not the finished motion alone."""
        return self.method != "closing" and self.is_needed

    def guide(self, vae: MotionVAE, clean: Tensor, noise_ratio: float, *, last: bool, precision: str = "no") -> Tensor:
        """Move clean latents (B, K, C, h, w) toward a loop, sample by sample; `noise_ratio` is sigma_t / alpha_t."""
        moved = []
        for latents in clean.split(1):
            if self.method == "gradient":
                moved.append(self._by_gradient(vae, latents, noise_ratio, last, precision))
                continue
            spectrum = vae.decode_spectrum(latents, precision)
            wanted = closed(spectrum, self.phase)
            wanted[:, 0, 1::2] = spectrum[:, 0, 1::2]  # the drift is taken from the motion later
            # The difference of two codes: the autoencoder's own error cancels.
            codes = vae.encode_spectrum(wanted, precision), vae.encode_spectrum(spectrum, precision)
            moved.append(latents + codes[0] - codes[1])
        return torch.cat(moved)

    def _by_gradient(self, vae: MotionVAE, clean: Tensor, noise_ratio: float, last: bool, precision: str) -> Tensor:
        with torch.enable_grad():
            clean = clean.detach().requires_grad_()
            loss = loop_closure_error(without_drift(vae.decode_spectrum(clean, precision)), self.phase).sum()
            (gradient,) = torch.autograd.grad(loss, clean)
        square = float(gradient.square().sum())
        if square == 0:
            return clean.detach()
        # eps' = eps + u sigma grad_z L is z0' = z0 - u (sigma / alpha)^2 grad_z0 L. Polyak's step bounds it, and
        # replaces it at the last step, which has hardly any noise left.
        farthest = float(loss.detach()) / square
        length = farthest if last else min(self.weight * noise_ratio**2, farthest)
        return (clean - length * gradient).detach()
