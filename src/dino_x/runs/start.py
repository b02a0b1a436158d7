"""What a run takes from another one: its network, its heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dino_x.config.model_sizes import is_size
from dino_x.config.options import ModelOptions, Options
from dino_x.config.presets import check, dotted
from dino_x.errors import UserError
from dino_x.model.teacher import Network, build_student
from dino_x.runs.checkpoint import checkpoints, load_newest
from dino_x.runs.folder import RunFolder
from dino_x.runs.model_folder import kept_options

CODE = "views.extra"
HANDED_ON = ("views.", "masks.")
# The small crops that a run began with are no other run's, and code of a run is not run unasked.
OF_ITS_OWN = ("views.early_", CODE)


@dataclass(frozen=True)
class RunNetwork:
    """The teacher of a run's newest checkpoint.

    Attributes:
        options: the run's, as they were resolved.
        state: the checkpoint.
        network: backbone and heads, never to be trained.
    """

    options: Options
    state: dict[str, Any]
    network: Network


def has_heads(name: str | Path) -> bool:
    """Whether a model is a RUN with a checkpoint, which holds projection heads."""
    run = RunFolder(Path(name))
    return run.exists and bool(checkpoints(run.checkpoints))


def refuse_unnamed_code(overrides: Mapping[str, Any]) -> None:
    """Refuse to take code that another RUN names, or to leave it out, without a word of the user.

    Args:
        overrides: what the user set, as ``section.key`` values.

    Raises: UserError with both ways on.
    """
    name = str(overrides.get("model.name", ""))
    if not name or is_size(name) or CODE in overrides or overrides.get("teacher.model"):
        return
    run = RunFolder(Path(name))
    code = run.settings().get(CODE) if run.exists else None
    if code is not None:
        raise UserError(
            f"{run.path} was trained with the code {CODE}={code}, and no run says which code is run"
            f" here: give --set {CODE}={code} to use it, or --set {CODE}=null to go without"
        )


def inherited(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What the RUN that a new run starts from hands on: crops, masks, target temperature, heads.

    Heads only with their sizes: not if ``model.heads_from`` is new, nor if it is auto and the user
    asks for heads of other sizes.

    Args:
        overrides: what the user set, as ``section.key`` values.

    Returns: ``section.key`` values; nothing but new heads if the model is no RUN.
    """
    name, wanted = str(overrides.get("model.name", "")), overrides.get("model.heads_from", "auto")
    new_heads = {"model.heads_from": "new"}
    if overrides.get("teacher.model"):
        return new_heads | of_distilled(str(overrides["teacher.model"]))
    run = RunFolder(Path(name))
    if not name or is_size(name) or not run.exists:
        return {} if wanted == "run" else new_heads
    saved = run.settings()
    values = {
        option: value
        for option, value in saved.items()
        if option.startswith(HANDED_ON) and not option.startswith(OF_ITS_OWN)
    }
    heads = sizes_of_heads(saved)
    other_heads = wanted == "auto" and asks_for_others(overrides, heads)
    if wanted == "new" or other_heads or not has_heads(name):
        return values | new_heads
    return values | heads | handed_on_temperature(saved) | {"model.heads_from": "run"}


def sizes_of_heads(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run's projection heads; in older runs both heads are alike."""
    alike = dict.fromkeys(("head.ibot_prototypes", "head.ibot_hidden", "head.ibot_bottleneck"))
    return alike | {option: value for option, value in saved.items() if option.startswith("head.")}


def asks_for_others(overrides: Mapping[str, Any], heads: Mapping[str, Any]) -> bool:
    """Whether the user asks for heads of other sizes than these."""
    checked = dotted(check(overrides).model_dump(mode="json"))
    asked = overrides.keys() & heads.keys()
    return any(checked[option] != heads[option] for option in asked)


def handed_on_temperature(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The target temperature that a run ended with, from the first step on."""
    temperature = saved["teacher.temperature"]
    return {"teacher.temperature": temperature, "teacher.temperature_warmup": 0}


def of_distilled(teacher: str) -> dict[str, Any]:
    """What a RUN that is distilled hands on: the sizes of its heads, its target temperature.

    Raises: UserError for a model without heads, with the way to make some.
    """
    if not has_heads(teacher):
        raise UserError(
            f"teacher.model '{teacher}' is no RUN with a checkpoint, so it has no heads to make"
            f" targets with; train some on it first: dino-x pretrain --model {teacher} --steps N"
            " --set optim.freeze_backbone=N"
        )
    saved = RunFolder(Path(teacher)).settings()
    return sizes_of_heads(saved) | handed_on_temperature(saved)


def load_run(name: str | Path, device: torch.device) -> RunNetwork:
    """The teacher of a RUN, backbone and heads.

    Raises: UserError for a run without a checkpoint.
    """
    run = RunFolder(Path(name))
    state = load_newest(run.checkpoints, device) if run.exists else None
    if state is None:
        raise UserError(f"{run.path} has no checkpoint, and so no heads; let the run make one")
    options = kept_options(state) or check(run.settings())
    if not is_size(options.model.name):  # where the run began may be gone; its own model is here
        own = ModelOptions(name=str(run.model), drop_path=options.model.drop_path)
        options = options.model_copy(update={"model": own})
    network = build_student(options).to(device)
    try:
        network.load_state_dict(state["teacher"])
    except RuntimeError as error:
        raise UserError(
            f"{run.settings_file} does not describe the networks of its checkpoints; put back the"
            " one that belongs to them"
        ) from error
    return RunNetwork(options, state, network.requires_grad_(False).eval())


def take_heads(student: Network, name: str | Path) -> None:
    """Give a student the heads of a RUN's teacher.

    Raises: UserError if they are of another shape, naming the options that have to be as there.
    """
    run = RunFolder(Path(name))
    state = load_newest(run.checkpoints, torch.device("cpu")) if run.exists else None
    if state is None:
        raise UserError(
            f"model.heads_from is 'run', but {run.path} is no RUN with a checkpoint;"
            " choose --set model.heads_from=new"
        )
    own = student.state_dict()
    heads = {n: v for n, v in state["teacher"].items() if not n.startswith("backbone.")}
    wrong = [n for n in own if not n.startswith("backbone.") and n not in heads]
    wrong += [n for n, v in heads.items() if n not in own or own[n].shape != v.shape]
    if wrong:
        raise UserError(
            f"the heads of {run.path} have other shapes ({wrong[0]}): leave the head.* options"
            " out, or choose --set model.heads_from=new"
        )
    student.load_state_dict(heads, strict=False)
