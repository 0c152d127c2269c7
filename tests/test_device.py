"""Devices and precisions by name."""

from __future__ import annotations

import pytest
import torch

from models import device
from models.device import ArgumentError, check_precision, choose_device


def test_devices(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ArgumentError, match="^device cuda:3: this machine has no CUDA device; right: auto, cpu$"):
        choose_device("cuda:3")
    with pytest.raises(ArgumentError, match="^device mps: this machine does not have it"):
        choose_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda") and choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ArgumentError, match="right: auto, cpu, cuda:0, cuda:1$"):
        choose_device("cuda:2")


def test_half_precision_needs_a_gpu():
    assert check_precision("bf16", torch.device("cpu")) == "bf16"
    assert check_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(ArgumentError, match="^precision fp16: needs a GPU; right: no, bf16$"):
        check_precision("fp16", torch.device("cpu"))


def test_units_for_bfloat16(tmp_path, monkeypatch):
    monkeypatch.undo()
    for name, text, expected in (("a", "flags : avx2 amx_bf16", True), ("b", "flags : avx512_bf16", True),
                                 ("c", "flags : avx512f avx2", False)):  # fmt: skip
        (tmp_path / name).write_text(text)
        assert device.has_bfloat16_units(tmp_path / name) is expected
    assert not device.has_bfloat16_units(tmp_path / "none")


@pytest.mark.parametrize(
    ("place", "units", "speed_up", "chosen", "said"),
    [
        ("cpu", True, 1.5, "bf16", "precision bf16: bfloat16 is 1.50 times as fast"),
        ("cpu", True, 1.05, "no", "precision no: bfloat16 is only 1.05 times as fast"),
        ("cpu", False, 1.5, "no", "precision no: this CPU has no units for bfloat16"),
        ("cuda", False, 0.5, "fp16", "precision fp16: a CUDA GPU"),
        ("mps", True, 1.5, "no", "precision no: mps"),
    ],
)
def test_automatic_precision_is_logged_once(monkeypatch, caplog, place, units, speed_up, chosen, said):
    monkeypatch.setattr(device, "has_bfloat16_units", lambda: units)
    monkeypatch.setattr(device, "bfloat16_speed_up", lambda: speed_up)
    device._automatic_precision.cache_clear()
    with caplog.at_level("INFO"):
        assert {check_precision("auto", torch.device(place)) for _ in range(2)} == {chosen}
    device._automatic_precision.cache_clear()
    assert caplog.messages == [said]


@pytest.mark.parametrize(("speed_up", "lines"), [(0.6, 1), (1.0, 0)])
def test_slow_bfloat16_runs_with_a_note(monkeypatch, caplog, speed_up, lines):
    monkeypatch.setattr(device, "bfloat16_speed_up", lambda: speed_up)
    device._note_slow_bfloat16.cache_clear()
    with caplog.at_level("INFO"):
        assert check_precision("bf16", torch.device("cpu")) == "bf16"
    device._note_slow_bfloat16.cache_clear()
    assert len(caplog.messages) == lines and all("slower than float32" in line for line in caplog.messages)


def test_the_speed_up_is_measured():
    assert 0.01 < device.bfloat16_speed_up() < 100
