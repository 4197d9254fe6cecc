"""Where the code runs: the device and precision of this process, and those it runs beside."""

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from prunegpt_utils.errors import ParameterError
from prunegpt_utils.files import acquire


def processes() -> PartialState:
    """The processes that run this code side by side: one, unless Accelerate launched more."""
    return PartialState(cpu=not torch.cuda.is_available())


def device() -> torch.device:
    """The accelerator of this process if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", processes().local_process_index)
    return torch.device("cpu")


def device_name() -> str:
    """What the runs of this machine run on."""
    cuda = torch.cuda.is_available()
    return torch.cuda.get_device_name() if cuda else f"cpu {platform.machine()}"


def processor_name() -> str:
    """The processor, and the widest instructions that torch uses of it; others round otherwise."""
    file = Path("/proc/cpuinfo")  # Python's own answer is empty on Linux
    found = re.search(r"^model name\s*:\s*(.+)$", file.read_text() if file.exists() else "", re.M)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def choose_precision(wanted: str = "auto") -> str:
    """`auto` is bf16 where the processor multiplies it natively, else float32."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def make_accelerator(batch: int, on_cpu: bool) -> Accelerator:
    """The Accelerator of a training whose processes share each batch of `batch` windows.

    Each process holds the whole model (data parallelism, Li et al. 2020, arXiv 2006.15704).

    Raises:
        ParameterError: the processes cannot share a batch evenly, or were launched to shard the
            model, which is not supported: masks rank the weights of the whole model.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        raise ParameterError("--use_fsdp", True, "is not supported; use --multi_gpu instead")
    # Accelerate remembers the precision of whoever used it first in this process, such as a
    # Trainer's bf16, and would run our forward pass in it; here the configuration says which.
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
    if batch % accelerator.num_processes:
        allowed = f"must be a multiple of the {accelerator.num_processes} processes that share it"
        raise ParameterError("batch", batch, allowed)
    return accelerator


@contextlib.contextmanager
def exclusive(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """No other start trains in this folder meanwhile; the first process sees to that."""
    main = accelerator.is_main_process
    with acquire(folder / "lock") if main else contextlib.nullcontext():
        accelerator.wait_for_everyone()
        yield
