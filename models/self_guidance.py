"""Motion self-guidance ([GID] eq. 5): sampling pulled toward motion that loops after another number of frames.

Where [GID] turns one knob (u), two things are ours. The pull acts on the predicted clean latents, whose motion the
decoder shows, and never goes further than to where the linearised objective would be zero: eq. 5's step grows with
(sigma / alpha)^2, which over the first half of a schedule is up to a million times too far. And there is a second way
to pull, "projection": the motion next to the predicted one that loops is known in closed form (`motion.looping.closed`)
and is brought back to the latents by the encoder, without any gradient.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from models.vae import MotionVAE, decode_spectrum, encode_spectrum
from motion.looping import closed, is_whole_periods, loop_closure_error
from motion.spectrum import NUM_FRAMES, without_drift

logger = logging.getLogger(__name__)

METHODS = ("closing", "projection", "gradient")
DEFAULT_HIGHEST_NOISE = 0.5


@dataclass(frozen=True)
class LoopGuidance:
    """How sampling is guided to motion that is back at frame 0, with frame 0's velocity, after L = phase x T frames.

    Attributes:
        phase: L / T.
        method: "closing" samples freely, and the finished motion is projected (`motion.looping.closed`). "gradient" is
            [GID]'s: eps + u sigma_t grad L, with L = `motion.looping.loop_closure_error` and the gradient taken
            through the decoder and the predicted clean latents. "projection" is ours, see above.
            What these two leave is small, and the finished motion is projected too.
        weight: u of the gradient; 200 in [GID].
        recurrences: how often each step is taken, noised again in between; 2 in [GID].
        highest_noise: sigma / alpha from which on steps are pulled; inf pulls all of them, as [GID] does. The last
            step is always pulled.
        last_pulls: pulls at the last step, each of the others has one. More help the gradient; the projection is as
            near after one as the autoencoder lets it come.
        num_frames: T.
    """

    phase: float
    method: str = "projection"
    weight: float = 200.0
    recurrences: int = 1
    highest_noise: float = DEFAULT_HIGHEST_NOISE
    last_pulls: int = 1
    num_frames: int = NUM_FRAMES

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 < self.phase < float("inf"):
            raise ValueError(f"phase: expected a positive number, got {self.phase}")
        if self.weight < 0 or self.recurrences < 1 or self.last_pulls < 1:
            raise ValueError("weight: expected at least 0, recurrences and last_pulls at least 1")

    @property
    def is_needed(self) -> bool:
        """Whole periods close by themselves."""
        return not is_whole_periods(self.phase)

    @property
    def pulls(self) -> bool:
        """Sampling itself is changed."""
        return self.method != "closing" and self.is_needed

    def pull(self, vae: MotionVAE, clean: Tensor, noise_ratio: float, *, last: bool, precision: str = "no") -> Tensor:
        """Move predicted clean latents (B, K, C, h, w) toward a loop; `noise_ratio` is sigma_t / alpha_t.

        Each sample by itself: its result does not depend on the batch, and the decoder's graph is held for one only.
        """
        step = self._by_gradient if self.method == "gradient" else self._by_projection
        moved = []
        for latents in clean.split(1):
            for _ in range(self.last_pulls if last else 1):
                latents = step(vae, latents, noise_ratio, last, precision)
            moved.append(latents)
        return torch.cat(moved)

    def _by_gradient(self, vae: MotionVAE, clean: Tensor, noise_ratio: float, last: bool, precision: str) -> Tensor:
        with torch.enable_grad():
            clean = clean.detach().requires_grad_()
            motion = without_drift(decode_spectrum(vae, clean, precision))
            loss = loop_closure_error(motion, self.phase, num_frames=self.num_frames).sum()
            (gradient,) = torch.autograd.grad(loss, clean)
        square = float(gradient.square().sum())
        if square == 0:
            return clean.detach()
        # eps' = eps + u sigma grad_z L is z0' = z0 - u (sigma / alpha)^2 grad_z0 L. Polyak's step bounds it; at the
        # last step, which has hardly any noise left, it is the step.
        farthest = float(loss.detach()) / square
        length = farthest if last else min(self.weight * noise_ratio**2, farthest)
        return (clean - length * gradient).detach()

    def _by_projection(self, vae: MotionVAE, clean: Tensor, noise_ratio: float, last: bool, precision: str) -> Tensor:
        spectrum = decode_spectrum(vae, clean, precision)
        wanted = closed(spectrum, self.phase, num_frames=self.num_frames)
        wanted[:, 0, 1::2] = spectrum[:, 0, 1::2]  # the drift is taken from the motion, not from the latents
        # The difference of two codes: what the autoencoder itself changes cancels.
        return clean + encode_spectrum(vae, wanted, precision) - encode_spectrum(vae, spectrum, precision)
