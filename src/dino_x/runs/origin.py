"""Where a run's weights come from, all the way back: what their licence depends on.

Kept in RUN/origin.json, newest first. Names only: no path of anyone's machine.
"""

from pathlib import Path
from typing import Any

from dino_x.config.model_sizes import is_size
from dino_x.errors import UserError
from dino_x.files import read_json, write_json
from dino_x.model.backbone import Backbone
from dino_x.model.weights import is_file_of_weights
from dino_x.runs.folder import RunFolder


def origin_of(name: str, backbone: Backbone) -> list[dict[str, Any]]:
    """The chain of models that one started from; empty for new weights."""
    if is_size(name) or backbone.accounting is None:
        return []
    kind = kind_of(name)
    accounting = backbone.accounting
    link = {
        "kind": kind,
        "name": name if kind == "hub" else Path(name).resolve().name,
        "architecture": backbone.vit.config.model_type,
        "tensors": f"{accounting.loaded} of {accounting.total}",
    }
    earlier = read_origin(RunFolder(Path(name))) if kind == "run" else []
    return [link, *earlier]


def kind_of(name: str) -> str:
    """What the name of a model stands for: run, file, folder or hub."""
    path = Path(name)
    if RunFolder(path).exists:
        return "run"
    if is_file_of_weights(name):
        return "file"
    return "folder" if path.exists() else "hub"


def write_origin(run: RunFolder, name: str, backbone: Backbone) -> None:
    """Keep where a new run's weights come from, if they are not new."""
    chain = origin_of(name, backbone)
    if not chain:
        return
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.origin, chain)
    except OSError as error:
        raise UserError(f"cannot write to {run.path}: {error.strerror}") from error


def read_origin(run: RunFolder) -> list[dict[str, Any]]:
    """The chain of a run; empty if its weights were new.

    Raises: UserError if it cannot be read.
    """
    if not run.origin.is_file():
        return []
    try:
        return list(read_json(run.origin))
    except UserError as error:
        raise UserError(f"{error}, so it is not known where the weights come from") from error
