"""GPUs that one can rent or buy, with their makers' numbers (dense, without sparsity)."""

from dataclasses import dataclass

from dino_x.cost.memory import CUDA_CONTEXT, GIB, KEPT_FREE
from dino_x.errors import UserError, nearest


@dataclass(frozen=True)
class Gpu:
    """One type of GPU.

    Attributes:
        name: the full name of the GPU.
        memory: memory in GB, as it is sold.
        bandwidth: bandwidth of its memory in GB/s.
        bf16: peak TFLOP/s of tensor cores with sums in float32; None where it has no bfloat16.
        fp16, tf32, fp32: the same for other formats; fp32 without tensor cores.
        source: the maker's document.
    """

    name: str
    memory: int
    bandwidth: float
    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float
    source: str

    def peak(self, precision: str, *, tf32: bool = False) -> float | None:
        """TFLOP/s for ``train.precision``; None where the GPU cannot do it, or it is not known."""
        if precision == "bf16":
            return self.bf16
        if precision == "fp32":
            return self.tf32 if tf32 and self.tf32 else self.fp32
        return None

    @property
    def usable(self) -> float:
        """Bytes that training may take: less what driver, error correction and gaps do."""
        return (1 - KEPT_FREE) * self.memory * GIB - CUDA_CONTEXT


HOPPER = "NVIDIA H100 Tensor Core GPU data sheet; Hopper architecture white paper"
A100 = "NVIDIA A100 Tensor Core GPU data sheet"
ADA = "NVIDIA Ada GPU architecture white paper, appendix A"
VOLTA = "NVIDIA V100 Tensor Core GPU data sheet"

GPUS = {
    "h200": Gpu(
        "NVIDIA H200", 141, 4800, 989, 989, 495, 67, "NVIDIA H200 Tensor Core GPU data sheet"
    ),
    "h100": Gpu("NVIDIA H100 SXM", 80, 3350, 989, 989, 495, 67, HOPPER),
    "h100-pcie": Gpu("NVIDIA H100 PCIe", 80, 2000, 756, 756, 378, 51, HOPPER),
    "a100-80": Gpu("NVIDIA A100 80GB SXM", 80, 2039, 312, 312, 156, 19.5, A100),
    "a100-40": Gpu("NVIDIA A100 40GB SXM", 40, 1555, 312, 312, 156, 19.5, A100),
    "l40s": Gpu("NVIDIA L40S", 48, 864, 362, 362, 183, 91.6, "NVIDIA L40S data sheet"),
    "l4": Gpu("NVIDIA L4", 24, 300, 121, 121, 60, 30.3, "NVIDIA L4 Tensor Core GPU data sheet"),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 24, 1008, 165, 165, 82.6, 82.6, ADA),
    "rtx3090": Gpu(
        "NVIDIA GeForce RTX 3090", 24, 936, 71, 71, 35.6, 35.6,
        "NVIDIA Ampere GA102 GPU architecture white paper",
    ),
    "v100": Gpu("NVIDIA V100 SXM2 32GB", 32, 900, None, 125, None, 15.7, VOLTA),
    "v100-16": Gpu("NVIDIA V100 SXM2 16GB", 16, 900, None, 125, None, 15.7, VOLTA),
    "t4": Gpu("NVIDIA T4", 16, 320, None, 65, None, 8.1, "NVIDIA T4 Tensor Core GPU data sheet"),
}  # fmt: skip

# Share of the peak that training is assumed to reach. Of bfloat16 tensor cores a ViT of these sizes
# gets little, as what lies between products waits for memory; plain float32 is slow enough to be
# kept busy. Assumptions, not measurements: measure on the GPU with `dino-x plan`, or say --mfu.
ASSUMED = {"bf16": 0.25, "fp32": 0.5}


def gpu_of(name: str) -> Gpu:
    """The GPU that has a short name.

    Raises: UserError with the names there are.
    """
    if name.lower() not in GPUS:
        raise UserError(
            f"--card knows {', '.join(GPUS)}; got '{name}'{nearest(name.lower(), GPUS)}"
        )
    return GPUS[name.lower()]
