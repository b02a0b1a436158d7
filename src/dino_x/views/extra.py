"""``views.extra``: a function of the user's own that changes crops before a network sees them.

It is a pure function of crops and of uniform random numbers that were drawn for them, so that the
result of a step does not depend on the micro-batch, the process or a restart. What can be seen of
that from outside is checked once, before a run starts.

N crops, C channels, O side of a crop, U numbers a crop.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dino_x.config.options import Options
from dino_x.errors import UserError
from dino_x.views.sizes import crop_sizes

EXTRA_DRAWS = 16  # uniform numbers that each crop has for the function
CHECKED = 3  # crops it is tried on
NEAR = 1e-4  # what rounding may change, where crops are in [0, 1]

# From crops [N, C, O, O] in [0, 1] and numbers [N, EXTRA_DRAWS] in [0, 1] to crops as they came.
Extra = Callable[[Tensor, Tensor], Tensor]


def draw_extra(rng: np.random.Generator, images: int, views: int) -> np.ndarray:
    """Uniform numbers for all views of the effective batch, [B, V, EXTRA_DRAWS] in [0, 1)."""
    return rng.random((images, views, EXTRA_DRAWS))


def checked_extra(
    options: Options, channels: int, device: torch.device, dtype: torch.dtype
) -> Extra | None:
    """The function that the options name, tried on crops of every size; None if they name none.

    Args:
        options: resolved.
        channels: C of the canvases.
        device: that crops are on.
        dtype: of the crops.

    Raises: UserError, see ``load_extra`` and ``check_extra``.
    """
    if options.views.extra is None:
        return None
    extra = load_extra(options.views.extra)
    sizes = {one.global_size for one in crop_sizes(options)}
    if options.views.local_crops:
        sizes |= {one.local_size for one in crop_sizes(options)}
    for size in sorted(sizes):
        check_extra(extra, channels, size, device, dtype)
    return extra


def load_extra(name: str) -> Extra:
    """The function of a ``module:function``; importing the module runs its code.

    The module is looked for where Python looks, and after that in the current folder.

    Raises: UserError if it is not there, or is no function.
    """
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UserError(
                f"views.extra {name}: there is no module {error.name} in {here}, nor where Python"
                " looks (PYTHONPATH)"
            ) from error
        raise UserError(f"views.extra {name}: {module_name} imports {error.name}, which is not"
                        " there; install it") from error  # fmt: skip
    except Exception as error:  # the code is the user's: anything may come out of it
        raise UserError(
            f"views.extra {name}: importing {module_name} raised {said(error)}"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if function is None:
        raise UserError(
            f"views.extra {name}: {module_name} ({place_of(module)}) has no {function_name}"
        )
    if not callable(function):
        raise UserError(
            f"views.extra {name}: {function_name} is of the type {type(function).__name__}, and no"
            " function of (crops, numbers)"
        )
    return function  # type: ignore[no-any-return]


def place_of(thing: object) -> str:
    """The file that a module or function is of, as far as Python knows."""
    try:
        return str(inspect.getsourcefile(thing) or "built in")  # type: ignore[arg-type]
    except TypeError:
        return "built in"


def said(error: Exception) -> str:
    """An exception of the user's code in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def apply_extra(extra: Extra, crops_NCOO: Tensor, draws_NU: Tensor) -> Tensor:
    """What the function makes of crops. Raises: UserError for another shape or type."""
    shape, dtype, device = crops_NCOO.shape, crops_NCOO.dtype, crops_NCOO.device
    with torch.autocast(device.type, enabled=False):  # as exact as the crops themselves
        made = extra(crops_NCOO, draws_NU)
    if not isinstance(made, Tensor):
        raise UserError(
            f"views.extra gives back a {type(made).__name__} for crops; it must give a tensor"
        )
    if made.shape != shape or made.dtype != dtype or made.device != device:
        raise UserError(
            f"views.extra gives back {in_words(made)} for crops of {list(shape)} {dtype} on"
            f" {device}; shape, type and device must stay as they are"
        )
    return made


def in_words(made: Tensor) -> str:
    """Shape, type and device of a tensor."""
    return f"{list(made.shape)} {made.dtype} on {made.device}"


def check_extra(
    extra: Extra, channels: int, size: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Try the function on noise, and refuse what a run could not rely on.

    Args:
        extra: the function.
        channels: C of the crops.
        size: O of the crops.
        device: that crops are on.
        dtype: of the crops.

    Raises: UserError if it raises, changes shape or type, gives NaN or infinity, gives something
        else for the same crops and numbers, or for a crop when other crops are beside it.
    """
    rng = np.random.default_rng(0)
    crops = torch.from_numpy(rng.random((CHECKED, channels, size, size))).to(device, dtype)
    draws = torch.from_numpy(draw_extra(rng, CHECKED, 1)[:, 0]).to(device, dtype)

    def tried(span: slice) -> Tensor:
        try:
            return apply_extra(extra, crops[span].clone(), draws[span].clone()).clone()
        except UserError:
            raise
        except Exception as error:  # the code is the user's: anything may come out of it
            raise UserError(
                f"views.extra raised {said(error)} for {CHECKED} crops {list(crops.shape)} of noise"
            ) from error

    together = tried(slice(None))
    if not bool(torch.isfinite(together).all()):
        raise UserError("views.extra gives NaN or infinity for crops of noise in [0, 1]")
    if not torch.allclose(tried(slice(None)), together, rtol=0, atol=NEAR):
        raise UserError(
            "views.extra gives two results for the same crops and numbers: what is random in it"
            f" must come from its second argument, [N, {EXTRA_DRAWS}] uniform numbers"
        )
    alone = torch.cat([tried(slice(n, n + 1)) for n in range(CHECKED)])
    if not torch.allclose(alone, together, rtol=0, atol=NEAR):
        raise UserError(
            "views.extra changes a crop according to the other crops beside it, so the result of a"
            " step would depend on the micro-batch; it must treat each crop by itself"
        )
