"""The processes that share a run: joined by what torchrun or SLURM says, kept in agreement.

All hold the same networks and draw the same windows; each reads and computes its share of the
images. The first one reads the folder, writes the run and speaks.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from dino_x.distributed.watch import Watch, end_process
from dino_x.errors import SaidElsewhereError, UserError
from dino_x.losses.ranks import ALONE, Ranks

TIMEOUT = timedelta(minutes=30)  # of one wait: the first process may evaluate while others wait;
# processes that are gone are found in less than a minute, see watch.py
LOST = ("Connection closed", "Connection reset", "Broken pipe", "NCCL", "Socket")  # of a peer
SLURM_PORTS = (20_000, 20_000)  # first, and how many: each job its own

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessInfo:
    """Which process this is, as its launcher says.

    Attributes:
        rank: its number, from 0.
        world_size: processes in all.
        local_rank: its number on this machine.
        address, port: where the first process listens.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 29500


def process_info(environment: Mapping[str, str]) -> ProcessInfo:
    """From torchrun's variables, else from SLURM's, else one process alone.

    Raises: UserError for variables that are incomplete or no numbers.
    """
    try:
        if "WORLD_SIZE" in environment and "RANK" in environment:
            return ProcessInfo(
                int(environment["RANK"]),
                int(environment["WORLD_SIZE"]),
                int(environment.get("LOCAL_RANK", environment["RANK"])),
                environment["MASTER_ADDR"],
                int(environment["MASTER_PORT"]),
            )
        # In an sbatch script outside srun there is one process, whatever was asked for.
        if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in environment:
            (first, ports), job = SLURM_PORTS, int(environment["SLURM_JOB_ID"])
            return ProcessInfo(
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_NTASKS"]),
                int(environment["SLURM_LOCALID"]),
                environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
                int(environment.get("MASTER_PORT") or first + job % ports),
            )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the launcher's variables are incomplete ({error}); start several processes with"
            " torchrun --nproc-per-node N --no-python dino-x ..., or with srun"
        ) from error
    return ProcessInfo()


def first_host(nodes: str) -> str:
    """The first machine of a SLURM list.

    >>> first_host("gpu[07-09,12],login"), first_host("node1,node2")
    ('gpu07', 'node1')
    """
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return name.split(",")[0]
    number, suffix = rest.split("]")[0], rest.partition("]")[2].split(",")[0]
    return name + number.split(",")[0].split("-")[0] + suffix


def device_of(chosen: torch.device, where: ProcessInfo) -> torch.device:
    """The card of a process: the one with its local number.

    Raises: UserError if there are fewer cards than processes on this machine.
    """
    if chosen.type != "cuda" or where.world_size == 1:
        return chosen
    cards = torch.cuda.device_count()
    if where.local_rank >= cards:
        raise UserError(
            f"process {where.local_rank + 1} of this machine has no GPU: it has {cards}; start"
            f" {cards} processes a machine (torchrun --nproc-per-node {cards})"
        )
    return torch.device("cuda", where.local_rank)


@contextmanager
def joined(where: ProcessInfo, device: torch.device) -> Iterator[Ranks]:
    """The processes of a run, until the block ends.

    Raises: UserError if they do not find each other.
    """
    if where.world_size == 1:
        yield ALONE
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"tcp://{where.address}:{where.port}",
            rank=where.rank,
            world_size=where.world_size,
            timeout=TIMEOUT,
            device_id=device if cuda else None,
        )
        watch = Watch(where.address, where.port, where.rank, where.world_size, end_process)
    except (RuntimeError, ValueError) as error:  # torch has no common class for what can go wrong
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the {where.world_size} processes did not find each other at"
            f" {where.address}:{where.port}: {reason}; is the port in use? set another MASTER_PORT"
        ) from error
    try:
        yield Ranks(dist.group.WORLD)
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST):
            raise
        raise UserError(
            f"process {where.rank}: another process of the run has ended, see its message; go on"
            " with --resume"
        ) from error
    finally:
        watch.stop()
        dist.destroy_process_group()


def all_or_none(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do something that may fail in one process, and fail in all of them if it did.

    Raises: UserError in every process, with the first one's message.
    """
    if ranks.world_size == 1:
        return work()
    result, message = None, None
    try:
        result = work()
    except UserError as error:
        message = str(error)
    messages: list[str | None] = [None] * ranks.world_size
    dist.all_gather_object(messages, message, group=ranks.group)
    for rank, text in enumerate(messages):
        if text is not None:
            raise _said(ranks, text if rank == 0 else f"process {rank}: {text}")
    return result  # type: ignore[return-value]


def broadcast_from_rank0(ranks: Ranks, work: Callable[[], T]) -> T:
    """What the first process finds, in all of them.

    Raises: UserError in every process if it fails there.
    """
    result = all_or_none(ranks, lambda: work() if ranks.rank == 0 else None)
    if ranks.world_size == 1:
        return result  # type: ignore[return-value]
    carrier: list[Any] = [result]
    dist.broadcast_object_list(carrier, src=0, group=ranks.group)
    return carrier[0]


def gather_objects(ranks: Ranks, own: T) -> list[T]:
    """What each process has, in the order of their numbers."""
    if ranks.world_size == 1:
        return [own]
    found: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(found, own, group=ranks.group)
    return found


def check_same(ranks: Ranks, what: str, value: str) -> None:
    """Refuse processes that differ in something all must share.

    Raises: UserError in every process.
    """
    if ranks.world_size == 1:
        return
    values: list[str] = [""] * ranks.world_size
    dist.all_gather_object(values, value, group=ranks.group)
    other = [rank for rank, theirs in enumerate(values) if theirs != values[0]]
    if other:
        raise _said(
            ranks,
            f"process {other[0]} has other {what} than process 0: do all machines see the same"
            " folders, and run the same version with the same settings?",
        )


def check_alike(network: nn.Module, ranks: Ranks) -> None:
    """Refuse to go on with processes whose weights have come apart.

    Raises: UserError; it means faulty hardware or machines that compute differently.
    """
    if ranks.world_size == 1:
        return
    total = torch.stack([weight.detach().double().sum() for weight in network.parameters()]).sum()
    largest, smallest = ranks.max_(total.clone()), -ranks.max_(-total)
    if not torch.equal(largest, smallest):
        raise _said(
            ranks,
            "the processes' weights have come apart, which only faulty memory or machines that"
            " compute differently explain; start again with --resume, on machines of one kind",
        )


def _said(ranks: Ranks, message: str) -> UserError:
    """An error that all processes raise, and the first one says."""
    return UserError(message) if ranks.rank == 0 else SaidElsewhereError(message)
