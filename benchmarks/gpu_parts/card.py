"""What machine this is, and why a part cannot run on it."""

import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import transformers

from benchmarks.gpu_parts.results import SkippedError
from dino_x.machine.device import GIB, describe_device

MATRIX = 8192  # side of the products that the peak is measured with
TOY_MATRIX = 1024


def why_no_gpu() -> str | None:
    """Why PyTorch cannot use a GPU here, with the way out; None if it can."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        has_gpu = torch.cuda.is_available()
    if not has_gpu:
        return reason_of([str(warning.message) for warning in said], torch.version.cuda)
    try:
        float(torch.ones(2, device="cuda").sum())
    except RuntimeError as error:  # such as a card that this build has no code for
        return f"PyTorch cannot compute on this GPU: {str(error).splitlines()[0]}"
    return None


def reason_of(warned: list[str], built_for: str | None) -> str:
    """The reason in one line, from what PyTorch warned of.

    Args:
        warned: its warnings.
        built_for: the version of CUDA that it was built for; None for a build without.
    """
    if built_for is None:
        return "this build of PyTorch has no CUDA"
    if any("driver" in text and "too old" in text for text in warned):
        return (
            f"the driver is too old for a PyTorch built for CUDA {built_for}: update it, or install"
            " a PyTorch built for an earlier CUDA"
        )
    if warned:
        return "PyTorch cannot use a GPU: " + warned[0].splitlines()[0][:160]
    return "there is no GPU"


@dataclass(frozen=True)
class Card:
    """The device that all is measured on.

    Attributes:
        no_gpu: why there is none; None if there is one.
    """

    no_gpu: str | None

    @classmethod
    def here(cls) -> "Card":
        """The GPU of this machine, or its CPU."""
        return cls(why_no_gpu())

    @property
    def toy(self) -> bool:
        """Whether everything is at toy size."""
        return self.no_gpu is not None

    @property
    def device(self) -> torch.device:
        """The first GPU, or the CPU."""
        return torch.device("cpu") if self.toy else torch.device("cuda", 0)

    @cached_property
    def has_bf16(self) -> bool:
        """Whether the hardware itself computes in bf16."""
        return self.toy or torch.cuda.is_bf16_supported(including_emulation=False)

    @property
    def free_gib(self) -> float:
        """Free memory of the GPU."""
        return torch.cuda.mem_get_info(self.device)[0] / GIB

    def need_gpu(self) -> None:
        """Raises: SkippedError without a GPU."""
        if self.no_gpu is not None:
            raise SkippedError(f"it needs a GPU, and {self.no_gpu}")

    def need_bf16(self) -> None:
        """Raises: SkippedError for a card without bf16."""
        if not self.has_bf16:
            major, minor = torch.cuda.get_device_capability(self.device)
            raise SkippedError(
                f"it needs bf16, which this card (compute capability {major}.{minor}) lacks"
            )

    def need_memory(self, gib: float) -> None:
        """Raises: SkippedError for a GPU with less free memory."""
        if not self.toy and self.free_gib < gib:
            raise SkippedError(
                f"it needs about {gib:.0f} GiB of the GPU's memory, and {self.free_gib:.0f} are"
                " free"
            )

    def described(self) -> dict[str, str]:
        """The card and the versions, by name; ``no_gpu`` is the reason why there is none."""
        found = {"device": describe_device(self.device)}
        if not self.toy:
            memory = torch.cuda.get_device_properties(self.device).total_memory / GIB
            found |= {
                "memory": f"{memory:.0f} GiB",
                "cards": f"{torch.cuda.device_count()} in the machine",
                "driver": f"driver {driver()}",
                "cuda": f"CUDA {torch.version.cuda}",
            }
        found |= {
            "torch": f"PyTorch {torch.__version__}",
            "transformers": f"transformers {transformers.__version__}",
            "python": f"Python {sys.version.split()[0]}",
            "system": f"{platform.system()} {platform.machine()}",
        }
        return found if self.no_gpu is None else found | {"no_gpu": self.no_gpu}

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if not self.toy:
            torch.cuda.synchronize(self.device)

    @cached_property
    def peak(self) -> float:
        """Operations a second that a large matrix product reaches: in bf16 on a GPU."""
        side = TOY_MATRIX if self.toy else MATRIX
        dtype = torch.bfloat16 if self.has_bf16 and not self.toy else torch.float32
        a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        return max(2 * side**3 / self.seconds(lambda: a @ b) for _ in range(5 if self.toy else 12))

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds that some work takes, the GPU's included."""
        self.synchronize()
        started = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - started


def driver() -> str:
    """The version of the driver, as it says itself."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return next(word for word in words if word.count(".") >= 1 and word[0].isdigit())
    except (OSError, StopIteration):
        return "unknown"
