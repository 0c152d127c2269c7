"""The choices that scripts and library share, without torch."""

from dataclasses import dataclass

# Long side of a video by default. Motion is always predicted from the image at this size: the same seed then gives a
# small and a large video the same motion, and no image is held at full size.
DEFAULT_SIZE_PX = 512
# What the controls of app.py allow: (lowest, highest)
CHOICES = {"strength": (0, 5.0), "seconds": (0.5, 20.0), "seed": (0, 2**31 - 1)}

AS_SUGGESTED = "as the photograph suggests"  # of the wind


@dataclass(frozen=True)
class PlaybackOptions:
    """How a motion is played."""

    seconds: float | None = None  # length of the video; None: one period, or one round of a motion that loops elsewhere
    fps: float = 30.0
    loop: bool = False  # end where the video begins, without drift
    slow: float = 1.0  # factor that stretches the period
    drift: bool | None = None  # play the drift; None: unless it loops
    magnify: float = 1.0  # factor of the motion
