"""evaluate.py video: every line of it over small networks of random weights, on videos made here; and its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from result_tables import read_list, read_rows
from torch import Tensor, nn
from torchvision.models import get_model

import evaluate
from data.media import write_image
from data.scenes.render_set import render_scene_set
from data.video_writer import VideoWriter
from evaluation.flags import network_input, video_network
from evaluation.video.measure import VideoComparison
from evaluation.video.networks import FeatureNetwork, preprocess
from evaluation.video.sources import ClipVideos, FolderVideos, RenderedVideos, centre_crop
from models.motion_pipeline import MotionPipeline
from models.weights import WeightsError
from motion.motion_file import Motion

CROP = ["--crop", "32x16"]
CPU = ["--device", "cpu"]
FRAMES, VIDEOS = 24, 3
NETWORKS = {"fid": "image", "fvd": "video"}


class Pictures(nn.Module):
    """(N, 3, H, W) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).abs().mean((2, 3))


class Windows(nn.Module):
    """(N, 3, T, H, W) -> (N, 4); its kernels reach over three frames and are not symmetric in time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 4, 3, stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3, 4))


class Published(nn.Module):
    """With the arguments of StyleGAN-V's I3D; its features show what it was given."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        if not return_features:
            return x[:1, 0, 0, 0]
        asked = torch.full_like(x[:, 0, 0, 0, :1], 2.0 * float(rescale) + float(resize))
        return torch.cat([asked, x.flatten(1).max(1, keepdim=True)[0], x[:, 0, :2, 0, 0]], 1)


class Wrong(nn.Module):
    """Returns what is no features, in several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :4]
        if self.kind == "map":
            return x
        if self.kind == "flat":
            return flat.flatten()
        if self.kind == "nan":
            return flat / 0.0 - flat / 0.0
        if self.kind == "nan_later":  # on pictures, and not on the noise that it is tried with
            return torch.sqrt(x.std() - 0.25) * flat
        if self.kind == "constant":
            return flat * 0.0
        if self.kind == "long":
            return flat.long()
        return flat.reshape(-1, 3, 1000)


def pan(seed: int, speed: int, frames: int = FRAMES) -> Tensor:
    """A smooth texture that goes `speed` px to the right each frame, (T, 3, 24, 32)."""
    texture = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    picture = nn.functional.interpolate(texture, size=(24, 32), mode="bicubic").clamp(0, 1)[0]
    return torch.stack([picture.roll(speed * index, -1) for index in range(frames)])


def write(path: Path, frames: Tensor, fps: float = 30) -> None:
    with VideoWriter(path, fps=fps) as writer:
        writer.write(frames)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos: real, faster, other (another name), slow, empty; and networks."""
    root = tmp_path_factory.mktemp("videos")
    for index in range(VIDEOS):
        name = f"clip{index}.mp4"
        write(root / "real" / name, pan(index, 1))
        write(root / "faster" / name, pan(index, 3, FRAMES - 2 * index))
    for index, frame in enumerate(pan(0, 1)):
        write_image(root / "frames" / "clip0" / f"{index}.png", frame)  # 10.png after 9.png
    write(root / "other" / "other.mp4", pan(9, 1, 2))
    write(root / "slow" / "clip1.mp4", pan(1, 1), fps=15)
    (root / "empty").mkdir()
    modules = {"image": Pictures(), "video": Windows(), "published": Published()}
    modules |= {kind: Wrong(kind) for kind in ("map", "flat", "nan", "nan_later", "constant", "long", "fails")}
    for name, module in modules.items():
        torch.jit.save(torch.jit.script(module), str(root / f"{name}.pt"))
    (root / "corrupt.pt").write_bytes((root / "video.pt").read_bytes()[:300])
    return root


@pytest.fixture(autouse=True)
def in_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let flags name files as a person would."""
    monkeypatch.chdir(root)


def test_every_figure_of_folders(tmp_path: Path, caplog, capsys) -> None:
    flags = ["video", "--real", "real", "--generated", "real", "faster", "--image-network", "image.pt"]
    flags += ["--fvd-network", "video.pt", "--dtfvd-network", "video.pt", "--dtfvd-input", "signed,16x16"]
    flags += ["--windows", "8", "12", "--batch-size", "3"]
    assert evaluate.main([*flags, *CROP, *CPU, "--slide-step", "4", "--out", str(tmp_path / "out")]) == 0
    rows = read_rows(tmp_path / "out")
    assert list(rows) == ["real", "faster", "frame 0 repeated"]
    same, faster, still = rows.values()
    # lengths: 24, and of the shortest folder 22 and 20
    for row in rows.values():
        assert (row["videos"], row["frames"], row["windows_8"], row["windows_12"]) == (3, 66, 3 + 2 + 2, 2 + 1 + 1)
    for figure in ("fid", "fvd_8", "fvd_12", "dtfvd_8", "dtfvd_12"):
        assert same[figure] == pytest.approx(0, abs=1e-9) and still[figure] > 1e3 * abs(same[figure])
        assert still[figure] > 1e-7 and faster[figure] > 1e-7
    assert same["kid"] <= still["kid"] and same["kid_deviation"] > 0
    sliding = read_list(tmp_path / "out" / "sliding")
    # places 0, 4 and 8 of windows of 16 frames: the third fits into the longest video alone, and one has no covariance
    found = [(row["from_frame"], row["dtfvd_16"] is not None, row["windows"]) for row in sliding]
    assert found[:3] == [(0, True, 3), (4, True, 3), (8, False, 1)] and len(sliding) == 9
    assert all(row["fid_30"] is None and row["frames"] == 0 for row in sliding)

    printed = capsys.readouterr().out
    assert "100 subsets of at most 1000 frames" in printed
    assert "| frame 0 repeated |" in printed and "3 videos of 20 to 24 frames, 66 frames" in printed
    assert "dtfvd: video.pt (" in printed and "4 features" in printed and "evaluate.py video --real" in printed
    said = "fvd_12: 4 samples for 4 features, so the covariance is singular"
    assert said in printed and said in caplog.text and "fvd_8: 7 samples" not in printed
    assert (tmp_path / "out" / "results.csv").is_file() and (tmp_path / "out" / "results.md").is_file()


def test_what_has_no_network_is_said_and_left_out(tmp_path: Path, caplog) -> None:
    flags = ["video", "--real", "real", "--generated", "real", "--image-network", "image.pt", "--frames", "10"]
    assert evaluate.main([*flags, *CROP, *CPU, "--out", str(tmp_path / "out")]) == 0
    row = read_rows(tmp_path / "out")["real"]
    assert row["fid"] == pytest.approx(0, abs=1e-9) and row["frames"] == 30
    assert not row.keys() & {"fvd_16", "dtfvd_32", "windows_16", "lpips_alex", "fid_sliding"}
    for line in ("left out: fvd; the fvd network is i3d:FILE", "left out: dtfvd; the dtfvd"):
        assert line in caplog.text and line in (tmp_path / "out" / "results.md").read_text()


def test_videos_shorter_than_a_window_are_counted(tmp_path: Path) -> None:
    flags = ["video", "--real", "real", "--generated", "faster", "--fvd-network", "video.pt", "--windows", "12", "22"]
    assert evaluate.main([*flags, *CROP, *CPU, "--out", str(tmp_path / "out")]) == 0
    row = read_rows(tmp_path / "out")["faster"]
    assert (row["windows_12"], row["windows_22"], row.get("fid")) == (4, 2, None) and row["fvd_22"] > 0


def test_a_video_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    for folder in ("real", "made"):
        for index in range(3):
            write(tmp_path / folder / f"clip{index}.mp4", pan(index, 1, 4))
    (tmp_path / "made" / "clip1.mp4").write_bytes(b"no video")
    flags = ["video", "--real", str(tmp_path / "real"), "--generated", str(tmp_path / "made"), *CROP, *CPU]
    flags += ["--image-network", "image.pt", "--out", str(tmp_path / "out")]
    assert evaluate.main(flags) == 3
    assert read_rows(tmp_path / "out")["made"]["videos"] == 2
    assert "left out as not readable 1: clip1 (" in (tmp_path / "out" / "results.md").read_text()


def test_clips_of_a_set_are_animated_and_compared(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    asked, predict = [], MotionPipeline.predict
    monkeypatch.setattr(
        MotionPipeline, "predict", lambda *a, **options: asked.append(options["precision"]) or predict(*a, **options)
    )
    clip_set = render_scene_set(tmp_path / "set", 3, seed=3, size=(32, 64), pairs=0)
    flags = ["video", "--data", str(clip_set.folder), "--split", "all", "--frames", "8", "--crop", "64x32", *CPU]
    flags += ["--fvd-network", "video.pt", "--windows", "4", "--checkpoint", str(checkpoint), "--steps", "2"]
    both = [*flags, "--clips", "2", "--splat", "softmax", "gaussian", "--precision", "bf16"]
    assert evaluate.main([*both, "--out", str(tmp_path / "out")]) == 0
    rows = read_rows(tmp_path / "out")
    assert list(rows) == ["model softmax", "model gaussian", "frame 0 repeated"]
    assert all(row["windows_4"] == 4 and row["fvd_4"] > 0 for row in rows.values())
    assert asked == ["bf16"] * 2
    text = (tmp_path / "out" / "results.md").read_text()
    assert "one sample a clip" in text and "sampler dpm, 2 steps" in text and "as animate.py does" in text

    # the same again; what is repeated does not depend on the motion
    assert evaluate.main([*flags, "--clips", "2", "--precision", "bf16", "--out", str(tmp_path / "again")]) == 0
    assert read_rows(tmp_path / "again")["model softmax"]["fvd_4"] == rows["model softmax"]["fvd_4"]

    # a source that is gone costs its clip, and is named
    table = clip_set.folder / "clips.csv"
    row = clip_set.rows()[0]
    table.write_text(table.read_text().replace(row.source, str(tmp_path / "gone.mp4")))
    assert evaluate.main([*flags, "--out", str(tmp_path / "gone")]) == 3
    assert read_rows(tmp_path / "gone")["model softmax"]["videos"] == 2
    assert f"left out as not readable 1: {row.id} (" in (tmp_path / "gone" / "results.md").read_text()


def test_start_noise_is_of_the_clip(tmp_path: Path) -> None:
    clip_set = render_scene_set(tmp_path / "set", 2, seed=3, size=(32, 64), pairs=0)
    seeds = []

    class Pipeline:
        @staticmethod
        def predict(image: Tensor, *, seed: int) -> Motion:
            seeds.append(seed)
            return Motion(torch.zeros(4, 4, 32, 64), None, 150, 30.0, (32, 64), {"amplitude_limit_scale": 1.0})

    for rows, seed in [(clip_set.rows(), 0), (clip_set.rows()[1:], 0), (clip_set.rows(), 1)]:
        parts = ([("model", "average")], {"": Pipeline()}, {}, {"seed": seed})
        source = RenderedVideos(clip_set, rows, *parts, crop=(16, 32), num_frames=2)
        for name in source.names:
            source.read(name)
    assert seeds[2] == seeds[1] and len(set(seeds)) == 4


def test_the_order_of_frames_matters_to_a_network_of_videos() -> None:
    networks = {name: FeatureNetwork(Path(f"{file}.pt"), on_videos=name == "fvd") for name, file in NETWORKS.items()}
    comparison = VideoComparison(["backwards"], networks, windows=(8,))
    for seed in range(4):
        frames = pan(seed, 2, 16)
        comparison.add(ClipVideos(f"clip{seed}", frames, {"backwards": frames.flip(0)}))
    backwards, still = comparison.table()
    assert backwards["fid"] == pytest.approx(0, abs=1e-9) and backwards["fvd_8"] > 1e-6 and still["fid"] > 1e-7


def test_a_row_may_be_called_real() -> None:
    comparison = VideoComparison(["real"], {"fid": FeatureNetwork(Path("image.pt"), on_videos=False)})
    for seed in range(3):
        comparison.add(ClipVideos(f"clip{seed}", pan(seed, 1, 4), {"real": pan(seed + 9, 1, 4)}))
    assert comparison.table()[0]["fid"] > 1e-7


def test_frames_that_are_not_finite_are_named() -> None:
    comparison = VideoComparison(["broken"], {"fvd": FeatureNetwork(Path("video.pt"), on_videos=True)}, windows=(8,))
    broken = pan(0, 1)
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="pan: its frames of broken are not finite"):
        comparison.add(ClipVideos("pan", pan(0, 1), {"broken": broken}))


def test_videos_of_other_sizes_are_brought_to_the_crop(tmp_path: Path) -> None:
    for index in range(VIDEOS):
        larger = nn.functional.interpolate(pan(index, 1), scale_factor=1 + index, mode="bilinear").clamp(0, 1)
        write(tmp_path / "made" / f"clip{index}.mp4", larger)
    flags = ["video", "--real", "real", "--generated", str(tmp_path / "made"), "--fvd-network", "video.pt"]
    assert evaluate.main([*flags, "--windows", "8", *CROP, *CPU, "--out", str(tmp_path / "out")]) == 0
    made, still = read_rows(tmp_path / "out").values()
    assert made["fvd_8"] < 0.5 * still["fvd_8"] and made["fvd_sliding"] < still["fvd_sliding"]


def test_one_video_alone_has_no_distance(tmp_path: Path, capsys) -> None:
    write(tmp_path / "made" / "clip0.mp4", pan(0, 2))
    flags = ["video", "--real", "real", "--generated", str(tmp_path / "made"), "--fvd-network", "video.pt"]
    assert evaluate.main([*flags, "--windows", "8", *CROP, *CPU, "--out", str(tmp_path / "out")]) == 2
    assert "--data: 1 videos could be measured; right: 2 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_windows_are_taken_in_one_pass_or_in_several_alike() -> None:
    network, found = FeatureNetwork(Path("video.pt"), on_videos=True), []
    for batch_size in (3, 100):
        comparison = VideoComparison([], {"fvd": network}, windows=(3,), batch_size=batch_size)
        comparison.add(ClipVideos("pan", pan(0, 2, 30), {}))
        ((_, features, _),) = comparison.features["frame 0 repeated", "fvd_3", None]
        found.append(features)
    torch.testing.assert_close(*found)
    assert len(found[0]) == 10 and comparison.count(16) == 1 and comparison.count(31) == 0


def test_windows_that_overlap_and_slide_are_those_of_their_frames() -> None:
    networks = {name: FeatureNetwork(Path(f"{file}.pt"), on_videos=name != "fid") for name, file in
                {"fid": "image", "fvd": "video", "dtfvd": "video"}.items()}  # fmt: skip
    comparison = VideoComparison(["fast"], networks, windows=(8,), window_step=5, slide_step=7)
    for seed in range(2):
        comparison.add(ClipVideos(f"clip{seed}", pan(seed, 1, 40), {"fast": pan(seed, 3, 40)}))
    assert [len(real) for _, real, _ in comparison.features["fast", "fvd_8", None]] == [7, 7]  # from 0, 5, ... 30
    assert comparison.count(8) == 14
    places = [(row["from_frame"], row["frames"], row["windows"]) for row in comparison.sliding_table()[:4]]
    assert places == [(0, 60, 2), (7, 60, 2), (14, 0, 2), (21, 0, 2)]  # of 30 frames two fit, of 16 four
    expected = [networks["dtfvd"](pan(seed, 3, 40)[None, 14:30]) for seed in range(2)]
    found = [features for *_, features in comparison.features["fast", "dtfvd_16", 14]]
    torch.testing.assert_close(found, expected)


def test_folders_of_frames_are_read_as_videos(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    clip = FolderVideos(Path("real"), [Path("frames")], crop=(16, 32), num_frames=20).read("clip0")
    assert len(clip.real) == 20
    torch.testing.assert_close(clip.generated["frames"], pan(0, 1)[:20, :, 4:20], atol=1 / 255, rtol=0)
    flags = ["--real", "real", "--generated", "frames", "--image-network", "image.pt", "--fps", "9"]
    assert evaluate.main(["video", *flags, *CROP, *CPU, "--out", str(tmp_path / "out")]) == 2
    assert "--fps 9: frames/clip0 is a folder of frames, which have no rate" in capsys.readouterr().err


def test_what_a_network_is_shown() -> None:
    windows = torch.zeros(1, 2, 3, 4, 4)
    windows[0, 1] = 1.0
    published = FeatureNetwork(Path("published.pt"), on_videos=True)
    assert published(windows).tolist() == [[3.0, 255.0, 0.0, 255.0]]  # it prepares itself; channels before time
    by_hand = FeatureNetwork(Path("published.pt"), on_videos=True, input_format=network_input("signed,8x8"))
    assert by_hand(windows).tolist() == [[0.0, 1.0, -1.0, 1.0]]
    frames = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1).expand(2, 3, 4, 6)
    assert preprocess(frames, *network_input("bytes"))[0, :, 0, 0].tolist() == [0, 128, 255]
    assert preprocess(frames, *network_input("unit,3x2")).shape == (2, 3, 2, 3)


@pytest.mark.parametrize("name", ["r3d_18", "s3d"])
def test_a_video_network_of_torchvision(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(get_model(name, weights=None, num_classes=3).state_dict(), path)
    kind, file = video_network(f"torchvision:{name}={path}")
    network = FeatureNetwork(file, on_videos=True, kind=kind)
    features = network(torch.rand(2, 14, 3, 16, 32, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (2, 512 if name == "r3d_18" else 1024) and not torch.equal(*features)
    with pytest.raises(WeightsError, match=r"weights.pth: cannot be read as weights of r2plus1d_18 \("):
        FeatureNetwork(file, on_videos=True, kind="r2plus1d_18")


def test_inception_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "weights.pth")
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(WeightsError, match="weights.pth: needs torch-fidelity; right: pip install torch-fidelity"):
        FeatureNetwork(tmp_path / "weights.pth", on_videos=False, kind="inception")


def test_inception_by_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="needs torch-fidelity")
    torch.save({}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="other.pth: cannot be read as weights of inception"):
        FeatureNetwork(tmp_path / "other.pth", on_videos=False, kind="inception")
    with monkeypatch.context() as patch:  # random weights: nothing is loaded
        patch.setattr(package, "load_state_dict_from_url", lambda *args, **options: {})
        patch.setattr(package.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        net = package.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    network = FeatureNetwork(tmp_path / "weights.pth", on_videos=False, kind="inception")
    network.check((16, 32))
    assert network(torch.rand(1, 3, 16, 32)).shape == (1, 2048)


def test_the_crop_is_the_middle_of_what_just_covers_it() -> None:
    rows = torch.arange(160.0).view(160, 1).expand(3, 160, 256)
    cropped = centre_crop(rows, (128, 256))
    assert cropped.shape == (3, 128, 256) and cropped[0, :, 0].tolist() == list(range(16, 144))  # not resampled
    columns = torch.arange(40.0).expand(2, 3, 20, 40)
    assert centre_crop(columns, (20, 20))[0, 0, 0].tolist() == list(range(10, 30))
    halved = centre_crop(columns, (10, 10))  # to 10 x 20, then columns 5 to 14: 10.5, 12.5, ...
    torch.testing.assert_close(halved[1, 2, 4, 1:-1], torch.arange(12.5, 28, 2))
    assert centre_crop(torch.zeros(3, 90, 60), (128, 256)).shape == (3, 128, 256)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fvd-network", "video.pt"], "--data: right: either a clip set, or --real DIR with --generated DIR"),
        (["--real", "real"], "--data: right: either a clip set"),
        (["--data", "s", "--real", "real"], "--data: right: either a clip set"),
        (["--data", "nowhere", "--fvd-network", "video.pt"], "nowhere: not a clip set"),
        (["--data", "s", "--rows", "blur:6"], "--rows blur:6: right: at most blur:5 for this --crop"),
        (["--data", "s", "--fps", "9"], "--fps 9: a clip set is compared at its clips' own time stamps"),
        (["PAIR"], "--image-network: nothing is measured without a network"),
        (["PAIR", "--fvd-network", "no.pt"], "no.pt: no such file"),
        (["PAIR", "--fvd-network", "torchvision:i3d=x"], "right: torchvision:NAME=FILE, of r3d_18"),
        (["PAIR", "--fvd-network", "torchvision:s3d=corrupt.pt"], "corrupt.pt: cannot be read as weights of s3d ("),
        (["PAIR", "--image-network", "inception=corrupt.pt"], "corrupt.pt: cannot be read as weights of inception ("),
        (["PAIR", "--image-network", "inception=x", "--image-input", "unit"], "--image-input: belongs to a"),
        (["PAIR", "--fvd-network", "video.pt", "--dtfvd-input", "unit"], "--dtfvd-input: belongs to a TorchScript"),
        (["PAIR", "--fvd-network", "video.pt", "--fvd-input", "0..1"], "--fvd-input: 0..1: right: unit ([0, 1])"),
        (["PAIR", "--fvd-network", "video.pt", "--fvd-input", "unit,9"], "--fvd-input: expected WIDTHxHEIGHT"),
        (["PAIR", "--fvd-network", "corrupt.pt"], "corrupt.pt: cannot be read as TorchScript ("),
        (["PAIR", "--fvd-network", "image.pt"], "image.pt: fails on an input (2, 3, 16, 16, 32) ("),
        (["PAIR", "--image-network", "video.pt"], "video.pt: fails on an input (2, 3, 16, 32) ("),
        (
            ["PAIR", "--image-network", "map.pt"],
            "returns (2, 3, 16, 32) torch.float32 for (2, 3, 16, 32); right: features (2, D)",
        ),
        (["PAIR", "--image-network", "flat.pt"], "returns (8,) torch.float32 for (2, 3, 16, 32)"),
        (["PAIR", "--image-network", "long.pt"], "returns (2, 4) torch.int64 for"),
        (["PAIR", "--image-network", "fails.pt"], "fails.pt: fails on an input (2, 3, 16, 32) ("),
        (["PAIR", "--image-network", "constant.pt"], "constant.pt: gives the same features for any input"),
        (["PAIR", "--image-network", "nan.pt"], "nan.pt: its features are not finite"),
        (["PAIR", "--image-network", "nan_later.pt"], "nan_later.pt: its features are not finite"),
        (
            ["PAIR", "--fvd-network", "video.pt", "--windows", "8", "99"],
            "--windows 99: 0 windows of 99 frames in 3 videos",
        ),
        (["PAIR", "--fvd-network", "video.pt", "--windows", "1"], "--windows: expected a whole number of at least 2"),
        (
            ["PAIR", "--fvd-network", "video.pt", "--windows", "2"],
            "video.pt: fails on an input (2, 3, 2, 16, 32)",
        ),
        (
            ["--real", "real", "--generated", "nowhere", "--image-network", "image.pt"],
            "nowhere: no such folder",
        ),
        (["--real", "real", "--generated", "empty", "--image-network", "image.pt"], "holds neither videos"),
        (
            ["--real", "real", "--generated", "other", "--image-network", "image.pt"],
            "no video has the name of one in real",
        ),
        (["PAIR", "--image-network", "image.pt", "--steps", "9"], "--steps: the videos of --generated exist already"),
        (["PAIR", "--image-network", "image.pt", "--precision", "no"], "--precision: the videos of --generated exist"),
        (["--real", "real", "--generated", "real", "real", "--image-network", "image.pt"], "real: is named twice"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pair = ["--real", "real", "--generated", "faster"]
    given = [part for flag in flags for part in (pair if flag == "PAIR" else [flag])]
    assert evaluate.main(["video", *given, *CROP, *CPU, "--out", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line
    assert not (tmp_path / "out").exists()


def test_videos_are_read_at_one_rate(caplog: pytest.LogCaptureFixture) -> None:
    source = FolderVideos(Path("real"), [Path("slow")], crop=(16, 32), num_frames=4, fps=15)
    assert "2 names that are not in all folders" in caplog.text
    FolderVideos(Path("real"), [Path("slow")], crop=(16, 32), num_frames=4).read("clip1")
    assert "clip1: 15 and 30 frames/s, so that its windows last differently; fps HZ reads" in caplog.text
    clip = source.read("clip1")  # every second frame of the real one
    frames = pan(1, 1)[:8, :, 4:20]
    for found, places in [(clip.real, [0, 2, 4, 6]), (clip.generated["slow"], [0, 1, 2, 3])]:
        errors = (found[:, None] - frames).abs().flatten(2).mean(2)  # (4, 8)
        assert errors.argmin(1).tolist() == places
