"""RUN/model: the teacher's backbone of the newest checkpoint, and the step that it is of.

A checkpoint and its model are two writes. A full disk or a kill between them leaves a model of an
earlier step, or none. So the model says of which step it is, and each checkpoint holds what it
takes to write its model.
"""

import contextlib
import json
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from dino_x.config.options import Options
from dino_x.config.presets import check, dotted
from dino_x.data.image import Reading
from dino_x.errors import UserError
from dino_x.files import parse_json, read_text
from dino_x.losses.checks import NotFiniteError
from dino_x.model.backbone import Backbone, save_vit
from dino_x.model.pretrained import (
    PREPARATION,
    first_line,
    prepared_with,
    quiet_transformers,
)
from dino_x.runs import checkpoint
from dino_x.runs.folder import RunFolder

STEP = "dino_x_step"
MADE_OF = "made_of"  # the entry of a checkpoint
PREFIX = "backbone.vit."


def made_of(
    options: Options,
    backbone: Backbone,
    mean: list[float],
    std: list[float],
    *,
    plain: bool,
    grey: bool,
) -> str:
    """What a checkpoint holds beside its tensors, so that a run can be made again from it alone.

    Args:
        options: of the run, resolved.
        backbone: of the teacher.
        mean: of each channel of images in [0, 1].
        std: of each channel.
        plain: whether a processor of transformers prepares such images rightly.
        grey: whether the images were taken for grey, see ``model.pretrained.Preparation``.

    Returns: a JSON object as text.
    """
    return json.dumps(
        {
            "options": options.model_dump(mode="json"),
            "vit": backbone.vit.config.to_dict(),
            "mean": list(mean),
            "std": list(std),
            "plain": plain,
            "grey": grey,
        }
    )


def kept_options(state: dict[str, Any]) -> Options | None:
    """The options of the run that a checkpoint is of; None in those of older versions."""
    if MADE_OF not in state:
        return None
    return check(dotted(parse_json(state[MADE_OF])["options"]))


def write_model(run: RunFolder, state: dict[str, Any]) -> None:
    """Write the model of a checkpoint into RUN/model.

    Args:
        run: whose model it is.
        state: of a checkpoint; whole tensors.

    Raises: OSError, SafetensorError if it cannot be written.
    """
    made, options = parse_json(state[MADE_OF]), kept_options(state)
    assert options is not None
    grey = made.get("grey", False)  # older checkpoints do not say it
    save_vit(
        vit_weights(state["teacher"]),
        empty_network(made["vit"]),
        run.model,
        options.views.global_size,
        made["mean"],
        made["std"],
        prepared_with(
            options.data.slices,
            options.windows,
            made["plain"],
            grey,
            Reading.of(options.data),
        )
        | {STEP: state["step"]},
    )


def vit_weights(network: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the ViT among those of a student or a teacher."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in network.items()
        if name.startswith(PREFIX)
    }


def empty_network(config: dict[str, Any]) -> PreTrainedModel:
    """A network of a transformers configuration, with weights that mean nothing yet."""
    kind = dict(config)
    with quiet_transformers():
        return AutoModel.from_config(AutoConfig.for_model(kind.pop("model_type"), **kind))


def model_step(run: RunFolder) -> int | None:
    """The step that RUN/model is of; None if there is no model, or it does not say."""
    try:
        stated = parse_json(read_text(run.model / PREPARATION))
    except (OSError, ValueError):
        return None
    step = stated.get(STEP) if isinstance(stated, dict) else None
    return step if type(step) is int and (run.model / "config.json").is_file() else None


def newest_step(run: RunFolder) -> int | None:
    """The step of the newest checkpoint; None if there is none."""
    steps = checkpoint.steps_of(run.checkpoints)
    return steps[-1] if steps else None


def is_behind(run: RunFolder) -> bool:
    """Whether the newest checkpoint is of a later step than the model, or there is no model."""
    newest, written = newest_step(run), model_step(run)
    if newest is None:
        return False
    if written is None:  # an older run's model does not say
        return not (run.model / "config.json").is_file()
    return written < newest


def bring_up(run: RunFolder) -> None:
    """Write the model of the newest checkpoint, if RUN/model is of an earlier step or is missing.

    Nothing is done while the run is training, which writes its model itself, nor where the newest
    checkpoint is damaged or of a version that did not hold what it takes.

    Raises: UserError if the model cannot be written.
    """
    if not run.exists or not is_behind(run):
        return
    try:
        run.lock.refuse_if_held()
    except UserError:
        return
    newest = newest_step(run)
    assert newest is not None
    state = None
    with contextlib.suppress(Exception):  # torch raises many kinds for a damaged file
        state = checkpoint.load(checkpoint.named(run.checkpoints, newest), torch.device("cpu"))
    if state is None or MADE_OF not in state:
        return
    try:
        write_model(run, state)
    except checkpoint.NOT_WRITTEN as error:
        raise UserError(
            f"{run.model} is not of step {newest}, the newest checkpoint's, and cannot be written"
            f" ({first_line(error)}); make room"
        ) from error


def check_finite(state: dict[str, Any]) -> None:
    """Refuse weights with NaN or infinity, which must never be saved as a result.

    Raises: NotFiniteError, naming one.
    """
    for network in ("student", "teacher"):
        for name, weight in state[network].items():
            if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
                raise NotFiniteError(f"the {network}'s weights have NaN or infinity in {name}")
