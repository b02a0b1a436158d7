"""Steps whose loss or gradient is no number: skipped, or a reason to go back, once, or to stop.

All processes come here with the same numbers, or because one of them told the others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dino_x.distributed.world import all_or_none, broadcast_from_rank0
from dino_x.errors import SaidElsewhereError, UserError
from dino_x.runs.checkpoint import checkpoints
from dino_x.training.health.health import Health
from dino_x.training.report import NoReport, TrainingReport
from dino_x.training.step.gram import first_gram_teacher

if TYPE_CHECKING:
    from dino_x.training.trainer import Trainer


@dataclass
class Recovery:
    """What a run remembers of them; it is state, and in every checkpoint.

    Attributes:
        in_a_row: steps skipped since the last that counted.
        skipped: in all.
        back_to: step of the last checkpoint that every run of these settings makes, to which it
            would go back: not one made because a run was asked to stop. Else that changed it.
        lr_factor: times which the schedule's learning rate is taken; below 1 once the run has gone
            back to a checkpoint.
    """

    in_a_row: int = 0
    skipped: int = 0
    back_to: int | None = None
    lr_factor: float = 1.0

    @property
    def went_back(self) -> bool:
        """Whether the run has gone back already."""
        return self.lr_factor < 1

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)


def skips(trainer: Trainer, what: str, report: TrainingReport | NoReport) -> bool:
    """Whether a step that came to nothing is skipped; if not, the run has gone back.

    Args:
        trainer: with nothing changed by the step.
        what: is not finite.
        report: told once of skipped steps in a row.

    Raises: UserError if it can do neither.
    """
    limit, recovery = trainer.options.train.skip_not_finite, trainer.recovery
    step = trainer.done + 1
    none_counted = step == trainer.options.train.steps and recovery.skipped == trainer.done
    if recovery.in_a_row + 1 < limit and not none_counted:
        if not recovery.in_a_row:
            report.finding(f"step {step} is skipped: {what}")
        recovery.in_a_row += 1
        recovery.skipped += 1
        return True
    trainer.saver.saved(report)
    folder, up_to = trainer.run.checkpoints, recovery.back_to
    saved = broadcast_from_rank0(trainer.ranks, lambda: bool(checkpoints(folder, up_to or 0)))
    if not limit or recovery.went_back or not saved:
        trainer.health.not_finite(step, what)
        kind = UserError if trainer.ranks.rank == 0 else SaidElsewhereError
        raise kind(
            f"stopped at step {step}: {what}; {trainer.saver.last_good()}; try a lower optim.lr, a"
            " longer optim.warmup or --precision fp32"
        )
    go_back(trainer, what, report)
    return False


def go_back(trainer: Trainer, what: str, report: TrainingReport | NoReport) -> None:
    """To the last checkpoint, and on from there with a lower learning rate.

    The checkpoint is written anew with that rate, so that a resume has it too.
    """
    options, step = trainer.options, trainer.done + 1
    factor = trainer.recovery.lr_factor * options.train.backoff
    trainer.gram = first_gram_teacher(options, trainer.teacher.backbone)
    trainer.health = Health(options, trainer.student.backbone.width, trainer.health.path)
    up_to = trainer.recovery.back_to
    all_or_none(trainer.ranks, lambda: trainer.resume(report.finding, up_to))
    trainer.recovery.lr_factor, trainer.recovery.back_to = factor, trainer.done
    report.went_back(trainer.done)
    trainer.health.not_finite(trainer.done, f"step {step}: {what}")
    report.finding(
        f"step {step}: {what}; going back to the checkpoint after step {trainer.done}, and on from"
        f" there with {factor:g} times the learning rate"
    )
    trainer.save(report)
