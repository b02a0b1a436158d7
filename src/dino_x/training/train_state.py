"""What a run changes, once a step, and what a checkpoint holds of it."""

from dataclasses import dataclass, field
from typing import Any

import torch

from dino_x.config.options import CheckpointOptions
from dino_x.distributed import sharding
from dino_x.exact import CenteringState, HeadState
from dino_x.model.teacher import Network
from dino_x.runs import checkpoint
from dino_x.runs.folder import RunFolder
from dino_x.runs.model_folder import check_finite, write_model
from dino_x.training.best import best_checkpoint
from dino_x.training.recovery import Recovery
from dino_x.training.step.gram import GramTeacher


@dataclass
class TrainState:
    """Networks, optimizer, centering, and how far the run has come.

    Attributes:
        student, teacher: the networks; the teacher is the average of the student.
        optimizer: over the student's weights.
        centering: running centers and queues of both heads.
        gram: the Gram teacher, once there is one.
        distilled: tells the teacher that is distilled from others; None if there is none.
        done: optimizer steps that are done.
        recovery: what the run remembers of steps with NaN or infinity.
    """

    student: Network
    teacher: Network
    optimizer: torch.optim.Optimizer
    centering: CenteringState
    gram: GramTeacher | None = None
    distilled: str | None = None
    done: int = 0
    recovery: Recovery = field(default_factory=Recovery)

    def state_dict(self) -> dict[str, Any]:
        """What a run continues from; tensors are those in use, not copies."""
        state: dict[str, Any] = {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "centers": {
                "dino": self.centering.dino.center_K,
                "ibot": self.centering.ibot.center_K,
            },
            "queues": {
                "dino": self.centering.dino.queue_QD,
                "ibot": self.centering.ibot.queue_QD,
            },
            "recovery": self.recovery.state_dict(),
        }
        if self.gram is not None:
            state["gram"] = self.gram.backbone.state_dict()
            state["gram_refreshes"] = self.gram.refreshes
        if self.distilled is not None:
            state["distilled"] = self.distilled
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint of the same run; whole tensors, of which each process with
        sharded networks takes its part.
        """
        sharding.load_network(self.student, state["student"])
        sharding.load_network(self.teacher, state["teacher"])
        sharding.load_optimizer(self.optimizer, state["optimizer"])
        self.centering = CenteringState(*(self._head(state, head) for head in ("dino", "ibot")))
        self.gram = self._gram_teacher(state)
        self.recovery = Recovery(**state.get("recovery", {"back_to": state["step"]}))
        self.done = state["step"]

    def _head(self, state: dict[str, Any], head: str) -> HeadState:
        before: HeadState = getattr(self.centering, head)
        device = before.center_K.device
        center_K, queue_QD = state["centers"][head], state["queues"][head]
        return HeadState(center_K.to(device), queue_QD.to(device), before.length)

    def _gram_teacher(self, state: dict[str, Any]) -> GramTeacher | None:
        if "gram" not in state:
            return None
        gram, refreshes = self.gram, state["gram_refreshes"]
        if gram is None or refreshes:  # it was the EMA teacher once
            gram = GramTeacher.copy_of(self.teacher.backbone, refreshes)
        sharding.load_network(gram.backbone, state["gram"])
        return gram


def write_checkpoint(
    run: RunFolder, options: CheckpointOptions, step: int, state: dict[str, Any]
) -> None:
    """A checkpoint, and the teacher's backbone as transformers saves it.

    May run in a thread while training continues: it uses its arguments alone.

    Args:
        run: where they go.
        options: which checkpoints stay.
        step: optimizer steps that are done.
        state: whole tensors, and ``runs.model_folder.made_of``.

    Raises: OSError, SafetensorError if it cannot be written; NotFiniteError for weights with NaN.
    """
    check_finite(state)
    also = {state["recovery"]["back_to"]} - {None}
    best = best_checkpoint(run, step) if options.keep_best else None
    if best is not None:
        also.add(best[0])
    checkpoint.save(run.checkpoints, step, state, options.keep, also)
    write_model(run, {**state, "step": step})
