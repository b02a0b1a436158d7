"""DINO-X: DINOv3-style pretraining on medical images, with an effective batch that is exact.

    import dino_x

    run = dino_x.pretrain("films/", out="runs/a", model="vits16", effective_batch=256)
    features = run.model().embed("films/").cls

``dino_x.exact`` is the exact step for a training loop of your own, ``dino_x.losses`` its losses.
"""

from typing import TYPE_CHECKING, Any

from dino_x.version import __version__

if TYPE_CHECKING:
    from dino_x.api import (
        Embeddings,
        Model,
        Run,
        embed,
        evaluate,
        export,
        index,
        load,
        plan,
        pretrain,
    )
    from dino_x.errors import UserError

__all__ = [
    "Embeddings",
    "Model",
    "Run",
    "UserError",
    "__version__",
    "embed",
    "evaluate",
    "export",
    "index",
    "load",
    "plan",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for: importing the package itself takes no time."""
    if name not in __all__:
        raise AttributeError(f"module 'dino_x' has no attribute '{name}'")
    if name == "UserError":
        from dino_x.errors import UserError

        return UserError
    from dino_x import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
