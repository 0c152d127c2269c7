"""What is wrong with a file of weights that cannot be read."""

import json
import struct
from pathlib import Path


def read_problem(path: Path, error: Exception) -> str:
    """Return why reading a file failed: within which tensor a .safetensors file is cut short, or the error's text."""
    cut = _cut_tensor(path) if path.suffix == ".safetensors" else None
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return f"cut short within {cut}" if cut else f"not readable as weights ({reason})"


def _cut_tensor(path: Path) -> str | None:
    """Return the first tensor whose bytes end behind the file's; None where the header cannot be read."""
    try:
        data = path.read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:start])
        parts = {name: part["data_offsets"] for name, part in header.items() if name != "__metadata__"}
        cut = [(begin, name) for name, (begin, end) in parts.items() if start + end > len(data)]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError):
        return None
    return min(cut)[1] if cut else None
