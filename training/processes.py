"""The processes of one training, which torchrun or `accelerate launch` started."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env

from models.device import ArgumentError, choose_device

# One process may render a whole scene set or sample images while the others wait.
WAIT_AT_MOST = timedelta(hours=6)


def start_processes(device_name: str = "auto") -> torch.device:
    """Connect the processes once; return this one's device (`accelerate launch --cpu`: the CPU). Or ArgumentError."""
    wants_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    device = choose_device("cpu" if wants_cpu else device_name)
    if "WORLD_SIZE" not in os.environ:
        if wants_cpu and "MASTER_ADDR" in os.environ:  # several were asked for, which accelerate leaves to MPI there
            right = "torchrun --nproc_per_node N SCRIPT"
            raise ArgumentError(f"device cpu: accelerate launch starts one process only; right: {right}")
        # accelerate keeps the first settings of a process for good; a further training brings its own.
        AcceleratorState._reset_state(reset_partial_state=True)
        if device.index is not None:
            torch.cuda.set_device(device)
    PartialState(cpu=device.type == "cpu", timeout=WAIT_AT_MOST)
    return device
