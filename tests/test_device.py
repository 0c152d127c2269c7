"""Devices and precisions by name."""

from __future__ import annotations

import pytest
import torch

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
