"""Functions for ``views.extra``: one as it should be, and others that a run must refuse."""

import torch

NO_FUNCTION = "a text"


def ripple(crops_NCOO, draws_NU):
    """Stripes of a random direction, width and strength over each crop, in which values move."""
    side = crops_NCOO.shape[-1]
    line = torch.linspace(0, 1, side, dtype=crops_NCOO.dtype, device=crops_NCOO.device)
    angle, cycles, strength, begin = (draws_NU[:, number, None, None] for number in range(4))
    across = torch.cos(6.28 * angle) * line + torch.sin(6.28 * angle) * line[:, None]
    stripes_NOO = torch.sin(6.28 * (begin + 8 * cycles * across))
    return (crops_NCOO + 0.3 * strength[:, None] * stripes_NOO[:, None]).clamp(0, 1)


def no_tensor(crops, draws):
    """Gives nothing back."""


def smaller(crops, draws):
    """Cuts a border off."""
    return crops[..., 1:-1, 1:-1]


def double(crops, draws):
    """Gives another type."""
    return crops.to(torch.float16)


def not_finite(crops, draws):
    """Takes the logarithm of what may be 0."""
    return torch.log(crops - crops)


def own_chance(crops, draws):
    """Draws random numbers of its own."""
    return crops + torch.rand_like(crops)


def looks_around(crops, draws):
    """Takes the mean of all crops from each."""
    return crops - crops.mean()


def raises(crops, draws):
    """Finds a fault."""
    raise LookupError("no such\nstain")


def takes_one(crops):
    """Takes no numbers."""
    return crops
