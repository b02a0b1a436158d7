"""The processes that share a run: joined by what torchrun or SLURM says, kept in agreement.

All hold the same networks and draw the same windows; each reads and computes its share of the
images. Rank 0 reads the folder, writes the run and prints.
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

TIMEOUT = timedelta(minutes=30)  # of one wait: rank 0 may evaluate while others wait;
# processes that are gone are found in less than a minute, see watch.py
LOST = ("Connection closed", "Connection reset", "Broken pipe", "NCCL", "Socket")  # of a peer
SLURM_PORTS = (20_000, 20_000)  # first, and how many: each job its own

MOST_NAMED = 5  # things in which processes differ

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessInfo:
    """Which process this is, as its launcher says.

    Attributes:
        rank: its number, from 0.
        world_size: processes in all.
        local_rank: its number on this machine.
        address, port: where rank 0 listens.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 29500


def process_info(environment: Mapping[str, str]) -> ProcessInfo:
    """Which process this is: from torchrun's variables, else SLURM's, else one process alone.

    Raises: UserError for variables that are incomplete or not numbers.
    """
    try:
        if "WORLD_SIZE" in environment and "RANK" in environment:
            return _from_torchrun(environment)
        # In an sbatch script outside srun there is one process, whatever was asked for.
        if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in environment:
            return _from_slurm(environment)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the launcher's variables are incomplete ({error}); start several processes with"
            " torchrun --nproc-per-node N --no-python dino-x ..., or with srun"
        ) from error
    return ProcessInfo()


def _from_torchrun(environment: Mapping[str, str]) -> ProcessInfo:
    """Which process this is, from torchrun's variables."""
    return ProcessInfo(
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        local_rank=int(environment.get("LOCAL_RANK", environment["RANK"])),
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
    )


def _from_slurm(environment: Mapping[str, str]) -> ProcessInfo:
    """Which process this is, from the variables of SLURM's srun."""
    job = int(environment["SLURM_JOB_ID"])
    first_port, ports = SLURM_PORTS
    port_of_job = first_port + job % ports
    return ProcessInfo(
        rank=int(environment["SLURM_PROCID"]),
        world_size=int(environment["SLURM_NTASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        address=environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
        port=int(environment.get("MASTER_PORT") or port_of_job),
    )


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
    """The GPU of a process: the one with its local rank.

    Raises: UserError if there are fewer GPUs than processes on this machine.
    """
    if chosen.type != "cuda" or where.world_size == 1:
        return chosen
    gpus = torch.cuda.device_count()
    if where.local_rank >= gpus:
        raise UserError(
            f"process {where.local_rank + 1} of this machine has no GPU: it has {gpus}; start"
            f" {gpus} processes a machine (torchrun --nproc-per-node {gpus})"
        )
    return torch.device("cuda", where.local_rank)


@contextmanager
def joined(where: ProcessInfo, device: torch.device) -> Iterator[Ranks]:
    """A context in which the processes of a run are joined.

    Raises: UserError if they do not find each other.
    """
    if where.world_size == 1:
        yield ALONE
        return
    watch = _join(where, device)
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


def _join(where: ProcessInfo, device: torch.device) -> Watch:
    """Join the processes, and start to watch them.

    Raises: UserError if they do not find each other.
    """
    backend, device_id = "gloo", None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend, device_id = "nccl", device
    try:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{where.address}:{where.port}",
            rank=where.rank,
            world_size=where.world_size,
            timeout=TIMEOUT,
            device_id=device_id,
        )
        return Watch(where.address, where.port, where.rank, where.world_size, end_process)
    except (RuntimeError, ValueError) as error:  # torch has no common class for what can go wrong
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the {where.world_size} processes did not find each other at"
            f" {where.address}:{where.port}: {reason}; is the port in use? set another MASTER_PORT"
        ) from error


def all_or_none(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do something that may fail in one process, and fail in all of them if it did.

    Raises: UserError in every process, with the message of the first that failed.
    """
    if ranks.world_size == 1:
        return work()
    result, message = None, None
    try:
        result = work()
    except UserError as error:
        message = str(error)
    messages = gather_objects(ranks, message)
    if any(text is not None for text in messages):
        raise first_error(ranks, messages)
    return result  # type: ignore[return-value]


def first_error(ranks: Ranks, messages: list[str | None]) -> UserError:
    """An error with the message of the first process that has one, for every process to raise."""
    found = [(rank, text) for rank, text in enumerate(messages) if text is not None]
    rank, message = found[0]
    if rank > 0:
        message = f"process {rank}: {message}"
    return _printed_once(ranks, message)


def broadcast_from_rank0(ranks: Ranks, work: Callable[[], T]) -> T:
    """The result of work that rank 0 does, in every process.

    Raises: UserError in every process if the work fails on rank 0.
    """
    result = all_or_none(ranks, lambda: work() if ranks.rank == 0 else None)
    if ranks.world_size == 1:
        return result  # type: ignore[return-value]
    carrier: list[Any] = [result]
    dist.broadcast_object_list(carrier, src=0, group=ranks.group)
    return carrier[0]


def gather_objects(ranks: Ranks, own: T) -> list[T]:
    """The objects of all processes, in the order of their ranks."""
    if ranks.world_size == 1:
        return [own]
    found: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(found, own, group=ranks.group)
    return found


def check_same(ranks: Ranks, what: str, values: Mapping[str, object]) -> None:
    """Refuse processes that differ in something all must share.

    Args:
        ranks: the processes of the run.
        what: what the values are, for people.
        values: by name; the names that differ are said, their values are not.

    Raises: UserError in every process.
    """
    found = gather_objects(ranks, {name: str(value) for name, value in values.items()})
    for rank, theirs in enumerate(found):
        names = [name for name in found[0] | theirs if theirs.get(name) != found[0].get(name)]
        if names:
            listed = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
            raise _printed_once(
                ranks,
                f"process {rank} has other {what} than process 0 ({listed}): do all machines see"
                " the same folders, and run the same version with the same settings?",
            )


def check_alike(network: nn.Module, ranks: Ranks) -> None:
    """Refuse to continue with processes whose weights have come apart.

    Raises: UserError; it means faulty hardware or machines that compute differently.
    """
    if ranks.world_size == 1:
        return
    total = torch.stack([weight.detach().double().sum() for weight in network.parameters()]).sum()
    largest, smallest = ranks.max_(total.clone()), -ranks.max_(-total)
    if not torch.equal(largest, smallest):
        raise _printed_once(
            ranks,
            "the processes' weights have come apart, which only faulty memory or machines that"
            " compute differently explain; start again with --resume, on machines of one kind",
        )


def _printed_once(ranks: Ranks, message: str) -> UserError:
    """An error that all processes raise, and rank 0 prints."""
    if ranks.rank == 0:
        return UserError(message)
    return SaidElsewhereError(message)
