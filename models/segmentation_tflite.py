"""Weights of the segmentation network from the TensorFlow Lite file that MLCommons publishes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .segmentation import SegmentationModel

FILE_IDENTIFIER = b"TFL3"
CONV_2D, DEPTHWISE_CONV_2D = 3, 4  # operators in the schema
DTYPES = {2: "<i4", 3: "u1", 9: "i1"}  # the schema's INT32, UINT8 and INT8
EXPECTED = "MOSAIC's mosaic_ade20k31_r4.tflite or mosaic_ade20k31_r3.tflite"


class _Table:
    """A table of a FlatBuffer; fields go by their number in TensorFlow Lite's schema.

    A position in the file holds the distance to what it refers to; a table begins with the distance back to its list
    of fields, 2 bytes each, 0 for one that is left out.
    """

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position

    def _read(self, format: str, position: int) -> int:
        return struct.unpack_from(format, self.data, position)[0]

    def _field(self, number: int) -> int | None:
        fields = self.position - self._read("<i", self.position)
        entry = 4 + 2 * number
        offset = self._read("<H", fields + entry) if entry < self._read("<H", fields) else 0
        return self.position + offset if offset else None

    def _follow(self, position: int) -> int:
        return position + self._read("<I", position)

    def scalar(self, number: int, format: str) -> int:
        """Return a number, 0 where it is left out."""
        position = self._field(number)
        return 0 if position is None else self._read(format, position)

    def array(self, number: int, dtype: str) -> np.ndarray:
        """Return a vector of numbers, or of a text's bytes; empty where it is left out."""
        position = self._field(number)
        if position is None:
            return np.empty(0, dtype)
        start = self._follow(position)
        return np.frombuffer(self.data, dtype, count=self._read("<I", start), offset=start + 4)

    def table(self, number: int) -> _Table:
        """Return a table that this one refers to."""
        return _Table(self.data, self._follow(self._field(number)))

    def tables(self, number: int) -> list[_Table]:
        """Return a vector of tables."""
        start = self._follow(self._field(number))
        places = range(start + 4, start + 4 + 4 * self._read("<I", start), 4)
        return [_Table(self.data, self._follow(place)) for place in places]


def _read_convolutions(path: str | Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name, the weights (O, I, k, k) and the biases (O,) of each convolution, in the order of the graph."""
    data = Path(path).read_bytes()
    if data[4:8] != FILE_IDENTIFIER:
        raise ValueError(f"{path}: not a TensorFlow Lite file; right: {EXPECTED}")
    model = _Table(data, struct.unpack_from("<I", data)[0])
    codes = [max(code.scalar(0, "<b"), code.scalar(3, "<i")) for code in model.tables(1)]
    buffers, graph = model.tables(4), model.tables(2)[0]
    tensors = graph.tables(0)

    def dequantised(index: int) -> np.ndarray:
        tensor = tensors[index]
        shape, dtype = tensor.array(0, "<i4"), DTYPES[tensor.scalar(1, "<b")]
        values = buffers[tensor.scalar(2, "<I")].array(0, "u1").view(dtype).reshape(shape)
        quantisation = tensor.table(4)
        scale, zero = quantisation.array(2, "<f4"), quantisation.array(3, "<i8")
        return ((values.astype(np.int64) - zero) * scale.astype(np.float64)).astype(np.float32)

    for operator in graph.tables(3):
        code = codes[operator.scalar(0, "<I")]
        if code in (CONV_2D, DEPTHWISE_CONV_2D):
            _, weight, bias = operator.array(1, "<i4")
            name = bytes(tensors[weight].array(3, "u1")).decode()
            # (O, k, k, I), or (1, k, k, O) where each channel has a filter of its own.
            order = (0, 3, 1, 2) if code == CONV_2D else (3, 0, 1, 2)
            yield name, dequantised(weight).transpose(order), dequantised(bias)


def load_tflite(path: str | Path) -> SegmentationModel:
    """Read MOSAIC's weights from a TensorFlow Lite file, dequantised to float32.

    Args:
        path: mosaic_ade20k31_r4.tflite or mosaic_ade20k31_r3.tflite, of github.com/mlcommons/mobile_open.

    Returns:
        The network in eval mode; `load_tflite(path).half().save_pretrained(folder)` keeps it as a model folder.

    Raises:
        ValueError: a file that is missing, damaged, or holds another network.
    """
    try:
        found = list(_read_convolutions(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); right: {EXPECTED}") from None
    except (struct.error, LookupError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged ({error}); right: a whole {EXPECTED}") from error
    network = SegmentationModel()
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    if len(found) != len(layers):
        raise ValueError(f"{path}: has {len(found)} convolutions; right: {EXPECTED}, which has {len(layers)}")
    with torch.no_grad():
        for (name, layer), (given, weight, bias) in zip(layers, found, strict=True):
            if weight.shape != layer.weight.shape:
                raise ValueError(f"{path}: {given} is {weight.shape}; right: {tuple(layer.weight.shape)}, as {name} is")
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
    return network.eval()
