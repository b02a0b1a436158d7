"""How many of the tested images a model was trained on: figures on these are too good."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_x.data.image import ImageRef
from dino_x.data.index.content import content_keys
from dino_x.evaluation.contenders import MODEL, START, starting_weights
from dino_x.files import last_part
from dino_x.runs.folder import run_of
from dino_x.runs.trained_on import kept_keys

MOST_STAGES = 16  # a run that began from a run that began from a run ...


def seen_images(
    model: str | Path, against: Sequence[str], tested: Sequence[ImageRef]
) -> dict[str, dict[str, int]]:
    """The number of tested images, or exact copies of them, that each model was trained on.

    Args:
        model: what is evaluated.
        against: the other models.
        tested: the tested images.

    Returns: ``tested`` and ``trained_on`` by name, for each model that is a run which kept the keys
        of its images. What a run began from counts, too.
    """
    names: dict[str, str | Path] = {MODEL: model, **{name: name for name in against}}
    began = starting_weights(model)
    if began is not None:
        names[START] = began
    known = {name: trained_on(of) for name, of in names.items()}
    if all(keys is None for keys in known.values()):
        return {}
    keys_of = content_keys(ref.path for ref in tested)
    found = {}
    for name, keys in known.items():
        if keys is not None:
            count = sum(keys_of.get(ref.path) in keys for ref in tested)
            found[name] = {"tested": len(tested), "trained_on": count}
    return found


def warn_of_unknown(
    seen: dict[str, dict[str, int]], model: str | Path, against: Sequence[str]
) -> list[str]:
    """A sentence where a model that is evaluated keeps no keys of what it was trained on.

    Args:
        seen: see ``seen_images``.
        model: what is evaluated.
        against: the other models.
    """
    unknown = ["the model"] if MODEL not in seen else []
    unknown += [last_part(name) for name in dict.fromkeys(against) if name not in seen]
    if not unknown:
        return []
    names = ", ".join(unknown[:3]) + f" and {len(unknown) - 3} more" * (len(unknown) > 3)
    were, theirs = ("was", "its") if len(unknown) == 1 else ("were", "their")
    return [
        f"which images {names} {were} trained on is not known: if tested ones are among them,"
        f" {theirs} figures are too good"
    ]


def trained_on(model: str | Path) -> set[bytes] | None:
    """The keys of all images that a run and the runs it began from were trained on.

    Returns: None if the model is no run, or kept no keys.
    """
    keys: set[bytes] | None = None
    name: str | Path | None = model
    for _ in range(MOST_STAGES):
        if name is None:
            break
        folder = run_of(name)
        own = kept_keys(folder) if folder.exists else None
        if own is not None:
            keys = (keys or set()) | own
        name = starting_weights(folder.path)
    return keys


def warn_of_seen(seen: dict[str, dict[str, int]], titles: dict[str, str]) -> list[str]:
    """A sentence for each model that was trained on some of the tested images."""
    return [
        f"{titles[name]} was trained on {count['trained_on']:,} of the {count['tested']:,} tested"
        " images, or on exact copies of them: its figures are too good"
        for name, count in seen.items()
        if count["trained_on"]
    ]


def is_marked(result: dict[str, Any], name: str) -> bool:
    """Whether the figures of a name in an evaluation are too good for that reason."""
    return bool(result.get("seen", {}).get(name, {}).get("trained_on"))
