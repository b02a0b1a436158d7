"""Cards one can rent or buy: what their makers publish. Dense figures, without sparsity."""

from dataclasses import dataclass

from dino_x.cost.memory import CUDA_CONTEXT, GIB, KEPT_FREE
from dino_x.errors import UserError, nearest


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes:
        name: as it is called.
        memory: GB, as it is sold.
        bandwidth: of its memory, GB/s.
        bf16: peak TFLOP/s of tensor cores with sums in float32; None where it has no bfloat16.
        fp16, tf32, fp32: likewise; fp32 without tensor cores.
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
        """TFLOP/s for ``train.precision``; None where the card cannot do it, or it is not known."""
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

CARDS = {
    "h200": Card(
        "NVIDIA H200", 141, 4800, 989, 989, 495, 67, "NVIDIA H200 Tensor Core GPU data sheet"
    ),
    "h100": Card("NVIDIA H100 SXM", 80, 3350, 989, 989, 495, 67, HOPPER),
    "h100-pcie": Card("NVIDIA H100 PCIe", 80, 2000, 756, 756, 378, 51, HOPPER),
    "a100-80": Card("NVIDIA A100 80GB SXM", 80, 2039, 312, 312, 156, 19.5, A100),
    "a100-40": Card("NVIDIA A100 40GB SXM", 40, 1555, 312, 312, 156, 19.5, A100),
    "l40s": Card("NVIDIA L40S", 48, 864, 362, 362, 183, 91.6, "NVIDIA L40S data sheet"),
    "l4": Card("NVIDIA L4", 24, 300, 121, 121, 60, 30.3, "NVIDIA L4 Tensor Core GPU data sheet"),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", 24, 1008, 165, 165, 82.6, 82.6, ADA),
    "rtx3090": Card(
        "NVIDIA GeForce RTX 3090", 24, 936, 71, 71, 35.6, 35.6,
        "NVIDIA Ampere GA102 GPU architecture white paper",
    ),
    "v100": Card("NVIDIA V100 SXM2 32GB", 32, 900, None, 125, None, 15.7, VOLTA),
    "v100-16": Card("NVIDIA V100 SXM2 16GB", 16, 900, None, 125, None, 15.7, VOLTA),
    "t4": Card("NVIDIA T4", 16, 320, None, 65, None, 8.1, "NVIDIA T4 Tensor Core GPU data sheet"),
}  # fmt: skip

# Share of the peak that training is assumed to reach. Of bfloat16 tensor cores a ViT of these sizes
# gets little, as what lies between products waits for memory; plain float32 is slow enough to be
# kept busy. Assumptions, not measurements: measure on the card with `dino-x plan`, or say --mfu.
ASSUMED = {"bf16": 0.25, "fp32": 0.5}


def card_of(name: str) -> Card:
    """A card by its short name.

    Raises: UserError with the names there are.
    """
    if name.lower() not in CARDS:
        raise UserError(
            f"--card knows {', '.join(CARDS)}; got '{name}'{nearest(name.lower(), CARDS)}"
        )
    return CARDS[name.lower()]
