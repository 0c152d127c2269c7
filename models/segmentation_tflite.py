"""Weights of the segmentation network from the TensorFlow Lite file that MLCommons publishes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.segmentation import SegmentationModel

EXPECTED = "mosaic_ade20k31_r4.tflite or mosaic_ade20k31_r3.tflite of github.com/mlcommons/mobile_open"
FILE_IDENTIFIER = b"TFL3"
# Numbers in TensorFlow Lite's schema: of operators, and of the types of quantised weights and biases.
CONV_2D, DEPTHWISE_CONV_2D = 3, 4
DTYPES = {2: "<i4", 3: "u1"}


class _Table:
    """A table of a FlatBuffer, whose fields go by their number in the schema.

    A reference is the distance from where it stands. A table begins with the distance back to the list of its fields:
    2 bytes each, after 4 of the list's own, 0 for a field that is left out.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position

    def _read(self, kind: str, position: int) -> int:
        return struct.unpack_from(kind, self.data, position)[0]

    def _field(self, number: int) -> int | None:
        fields = self.position - self._read("<i", self.position)
        entry = 4 + 2 * number
        offset = self._read("<H", fields + entry) if entry < self._read("<H", fields) else 0
        return self.position + offset if offset else None

    def _target(self, position: int) -> int:
        return position + self._read("<I", position)

    def number(self, number: int, kind: str) -> int:
        """Return a field of struct's kind, 0 where it is left out."""
        position = self._field(number)
        return 0 if position is None else self._read(kind, position)

    def array(self, number: int, dtype: str) -> np.ndarray:
        """Return a vector of numbers, or a text's bytes."""
        start = self._target(self._field(number))
        return np.frombuffer(self.data, dtype, count=self._read("<I", start), offset=start + 4)

    def table(self, number: int) -> _Table:
        """Return a table that a field refers to."""
        return _Table(self.data, self._target(self._field(number)))

    def tables(self, number: int) -> list[_Table]:
        """Return a vector of tables."""
        start = self._target(self._field(number))
        places = range(start + 4, start + 4 + 4 * self._read("<I", start), 4)
        return [_Table(self.data, self._target(place)) for place in places]


def _read_convolutions(data: bytes) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name, the weights (O, I, k, k) and the biases (O,) of each convolution, in the order of the graph."""
    model = _Table(data, struct.unpack_from("<I", data)[0])
    operator_codes, buffers, graph = model.tables(1), model.tables(4), model.tables(2)[0]
    tensors = graph.tables(0)

    def dequantised(tensor: _Table) -> np.ndarray:
        shape, dtype = tensor.array(0, "<i4"), DTYPES[tensor.number(1, "<b")]
        values = buffers[tensor.number(2, "<I")].array(0, "u1").view(dtype).reshape(shape)
        quantisation = tensor.table(4)
        scale, zero = quantisation.array(2, "<f4"), quantisation.array(3, "<i8")
        return ((values - zero) * scale.astype(np.float64)).astype(np.float32)

    for operator in graph.tables(3):
        code = operator_codes[operator.number(0, "<I")].number(0, "<b")
        if code in (CONV_2D, DEPTHWISE_CONV_2D):
            _, weight, bias = (tensors[index] for index in operator.array(1, "<i4"))
            # (O, k, k, I), or (1, k, k, O) where each channel has a filter of its own.
            order = (0, 3, 1, 2) if code == CONV_2D else (3, 0, 1, 2)
            name = weight.array(3, "u1").tobytes().decode().split(";")[0]
            yield name, dequantised(weight).transpose(order), dequantised(bias)


def load_tflite(path: str | Path) -> SegmentationModel:
    """Read MOSAIC from a TensorFlow Lite file, dequantised to float32, in eval mode; ValueError for another file.

    `load_tflite(path).half().save_pretrained(folder)` makes a model folder of 3.7 MB.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); right: {EXPECTED}") from None
    if data[4:8] != FILE_IDENTIFIER:
        raise ValueError(f"{path}: not a TensorFlow Lite file; right: {EXPECTED}")
    try:
        found = list(_read_convolutions(data))
    except (ValueError, TypeError, LookupError, struct.error) as error:  # a wrong number fails where it is first used
        raise ValueError(f"{path}: damaged, or of other types ({error}); right: a whole {EXPECTED}") from error
    network = SegmentationModel()
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    if len(found) != len(layers):
        raise ValueError(f"{path}: {len(found)} convolutions, expected {len(layers)}; right: {EXPECTED}")
    with torch.no_grad():
        for (name, layer), (given, weight, bias) in zip(layers, found, strict=True):
            if layer.stride == (2, 2):
                # TensorFlow pads one pixel less at the left and at the top; zeros there make both sides alike.
                weight = np.pad(weight, ((0, 0), (0, 0), (1, 0), (1, 0)))
            if weight.shape != layer.weight.shape:
                sizes = f"{weight.shape}, expected {tuple(layer.weight.shape)}"
                raise ValueError(f"{path}: {given} is {sizes} for {name}; right: {EXPECTED}")
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
    return network.eval()
