"""The micro-batch: what divides an effective batch, and the largest that fits."""

from collections.abc import Callable

import torch

from dino_x.errors import UserError

CPU_MICRO_BATCH = 16  # larger gains no speed on a CPU and costs memory


def divisors(number: int) -> list[int]:
    """All divisors, largest first."""
    return [n for n in range(number, 0, -1) if number % n == 0]


def check_divides(effective_batch: int, micro_batch: int, ranks: int = 1) -> None:
    """Refuse an effective batch that is no multiple of micro-batch x ranks.

    Raises: UserError naming the nearest that are.
    """
    portion = micro_batch * ranks
    if effective_batch % portion:
        below = effective_batch // portion * portion
        nearest = ", ".join(str(n) for n in (below, below + portion) if n)
        kind = "is" if "," not in nearest else "are"
        raise UserError(
            f"effective batch {effective_batch} is not a multiple of micro-batch {micro_batch} x"
            f" {ranks} rank{'s' * (ranks > 1)} = {portion}; the nearest that {kind}: {nearest}"
        )


def largest_that_fits(
    effective_batch: int, device: torch.device, attempt: Callable[[int], None]
) -> int:
    """The micro-batch for ``auto``: on a CPU a fixed size, on a GPU the largest that runs.

    Args:
        effective_batch: it divides this.
        device: where.
        attempt: runs one forward and backward of that many images.

    Raises: UserError if not even one image fits.
    """
    sizes = divisors(effective_batch)
    if device.type != "cuda":
        return next(size for size in sizes if size <= CPU_MICRO_BATCH)
    for size in sizes:
        try:
            attempt(size)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        return size
    raise UserError("not even a micro-batch of 1 fits in the GPU's memory; choose a smaller model")
