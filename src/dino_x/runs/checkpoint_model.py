"""The model of one checkpoint of a run: ``RUN@step-400``, or ``RUN@step-400-student``.

It is written once, into ``RUN/models``, as transformers saves models, and is then a model like any
other.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from dino_x.errors import UserError
from dino_x.files import open_to_group
from dino_x.model.pretrained import PREPARATION, first_line, quiet_transformers, split_name
from dino_x.runs import checkpoint
from dino_x.runs.folder import RunFolder, run_of
from dino_x.runs.model_folder import bring_up, vit_weights

TEACHER, STUDENT = "teacher", "student"


def make_model_at(name: str | Path) -> None:
    """Write the model that a name such as ``RUN@step-400`` is of, if it is not there yet.

    Args:
        name: of any model. That of a run is brought up to its newest checkpoint, if it is behind.

    Raises: UserError if the run has no checkpoint of that step, or it is damaged, or the model
        cannot be written.
    """
    parts = split_name(name)
    if parts is None:
        bring_up(run_of(name))
        return
    run = RunFolder(parts.run)
    if not run.exists:
        raise UserError(f"{parts.run} is no run, so there is no step of it to take: '{name}'")
    if (parts.folder / "config.json").is_file():
        return
    state = _state(run, parts.step)
    which = STUDENT if parts.student else TEACHER
    try:
        _write(run, vit_weights(state[which]), parts.folder)
    except OSError as error:
        raise UserError(f"cannot write {parts.folder}: {error.strerror or error}") from error


def name_at(model: str | Path, step: int | None, which: str) -> str:
    """The name of a run's model at a step; the newest checkpoint's where no step is given.

    Raises: UserError for a model that is no run, or a run without checkpoints.
    """
    if step is None and which == TEACHER:
        return str(model)
    run = RunFolder(Path(model))
    if not run.exists:
        raise UserError(f"{model} is no run: --step and --which are about the checkpoints of one")
    if step is None:
        found = checkpoint.steps_of(run.checkpoints)
        if not found:
            raise UserError(f"{run.path} has no checkpoint, and so no student")
        step = found[-1]
    return f"{run.path}@step-{step}" + ("-student" if which == STUDENT else "")


def _state(run: RunFolder, step: int) -> dict[str, Any]:
    """The checkpoint of a step. Raises UserError."""
    path = checkpoint.named(run.checkpoints, step)
    if not path.is_file():
        there = ", ".join(map(str, checkpoint.steps_of(run.checkpoints))) or "none"
        raise UserError(f"{run.path} has no checkpoint of step {step}; there are: {there}")
    try:
        return checkpoint.load(path, torch.device("cpu"))
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"checkpoint {path} is damaged ({first_line(error)})") from error


def _write(run: RunFolder, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """A copy of RUN/model with other weights, whole or not there at all."""
    if not (run.model / "config.json").is_file():
        raise UserError(f"{run.path} has no folder 'model' yet, which says how its network is made")
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    with quiet_transformers():
        network = AutoModel.from_pretrained(
            run.model, use_safetensors=True, trust_remote_code=False
        )
        network.load_state_dict({key: value.float() for key, value in weights.items()})
        network.save_pretrained(staging)
    open_to_group(staging)
    if (run.model / PREPARATION).is_file():
        shutil.copy(run.model / PREPARATION, staging / PREPARATION)
    staging.rename(folder)
