"""A run's state: what a checkpoint holds, and how a trainer takes it up again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from dino_x.distributed import sharding
from dino_x.errors import UserError
from dino_x.model.backbone import save_vit
from dino_x.model.pretrained import prepared_with
from dino_x.runs import checkpoint
from dino_x.runs.folder import lines
from dino_x.training.recovery import Recovery
from dino_x.training.step.exact_step import Centers
from dino_x.training.step.gram import GramTeacher
from dino_x.training.step.queue import Queues

if TYPE_CHECKING:
    from dino_x.training.trainer import Trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    """What a run goes on from; tensors are those in use, not copies.

    Of networks in parts, whole tensors, in the first process alone; all take part.
    """
    state: dict[str, Any] = {
        "student": trainer.student.state_dict(),
        "teacher": trainer.teacher.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "centers": {"dino": trainer.centers.dino_K, "ibot": trainer.centers.ibot_K},
        "queues": {"dino": trainer.queues.dino_QD, "ibot": trainer.queues.ibot_QD},
        "images_hash": trainer.images_hash,
        "recovery": trainer.recovery.state(),
    }
    if trainer.gram is not None:
        state["gram"] = trainer.gram.backbone.state_dict()
        state["gram_refreshes"] = trainer.gram.refreshes
    if trainer.distilled is not None:
        state["distilled"] = trainer.distilled
    return sharding.gathered(state, trainer.ranks)


def write_state(trainer: Trainer, step: int, state: dict[str, Any]) -> None:
    """A checkpoint, and the teacher's backbone as transformers saves it.

    May run in a thread while the trainer goes on: of it only what never changes is used.

    Raises: OSError, SafetensorError if it cannot be written.
    """
    options, backbone = trainer.options, trainer.teacher.backbone
    checkpoint.save(
        trainer.run.checkpoints, step, state, options.checkpoint.keep, state["recovery"]["back_to"]
    )
    prefix = "backbone.vit."
    teacher = {
        name.removeprefix(prefix): value
        for name, value in state["teacher"].items()
        if name.startswith(prefix)
    }
    save_vit(
        teacher,
        backbone,
        trainer.run.model,
        options.views.global_size,
        trainer.cutter.mean,
        trainer.cutter.std,
        prepared_with(options.data.slices, options.windows),
    )


def take_up(
    trainer: Trainer, say: Callable[[str], None] = lambda line: None, up_to: int | None = None
) -> None:
    """Take up the newest checkpoint of the run that is whole, if there is one.

    Args:
        trainer: of the same run, or of a start of it in another process.
        say: told of damaged ones.
        up_to: do not look at those of later steps.

    Raises: UserError if the images are not those it was trained on, or the model is another.
    """
    run, device = trainer.run, trainer.cutter.device
    # Not to the card, which may have no room for a second state.
    state = checkpoint.load_newest(run.checkpoints, torch.device("cpu"), say, up_to)
    if state is None:
        if trainer.ranks.rank == 0:
            run.truncate_metrics(0)
        return
    if state["images_hash"] != trainer.images_hash:
        raise UserError(
            f"the images are not those {run.path} was trained on (files were added,"
            " removed or changed in size); put them back, or start a new run"
        )
    if state.get("distilled") != trainer.distilled:
        raise UserError(
            f"teacher.model '{trainer.options.teacher.model}' is not the model that"
            f" {run.path} was distilled from; put it back, or start a new run"
        )
    for name, network in (("student", trainer.student), ("teacher", trainer.teacher)):
        sharding.check_fits(f"the checkpoint of {run.path}", network, state[name])
    sharding.load_network(trainer.student, state["student"])
    sharding.load_network(trainer.teacher, state["teacher"])
    sharding.load_optimizer(trainer.optimizer, state["optimizer"])
    heads = ("dino", "ibot")
    trainer.centers = Centers(*(state["centers"][head].to(device) for head in heads))
    queues = (state["queues"][head].to(device) for head in heads)
    trainer.queues = Queues(trainer.options.loss.queue, *queues)
    trainer.gram = _gram_teacher(trainer, state)
    trainer.recovery = Recovery(**state.get("recovery", {"back_to": state["step"]}))
    trainer.done = state["step"]
    if trainer.ranks.rank == 0:
        run.truncate_metrics(trainer.done)
    trainer.health.resume(lines(run.metrics, trainer.done), lines(run.health, trainer.done))


def _gram_teacher(trainer: Trainer, state: dict[str, Any]) -> GramTeacher | None:
    """The Gram teacher of a checkpoint."""
    if "gram" not in state:
        return None
    refreshes = state["gram_refreshes"]
    if trainer.gram is None or refreshes:  # then it was the EMA teacher once
        gram = GramTeacher.copy_of(trainer.teacher.backbone, refreshes)
    else:
        gram = trainer.gram
    sharding.load_network(gram.backbone, state["gram"])
    return gram
