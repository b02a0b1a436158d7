"""Where the result of an evaluation goes, and what becomes of the one that was there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino_x.files import parse_json, read_text
from dino_x.model.pretrained import split_name
from dino_x.runs.folder import run_of

# Of the settings of an evaluation, those that make it another one.
SUBJECT = ("labels", "label_column", "masks", "split_by", "tested_split", "features")


def subject(settings: Mapping[str, Any]) -> list[Any]:
    """What an evaluation is of, from its settings; older ones were of the CLS token."""
    stated = {"features": "cls", **settings}
    return [stated.get(name) for name in SUBJECT]


def place_of(model: str | Path) -> Path:
    """The file for the evaluation of a model: in its run; for another model, in this folder.

    A checkpoint of a run, ``RUN@step-400``, has no place in the run, whose page is about its model.
    """
    run = run_of(model)
    in_run = run.exists and split_name(model) is None
    return run.evaluation if in_run else Path("evaluation.json")


def keep_former(path: Path, result: dict[str, Any]) -> Path | None:
    """Give the evaluation that is there another name, if it was of something else.

    Args:
        path: where the new result goes.
        result: the new one.

    Returns: the new name of the former one; None if there is none, or it was the same evaluation,
        which the new one replaces.
    """
    try:
        former = parse_json(read_text(path))["settings"]
        if subject(former) == subject(result["settings"]):
            return None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # damaged, or no evaluation: it is kept as well
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    return kept
