"""What a resumed run takes from its folder, and what the user may change about it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dino_x.config.presets import check, differing
from dino_x.data.storage.archives import is_remote
from dino_x.errors import UserError
from dino_x.runs import checkpoint
from dino_x.runs.folder import RunFolder
from dino_x.runs.model_folder import kept_options
from dino_x.runs.start import CODE
from dino_x.runs.trained_on import kept_keys

STEPS = "train.steps"
PLACES = ("data.paths", "data.labels", "data.index", "model.name", "teacher.model")


def restore_settings(run: RunFolder) -> bool:
    """Write config.yaml again from the newest checkpoint, where it alone is missing.

    Returns: whether it was.

    Raises: UserError if another process is in the folder, or the file cannot be written.
    """
    if run.exists or not checkpoint.checkpoints(run.checkpoints):
        return False
    run.lock.refuse_if_held()
    try:
        saved = checkpoint.load_newest(run.checkpoints, torch.device("cpu"))
    except UserError:  # all are damaged, or are no checkpoints of ours
        return False
    options = None if saved is None else kept_options(saved)
    if options is None:
        return False
    try:
        run.write_settings(options)
    except OSError as error:
        raise UserError(f"cannot write to {run.path}: {error.strerror}") from error
    return True


def saved_settings(run: RunFolder, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, on which those of its user are put.

    Relative paths that are not here are looked for where the run was started.

    Args:
        run: that is resumed.
        overrides: what the user sets now. The data may lie elsewhere, and the run may be made
            longer: the number of steps may rise.

    Raises: UserError if another setting differs.
    """
    refuse_unnamed_code(run, overrides)
    saved = found_again(run.settings(), run.read_facts().get("started_in"))
    others = dict(overrides)
    if is_longer(saved, overrides):
        del others[STEPS]
    changed = differing(saved, others)
    if changed:
        raise UserError(
            f"{run.path} was trained with other settings: {'; '.join(changed)}; leave them out to"
            " resume, or start a new run in another --out"
        )
    return saved


def refuse_unnamed_code(run: RunFolder, overrides: Mapping[str, Any]) -> None:
    """Refuse to run the code that a run's settings name, unless its user names it, too.

    Raises: UserError with the way on.
    """
    code = run.settings().get(CODE)
    if code is not None and CODE not in overrides:
        raise UserError(
            f"{run.path} was trained with the code {CODE}={code}, and no run says which code is run"
            f" here: give --set {CODE}={code} to resume with it"
        )


def is_longer(saved: Mapping[str, Any], overrides: Mapping[str, Any]) -> bool:
    """Whether the user asks for more steps than the run has."""
    if overrides.get(STEPS) is None:
        return False
    wanted, had = check({STEPS: overrides[STEPS]}).train.steps, saved.get(STEPS)
    return isinstance(had, int) and wanted is not None and wanted > had


def found_again(saved: Mapping[str, Any], started_in: object) -> dict[str, Any]:
    """Settings whose relative paths are found from here, too."""
    if not isinstance(started_in, str):
        return dict(saved)
    found = dict(saved)
    for name in PLACES:
        value = saved.get(name)
        if isinstance(value, list):
            found[name] = [_found(str(path), started_in) for path in value]
        elif isinstance(value, str):
            found[name] = _found(value, started_in)
    return found


def _found(path: str, started_in: str) -> str:
    """The path as it is if it is there, else as seen from where the run was started."""
    if is_remote(path) or Path(path).is_absolute() or Path(path).exists():
        return path
    there = Path(started_in, path)
    return str(there) if there.exists() else path


def check_same_content(run: RunFolder, keys: set[bytes] | None) -> None:
    """Refuse images that hold something else than those the run was trained on.

    Args:
        run: that is resumed.
        keys: of the images now; None if they are not made.

    Raises: UserError.
    """
    before = kept_keys(run)
    if before is None or keys is None or keys == before:
        return
    raise UserError(
        f"{len(keys - before):,} of the files are not those that {run.path} was trained on (they"
        " have the same names and sizes, but hold something else); put them back, or start a new"
        " run"
    )
