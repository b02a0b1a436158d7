"""How an effective batch is cut into shares of processes, and these into micro-batches.

One process cuts it into equal ones. Several have shares whose sizes differ by one at most, and each
cuts its share into equally many, whose sizes differ by one at most.
"""

from dino_x.errors import UserError
from dino_x.losses.ranks import share_of


def divisors(number: int) -> list[int]:
    """All divisors of a number, largest first."""
    return [n for n in range(number, 0, -1) if number % n == 0]


def parts_of_a_share(effective_batch: int, micro_batch: int, ranks: int = 1) -> int:
    """The number of micro-batches of each process: as few as the largest share needs."""
    return -(-largest_share(effective_batch, ranks) // micro_batch)


def largest_share(effective_batch: int, ranks: int) -> int:
    """The number of images of the process that has the most."""
    return -(-effective_batch // ranks)


def cut(share: slice, parts: int) -> list[slice]:
    """A share in so many parts whose sizes differ by one at most; fewer if it has fewer images.

    >>> cut(slice(5, 12), 2)
    [slice(5, 8, None), slice(8, 12, None)]
    """
    spans = []
    for number in range(parts):
        within = share_of(share.stop - share.start, number, parts)
        if within.start < within.stop:
            spans.append(slice(share.start + within.start, share.start + within.stop))
    return spans


def all_sizes(effective_batch: int, micro_batch: int, ranks: int = 1) -> list[int]:
    """The number of images of each micro-batch of each process, in their order.

    >>> all_sizes(16, 4, ranks=3)
    [2, 3, 2, 3, 3, 3]
    """
    parts = parts_of_a_share(effective_batch, micro_batch, ranks)
    sizes = []
    for rank in range(ranks):
        spans = cut(share_of(effective_batch, rank, ranks), parts)
        sizes += [span.stop - span.start for span in spans]
    return sizes


def choices(effective_batch: int, ranks: int = 1, *, equally_many: bool = False) -> list[int]:
    """The possible micro-batch sizes, largest first.

    One process divides the effective batch; several cut their shares.

    >>> choices(12), choices(16, ranks=3)
    ([12, 6, 4, 3, 2, 1], [6, 3, 2, 1])

    Args:
        effective_batch: images of a step.
        ranks: processes.
        equally_many: only those with which all processes have equally many.
    """
    if ranks == 1:
        return divisors(effective_batch)
    share = largest_share(effective_batch, ranks)
    sizes = sorted({-(-share // parts) for parts in range(1, share + 1)}, reverse=True)
    if not equally_many:
        return sizes
    return [size for size in sizes if are_equally_many(effective_batch, size, ranks)]


def check_divides(effective_batch: int, micro_batch: int) -> None:
    """Refuse an effective batch that is no multiple of the micro-batch; for one process.

    Raises: UserError naming the nearest that are.
    """
    if effective_batch % micro_batch:
        below = effective_batch // micro_batch * micro_batch
        nearest, kind = f"{below}, {below + micro_batch}", "are"
        if below == 0:
            nearest, kind = str(micro_batch), "is"
        raise UserError(
            f"effective batch {effective_batch} is not a multiple of micro-batch {micro_batch};"
            f" the nearest that {kind}: {nearest}"
        )


def usable(effective_batch: int, micro_batch: int, ranks: int, named: bool) -> int:
    """The largest micro-batch there is when none may be larger than ``micro_batch``.

    A run that resumes with another number of processes may have one that does not divide a share
    any more. Nothing of the result depends on it, so it is refused only where it is named.

    Raises: UserError for one process and a micro-batch that is named and does not divide.
    """
    if ranks > 1:
        return max(all_sizes(effective_batch, micro_batch, ranks))
    if named:
        check_divides(effective_batch, micro_batch)
    return next(size for size in divisors(effective_batch) if size <= micro_batch)


def check_enough(effective_batch: int, ranks: int) -> None:
    """Refuse more processes than images in the effective batch.

    Raises: UserError.
    """
    if effective_batch < ranks:
        raise UserError(
            f"effective batch {effective_batch} has fewer images than there are processes"
            f" ({ranks}); start {effective_batch} or fewer, or raise --effective-batch"
        )


def are_equally_many(effective_batch: int, micro_batch: int, ranks: int) -> bool:
    """Whether every process has as many micro-batches as the others."""
    parts = parts_of_a_share(effective_batch, micro_batch, ranks)
    return len(all_sizes(effective_batch, micro_batch, ranks)) == parts * ranks


def check_equally_many(effective_batch: int, micro_batch: int, ranks: int) -> None:
    """Refuse a cut in which a process has a micro-batch less than others.

    With sharded networks each process waits for all others in each micro-batch.

    Raises: UserError.
    """
    if not are_equally_many(effective_batch, micro_batch, ranks):
        raise UserError(
            f"train.shard=full needs equally many micro-batches in every process, and"
            f" {effective_batch} images in micro-batches of {micro_batch} on {ranks} processes are"
            f" not; choose a larger --micro-batch, or an effective batch that {ranks} divides"
        )
