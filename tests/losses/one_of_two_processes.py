"""Run by test_ranks.py, twice at once: this process's part of one effective batch.

python one_of_two_processes.py RANK FOLDER
"""

import os
import sys
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_x.losses import prototype_cross_entropy, sinkhorn_bias, sinkhorn_sweeps

IMAGES = 13
ROWS_OF_RANK = (slice(0, 4), slice(4, IMAGES))  # uneven on purpose
QUEUE_OF_RANK = (slice(0, 5), slice(5, 5))  # the second process brings none
TEMPERATURES = {"student_temperature": 0.5, "teacher_temperature": 0.3}
SHARP = 0.002  # logits of thousands, where some rows are far from the largest of every prototype


def effective_batch() -> dict[str, Tensor]:
    """The same in every process, as if drawn for the whole effective batch."""
    generator = torch.Generator().manual_seed(7)
    shapes = {
        "teacher_ND": (IMAGES, 6),
        "queue_QD": (5, 6),
        "student_ND": (IMAGES, 6),
        "teacher_prototypes_KD": (31, 6),
        "student_prototypes_KD": (31, 6),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


class Head(nn.Module):
    """A last layer whose forward is the loss, as DDP wants it."""

    def __init__(self, prototypes_KD: Tensor) -> None:
        super().__init__()
        self.prototypes_KD = nn.Parameter(prototypes_KD.clone())

    def forward(self, batch: dict[str, Tensor], rows: slice, bias_K: Tensor) -> Tensor:
        student_RD, teacher_RD = batch["student_ND"][rows], batch["teacher_ND"][rows]
        index_R = torch.arange(len(student_RD))
        return prototype_cross_entropy(
            student_RD,
            self.prototypes_KD,
            teacher_RD,
            batch["teacher_prototypes_KD"],
            bias_K,
            torch.stack([index_R, index_R], dim=1),
            torch.full((len(student_RD),), 1 / IMAGES, dtype=torch.float64),
            **TEMPERATURES,
        )


def biases(batch: dict[str, Tensor], rows: slice, queued: slice, group: object) -> dict:
    """The bias on every path, [K] each."""
    found = {}
    teacher_ND, prototypes_KD = batch["teacher_ND"], batch["teacher_prototypes_KD"]
    for path, factor in (("kept", 6), ("swept", 0), ("reference", 6)):
        with mock.patch.object(sinkhorn_sweeps, "KEEP_FACTOR", factor):
            options = {
                "extra_bottlenecks_QD": batch["queue_QD"][queued],
                "group": group,
                "implementation": "reference" if path == "reference" else "streaming",
            }
            for prototypes, temperature in ((31, 0.3), (7, SHARP), (1, 0.3)):
                for relaxation in (0.0, 0.4):
                    name = (
                        f"{path}, {prototypes} prototypes at {temperature}, relaxed by {relaxation}"
                    )
                    found[name] = sinkhorn_bias(
                        teacher_ND[rows],
                        prototypes_KD[:prototypes],
                        temperature,
                        relaxation=relaxation,
                        **options,
                    )
    return found


def refusal(batch: dict[str, Tensor], rows: slice, group: object, temperature: float) -> str:
    """What the bias says when it refuses."""
    try:
        sinkhorn_bias(
            batch["teacher_ND"][rows], batch["teacher_prototypes_KD"], temperature, group=group
        )
    except ValueError as error:
        return str(error)
    return "not refused"


def main(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    batch, group = effective_batch(), dist.group.WORLD
    found = biases(batch, ROWS_OF_RANK[rank], QUEUE_OF_RANK[rank], group)
    nothing = slice(0, 0)
    found["all rows in one process"] = sinkhorn_bias(
        batch["teacher_ND"][slice(0, IMAGES) if rank else nothing],
        batch["teacher_prototypes_KD"],
        0.3,
        group=group,
    )
    head = DistributedDataParallel(Head(batch["student_prototypes_KD"]))
    bias_K = found["kept, 31 prototypes at 0.3, relaxed by 0.0"]
    (2 * head(batch, ROWS_OF_RANK[rank], bias_K)).backward()  # DDP takes the mean over ranks
    found["gradient"] = head.module.prototypes_KD.grad
    found["one refuses"] = refusal(batch, ROWS_OF_RANK[rank], group, -1.0 if rank else 0.3)
    found["no rows"] = refusal(batch, nothing, group, 0.3)
    torch.save(found, folder / f"rank_{rank}.pt")
    del head
    dist.barrier()
    dist.destroy_process_group()
    # On a busy machine gloo's threads may still be running when the interpreter takes them down,
    # which aborts the process. What it found is on the disk.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
