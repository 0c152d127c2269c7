"""When each frame of a video is shown (length, frame rate, slow motion, loops), and motion that closes to a loop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from motion.spectrum import FPS, NUM_FRAMES, PERIOD_S, spectrum_to_flow, without_drift

MAX_FRAMES = 1_000_000  # nine hours at 30 frames a second: a longer video is a typing mistake
# Bins are weighted by their amplitude when a loop is closed; one that never moves keeps this fraction of the largest.
LEAST_WEIGHT = 1e-3
LARGEST_AMPLITUDE_RATIO = 1.25  # by which the amplitudes of a closed motion are raised
# A loop that misses whole periods by less than this needs nothing: a hundredth of a frame at 150.
WHOLE_PERIODS_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Playback:
    """The phase of every frame."""

    phase: Tensor  # (N,) float64, t / T; the drift is held beyond 1
    fps: float  # frames a second
    notes: tuple[str, ...] = ()  # what was adjusted, one line each, for the user

    @property
    def num_frames(self) -> int:
        return len(self.phase)


def plan_playback(
    *,
    seconds: float,
    fps: float = FPS,
    period_s: float = PERIOD_S,  # T of the motion
    slow: float = 1.0,  # factor that stretches it
    loop: bool = False,  # end where the video begins
    loop_phase: float = 1.0,  # at which the motion is back at frame 0; a round takes this many periods
    drift: bool = True,  # the motion has one, which is held beyond the period; a note reports it
) -> Playback:
    """Choose the phases of a video, of a loop whole rounds at an adjusted speed; ValueError where there are none."""
    numbers = {"seconds": seconds, "fps": fps, "period_s": period_s, "slow": slow, "loop_phase": loop_phase}
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if seconds * fps > MAX_FRAMES:
        raise ValueError(f"seconds x fps: expected at most {MAX_FRAMES} frames, got {seconds * fps:g}")
    num_frames = round(seconds * fps)
    if num_frames < 2:
        raise ValueError(f"seconds x fps: expected at least 2 frames, got {num_frames}")
    period_s = period_s * slow
    if not seconds / MAX_FRAMES <= period_s < math.inf:
        raise ValueError(f"slow x period_s: expected at most {MAX_FRAMES} periods in a video, got {period_s:g} s")
    index = torch.arange(num_frames, dtype=torch.float64)
    notes = []
    if loop:
        length_s = num_frames / fps
        round_s = loop_phase * period_s
        rounds = max(1, round(length_s / round_s))
        # In whole numbers, so that each round takes exactly the same phases.
        turned = index * rounds if loop_phase == 1 else index * rounds % num_frames
        # No frame lies at 0. That would be the photograph, sharper than what is rendered: the loop would blink.
        phase = (turned + math.gcd(rounds, num_frames) / 2) / num_frames * loop_phase
        speed = rounds * round_s / length_s
        if abs(speed - 1) > 1e-6:
            what = "whole period(s)" if loop_phase == 1 else f"round(s) of {round_s:g} s"
            notes.append(f"loop: {rounds} {what} in {length_s:g} s, speed adjusted to {speed:.3f} x")
    else:
        phase = index / (fps * period_s)
        if drift and float(phase[-1]) > 1:
            notes.append(f"longer than the period of {period_s:g} s: the drift is held from there, the swing goes on")
    return Playback(phase, fps, tuple(notes))


def loop_phase_of(meta: Mapping) -> float:
    """Return the phase at which a motion closes, meta["loop"]["phase"], by default 1; ValueError if out of range."""
    loop = meta.get("loop")
    if loop is None:
        return 1.0
    phase = loop.get("phase") if isinstance(loop, Mapping) else None
    # Compared as it is: a whole number from JSON may be too large for a float.
    is_number = isinstance(phase, int | float) and not isinstance(phase, bool)
    if not (is_number and 1 / MAX_FRAMES <= phase <= MAX_FRAMES):
        right = f"to be a positive number, {1 / MAX_FRAMES:g} to {MAX_FRAMES:g}"
        raise ValueError(f"meta: expected loop.phase {right}, got {str(phase)[:40]!r}")
    return float(phase)


def is_whole_periods(phase: float) -> bool:
    """Return whether a loop of `phase` periods closes by itself once the drift is gone."""
    return round(phase) >= 1 and abs(phase - round(phase)) < WHOLE_PERIODS_TOLERANCE


def loop_closure_error(spectrum: Tensor, phase: float) -> Tensor:
    """Return how far a spectrum (..., K, 4, H, W), px, misses a loop of L = phase x T frames, [GID] eq. 5: (...) px.

    Mean over pixels of |F_L - F_0|_1 + |V_L - V_0|_1, V the velocity in px a frame, of which a period has NUM_FRAMES.
    The drift counts as it does in `spectrum_to_flow`. Gradients reach `spectrum`.
    """
    position = spectrum_to_flow(spectrum, torch.tensor([phase], dtype=torch.float64))[..., 0, :, :, :]  # (..., 2, H, W)
    basis = _ends_basis(phase, spectrum.shape[-4])[1:].to(spectrum)  # (1, 2(K-1))
    coefficients = _coefficients(spectrum)
    velocity = (basis @ coefficients.flatten(-3)).unflatten(-1, coefficients.shape[-3:])[..., 0, :, :, :]
    if phase > 1:  # the drift is held beyond the period, so that its velocity ends
        velocity = velocity - spectrum[..., 0, 1::2, :, :] / NUM_FRAMES
    return (position.abs() + velocity.abs()).sum(-3).mean((-2, -1))


def closed(spectrum: Tensor, phase: float, *, largest_amplitude_ratio: float = LARGEST_AMPLITUDE_RATIO) -> Tensor:
    """Return the motion next to `spectrum` that loops after L = phase x T frames: no drift, F_L = F_0 and V_L = V_0.

    Both conditions are linear in the 2 (K - 1) coefficients of a pixel and direction, so the nearest motion that meets
    them is a projection, the same for all pixels. Distances are relative to the amplitude of each bin over the image,
    so that weak bins stay weak. A projection takes power away; one factor, bounded by `largest_amplitude_ratio`, gives
    it back. Ours; [GID] approaches it by guidance. Gradients reach the packed spectrum (..., K, 4, H, W) px.
    """
    spectrum = without_drift(spectrum)
    num_bins = spectrum.shape[-4]
    if is_whole_periods(phase) or num_bins < 2:
        return spectrum
    conditions = _ends_basis(phase, num_bins)  # (2, 2(K-1))
    coefficients = _coefficients(spectrum)  # (..., 2(K-1), 2, H, W)
    power = _power(coefficients)  # (..., 2(K-1))
    weights = power.unflatten(-1, (2, -1)).mean(-2).sqrt()  # (..., K-1)
    weights = torch.cat([weights, weights], -1)  # both functions of a bin alike
    weights = weights + LEAST_WEIGHT * weights.amax(-1, keepdim=True) + 1e-30  # all 0 where nothing moves
    weighted = weights[..., :, None] * conditions.mT  # (..., 2(K-1), 2)
    solver = weighted @ torch.linalg.pinv(conditions @ weighted, hermitian=True) @ conditions  # (..., 2(K-1), 2(K-1))
    change = (solver.to(spectrum) @ coefficients.flatten(-3)).unflatten(-1, coefficients.shape[-3:])
    coefficients = coefficients - change
    ratio = (power.sum(-1) / (_power(coefficients).sum(-1) + 1e-30)).sqrt().clamp(1.0, largest_amplitude_ratio)  # (...)
    a, b = (ratio.to(spectrum)[..., None, None, None, None] * coefficients).chunk(2, dim=-4)  # (..., K-1, 2, H, W)
    packed = spectrum.clone()
    packed[..., 1:, 0::2, :, :], packed[..., 1:, 1::2, :, :] = a, -b
    packed[..., 0, 0::2, :, :] = -a.sum(-4)
    return packed


def _power(coefficients: Tensor) -> Tensor:
    """Return the mean square of each coefficient over directions and pixels: (..., 2(K-1)) float64 on the CPU."""
    return coefficients.detach().cpu().double().square().mean((-3, -2, -1))


def _coefficients(spectrum: Tensor) -> Tensor:
    """Return a_k, then b_k, of all bins but 0: (..., 2(K-1), 2, H, W)."""
    return torch.cat([spectrum[..., 1:, 0::2, :, :], -spectrum[..., 1:, 1::2, :, :]], dim=-4)


def _ends_basis(phase: float, num_bins: int) -> Tensor:
    """Return what each coefficient adds to F_L - F_0 (px) and to V_L - V_0 (px a frame): (2, 2(K-1)) float64."""
    angle = 2 * math.pi * phase * torch.arange(1, num_bins, dtype=torch.float64)  # (K-1,)
    per_frame = 2 * math.pi * torch.arange(1, num_bins, dtype=torch.float64) / NUM_FRAMES
    # Written with half angles: the small differences of a nearly whole period keep their digits.
    cosine = -2 * torch.sin(angle / 2).square()  # cos - 1
    sine = torch.sin(angle)
    return torch.stack([torch.cat([cosine, sine]), torch.cat([-per_frame * sine, per_frame * cosine])])
