"""Prepare the clips of a video: read frames, estimate flow, fit the spectrum, judge the result."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import torch

from cluster.items import Workers, run_items
from cluster.storage import StorageError, local_input, url_of
from data.clip_writer import ClipContent, remove_clip, write_clip, write_record
from data.clips import DROPPED, KEPT, PAIRS_ONLY, STORED_BINS, ClipRow, Pair, motion_metrics
from data.media import MediaError
from data.optical_flow import estimate_backward_flow, estimate_flow, forward_backward_error, static_pixels, visible_flow
from data.shots import CAMERA_PX, camera_motion, find_shots, plan_sequences, typical_camera_px
from data.video import Video, iterate_video, probe_video
from data.visualisation import most_moving_row
from motion.flow import MOTION_AREA_PX, default_grid_scale, magnitude, motion_grid_size
from motion.spectrum import FPS, MINIMUM_COVERAGE, PERIOD_S, fit_spectrum

# how reasons begin
UNREADABLE, CAMERA_REASON = "unreadable: ", "camera motion"
# Limits in px are for a grid of 256 x 160 and grow with the sides of others.
# A clip is static when both fewer of its pixels move than this, and hardly any move far (a candle's flame is small).
STATIC_FRACTION = 0.01
FAR_PX, FAR_FRACTION = 0.5, 0.001
# its flow has failed when it explains less of the frames
MIN_RELIABILITY = 0.25
# the verdict on the camera, and that of a dry run, is taken from so many frames, by this method
PREVIEW_FRAMES, PREVIEW_METHOD = 8, "dis_fast"
# there and back a pixel should return to within this, px and as a fraction of its flow; else its reliability is 0
RETURN_PX, RETURN_FRACTION = 0.5, 0.1
# a static pixel with at least this reliability looks the same in both frames
SAME_RELIABILITY = 0.8
SLICE_HEIGHT_PX = 32  # an X-t slice is at least so tall
# A frame repeats the one before when it differs by less than this, and by less than a fraction of the steps around it.
REPEAT_DIFFERENCE, REPEAT_FRACTION, REPEAT_WINDOW = 0.75 / 255, 0.4, 5


@dataclass(frozen=True)
class ClipJob:
    """One video, or part of one, to take clips from, and all that the result depends on."""

    id: str  # name of the files of the clip that begins at `start_s`; later ones are named ID-STARTs
    path: Path
    split: str  # train or test
    start_s: float = 0.0  # where the first frame lies
    seconds: float | None = None  # how much may be used; None: to the end
    fps: float = FPS  # highest frame rate to use
    area: int = MOTION_AREA_PX  # of the motion grid, px
    num_pairs: int = 6  # how many target frames to keep of a clip
    method: str = "dis"  # of optical flow
    raft_weights: Path | None = None  # for the method raft
    device: str = "cpu"  # for the method raft
    clips: int = 1  # how many clips at most
    stride_s: float = PERIOD_S  # from the start of one clip to the start of the next
    max_camera_px: float = CAMERA_PX  # how far the camera may move the image, px on a grid of 256 x 160
    group: str = ""  # the name that it shares with videos of the same source

    @property
    def source(self) -> str:
        """Return the video as a set's table names it."""
        return url_of(self.path) or str(self.path)


def is_unreadable(row: ClipRow) -> bool:
    """Return whether the video of a dropped row could not be read."""
    return row.reason.startswith(UNREADABLE)


def unreadable_row(job: ClipJob, why: str) -> ClipRow:
    """Return the row of a video of which nothing can be made."""
    limit_s = math.inf if job.seconds is None else job.seconds
    row = ClipRow(job.id, job.source, job.start_s, split=job.split, group=job.group, limit_s=limit_s)
    return replace(row, status=DROPPED, reason=UNREADABLE + " ".join(why.split()))


def prepare_videos(folder: Path | None, jobs: Sequence[ClipJob], workers: Workers) -> Iterator[list[ClipRow]]:
    """Yield the rows of each video, as they are done; what a cluster gives up is a row with the reason."""
    with run_items(partial(prepare_item, folder), jobs, workers, "video") as results:
        for done in results:
            if done.error is None or not workers.cluster:
                yield done.value()
                continue
            rows = [unreadable_row(done.item, done.reason)]
            write_record(folder, rows)
            yield rows


def prepare_item(folder: Path | None, job: ClipJob) -> list[ClipRow]:
    """Do as `prepare_video`, where the video, the set or both may lie at a URL."""
    try:
        with local_input(job.path) as path:
            rows = prepare_video(folder, replace(job, path=path))
        # the name of a copy is another each time
        rows = [replace(row, source=job.source, reason=row.reason.replace(str(path), job.source)) for row in rows]
    except StorageError as error:
        rows = [unreadable_row(job, str(error))]
    write_record(folder, rows)
    return rows


def prepare_video(folder: Path | None, job: ClipJob) -> list[ClipRow]:
    """Prepare the clips of a video, write their files into the set, and return their rows, that of `job.id` last.

    That row is always there, if need be as dropped. Without a folder nothing is written, and a few frames decide.
    """
    # the result of DIS depends on how many threads share an image
    cv2.setNumThreads(1)
    base = replace(unreadable_row(job, ""), status=KEPT, reason="")
    rows: dict[str, ClipRow] = {}
    clips = _read_clips(base, job)
    while True:
        try:
            row, video = next(clips, (None, None))
        except (MediaError, OSError, cv2.error) as error:
            for clip_id in rows if folder is not None else ():
                remove_clip(folder, clip_id)
            return [unreadable_row(job, str(error))]
        if row is None:
            return sorted(rows.values(), key=lambda row: (row.id == job.id, row.start_s))
        # errors in writing are not caught
        if video is not None and folder is None:
            row = _preview(row, video, job)
        elif video is not None:
            row, content = measure_motion(row, video, job)
            if content is not None:
                write_clip(folder, row.id, content)
        rows[row.id] = row


def describe_clip(row: ClipRow) -> str:
    """Describe a clip in a line."""
    if not row.frames:
        return row.reason
    clip = f"{row.fps:.4g} fps, from {row.start_s:g} s {row.frames} frames"
    motion = f"median {row.median_flow_px:.2f} px, {row.moving_fraction:.0%} move"
    return f"{clip}, {motion}; {row.reason}".removesuffix("; ")


def _read_clips(base: ClipRow, job: ClipJob) -> Iterator[tuple[ClipRow, Video | None]]:
    """Yield the row and the frames of each clip of a video; no frames where a cut left nothing at the start."""
    shots = find_shots(job.path, start_s=job.start_s, seconds=job.seconds)
    sequences, cuts_s = plan_sequences(shots, count=job.clips, stride_s=job.stride_s)
    if all(sequence.start_s > job.start_s for sequence in sequences):
        cuts = ", ".join(f"{cut_s:.2f}" for cut_s in cuts_s[:5]) + (" ..." if len(cuts_s) > 5 else "")
        yield replace(base, status=DROPPED, reason=f"cut: at {cuts} s, which leaves no clip at {job.start_s:g} s"), None
    frame_s = 1 / probe_video(job.path, count_frames=False).fps
    for sequence in sequences:
        # Rounded up: the first frame at or after it is taken, and the one before a cut must not be it.
        start_s = base.start_s if sequence.start_s == base.start_s else math.ceil(sequence.start_s * 1000) / 1000
        name = base.id if start_s == base.start_s else f"{base.id}-{seconds_name(start_s)}"
        # the frame that a cut begins with stays outside, whatever its stamp is rounded to
        seconds = min(PERIOD_S, max(sequence.end_s - start_s - 0.5 * frame_s, 0.5 * frame_s))
        video = read_clip(job.path, start_s=start_s, seconds=seconds, fps=job.fps, area=job.area)
        if len(video.frames) < 2:
            if name != base.id:
                continue
            raise MediaError(f"{job.path}: holds a single frame at {start_s:g} s; give a video that moves")
        reason = f"cut at {sequence.end_s:.2f} s" if sequence.end_s in cuts_s else ""
        row = replace(base, id=name, start_s=start_s, fps=round(video.fps, 3), frames=len(video.frames), reason=reason)
        yield row, video


def seconds_name(start_s: float) -> str:
    """Write a time for a name, exact to the millisecond: 12.5s."""
    return f"{start_s:.3f}".rstrip("0").rstrip(".") + "s"


def _preview(row: ClipRow, video: Video, job: ClipJob) -> ClipRow:
    """Judge a clip by a few of its frames; the verdict on the camera is final."""
    first, frames = video.frames[0], video.frames[_spread(PREVIEW_FRAMES, len(video.frames))]  # (N, 3, H, W)
    flow = estimate_flow(first, frames, method=PREVIEW_METHOD)  # (N, 2, H, W)
    flow, reliability = visible_flow(first, frames, flow, static=static_pixels(first, video.frames))
    camera_px = typical_camera_px(camera_motion(first, flow, reliability))
    row = _judged(replace(row, camera_px=round(camera_px, 3)), flow, reliability, video.times_s)
    limit_px = job.max_camera_px / default_grid_scale(*first.shape[-2:])
    if camera_px > limit_px:
        reason = f"{CAMERA_REASON}: {camera_px:.2f} px, at most {limit_px:.2f} is allowed"
        return replace(row, status=DROPPED, reason=reason)
    return row


def _spread(number: int, count: int) -> list[int]:
    """Choose up to `number` of `count` frames, evenly, the last one among them and never frame 0."""
    return sorted({round((i + 1) * (count - 1) / number) for i in range(number)} - {0})


def _judged(row: ClipRow, flow: torch.Tensor, reliability: torch.Tensor, times_s: torch.Tensor) -> ClipRow:
    """Give a row its metrics and the verdict: dropped, pairs_only or kept."""
    displacement = magnitude(flow).mean(0)  # (1, H, W)
    row = replace(row, confidence=round(float(reliability.mean()), 4), **motion_metrics(displacement))
    far_px = displacement * default_grid_scale(*displacement.shape[-2:])
    status, count, cut = DROPPED, len(times_s), f" ({row.reason})" if row.reason else ""
    # the interval after the last frame counts, as in fit_spectrum
    covered_s, least_s = float(times_s[-1]) * count / (count - 1), MINIMUM_COVERAGE * PERIOD_S
    if row.confidence < MIN_RELIABILITY:
        reason = f"flow failed: mean reliability {row.confidence:.2f} is below {MIN_RELIABILITY}"
    elif row.moving_fraction < STATIC_FRACTION and float((far_px > FAR_PX).float().mean()) < FAR_FRACTION:
        reason = f"static: {row.moving_fraction:.2%} of the pixels move, {STATIC_FRACTION:.0%} is wanted"
    elif covered_s < least_s:
        status, reason = PAIRS_ONLY, f"covers {covered_s:.2f} s, a spectrum needs {least_s:g} s{cut}"
    elif count < 2 * STORED_BINS:
        status, reason = PAIRS_ONLY, f"{count} different frames, {STORED_BINS} bins need {2 * STORED_BINS}{cut}"
    else:
        status, reason = KEPT, ""
    return replace(row, status=status, reason=reason)


def measure_motion(row: ClipRow, video: Video, job: ClipJob) -> tuple[ClipRow, ClipContent | None]:
    """Estimate a clip's motion; return its row with metrics and verdict, and its content (None when dropped)."""
    preview = _preview(row, video, job)
    if preview.reason.startswith(CAMERA_REASON):
        return preview, None
    row = replace(row, camera_px=preview.camera_px)
    first, frames = video.frames[0], video.frames
    options = {"method": job.method, "weights": job.raft_weights, "device": job.device}
    raw = estimate_flow(first, frames, **options)  # (T, 2, H, W)
    if not torch.isfinite(raw).all():
        return replace(row, status=DROPPED, reason="flow failed: NaN or Inf"), None
    flow, reliability = visible_flow(first, frames, raw)
    displacement, confidence = magnitude(flow).mean(0), reliability.mean(0)  # (1, H, W)
    row = _judged(row, flow, reliability, video.times_s)
    if row.status == DROPPED:
        return row, None

    chosen = _spread(job.num_pairs, len(frames))
    if chosen:
        error = forward_backward_error(raw[chosen], estimate_backward_flow(first, frames[chosen], **options))
        inconsistent = _inconsistent(error, flow[chosen], reliability[chosen])  # (N, 1, H, W)
        row = replace(row, inconsistent_fraction=round(float(inconsistent.float().mean()), 4))
        reliability[chosen] = reliability[chosen].masked_fill(inconsistent, 0.0)
    pairs = tuple(Pair(frames[i], flow[i], reliability[i], float(video.times_s[i])) for i in chosen)
    section = frames[:, :, most_moving_row(displacement)].transpose(0, 1)  # (3, T, W)
    # a short clip's is drawn out, so that it can be seen and read
    section = section.repeat_interleave(-(-SLICE_HEIGHT_PX // len(frames)), dim=1)
    if row.status == PAIRS_ONLY:
        return row, ClipContent(first, pairs=pairs, importance=displacement, slice=section)
    spectrum = fit_spectrum(flow, video.times_s, num_bins=STORED_BINS, period_s=PERIOD_S)
    return row, ClipContent(first, spectrum, confidence, pairs, slice=section)


def _inconsistent(error: torch.Tensor, flow: torch.Tensor, reliability: torch.Tensor) -> torch.Tensor:
    length = magnitude(flow)  # (N, 1, H, W)
    limit_px = RETURN_PX / default_grid_scale(*error.shape[-2:]) + RETURN_FRACTION * length
    # where the flow was set to 0 and the frame looks like frame 0 there is nothing to check
    return (error > limit_px) & ((length > 0) | (reliability < SAME_RELIABILITY))


def read_clip(
    path: str | Path,
    *,
    start_s: float = 0.0,
    seconds: float = PERIOD_S,
    fps: float = FPS,
    area: int = MOTION_AREA_PX,
    size: tuple[int, int] | None = None,
) -> Video:
    """Read a clip without repeated frames on its motion grid (`size`, or of `area` px), thinned to `fps` at most."""
    info = probe_video(path, count_frames=False)
    grid = size or motion_grid_size(info.height, info.width, area=area)
    frames, stamps_s = [], []
    for time_s, frame in iterate_video(path, start_s=start_s, seconds=seconds, size=grid):
        # thinned to the rate on average; resampling would give frames stamps that are not theirs
        if time_s >= len(frames) / fps - 0.5 / info.fps - 1e-6:
            frames.append(frame)
            stamps_s.append(time_s)
    images, times_s = torch.stack(frames), torch.tensor(stamps_s, dtype=torch.float64)
    keep = repeated_frames(images, times_s).logical_not()
    return Video(images[keep], times_s[keep], min(fps, info.fps))


def repeated_frames(frames: torch.Tensor, times_s: torch.Tensor) -> torch.Tensor:
    """Find frames (T, 3, H, W) at times (T,) that repeat the one before, as conversions from 24 or 25 Hz do: (T,)."""
    repeated = torch.zeros(len(frames), dtype=torch.bool)
    if len(frames) < 3:
        return repeated
    changes = torch.stack([(b - a).abs().mean() for a, b in zip(frames[:-1], frames[1:], strict=True)])  # (T-1,)
    gaps = times_s.diff().float()  # (T-1,)
    steps = changes * (gaps.median() / gaps.clamp(min=1e-6))
    padded = torch.cat([steps[1 : REPEAT_WINDOW + 1].flip(0), steps, steps[-REPEAT_WINDOW - 1 : -1].flip(0)])
    around = padded.unfold(0, len(padded) - len(steps) + 1, 1).median(1).values  # (T-1,)
    neighbour = torch.minimum(torch.cat([steps[1:2], steps[:-1]]), torch.cat([steps[1:], steps[-2:-1]]))  # (T-1,)
    # where motion turns back the steps shrink little by little; a repeat is a dip of one frame
    is_dip = (steps < REPEAT_FRACTION * neighbour) & (neighbour > 0.5 * around)
    repeated[1:] = (changes < REPEAT_DIFFERENCE) & is_dip
    # where most frames look like repeats hardly anything moves
    return repeated if repeated.float().mean() < 0.5 else torch.zeros_like(repeated)
