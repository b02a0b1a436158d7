"""The checkpoints of a run: what is written of its state, and what it continues from."""

from collections.abc import Callable
from functools import partial

import torch

from dino_x.distributed import sharding
from dino_x.distributed.world import broadcast_from_rank0, check_alike
from dino_x.errors import UserError
from dino_x.runs import checkpoint
from dino_x.runs.folder import RunFolder
from dino_x.runs.model_folder import MADE_OF, made_of, model_step, write_model
from dino_x.runs.saving import Saver
from dino_x.training.report import NoReport, TrainingReport
from dino_x.training.steps import Steps
from dino_x.training.train_state import write_checkpoint

Report = TrainingReport | NoReport


class Keeper:
    """Writes and reads the checkpoints of one run; rank 0 writes.

    Args:
        steps: whose state is kept.
        run: where checkpoints and the model go.
        images_hash: tells whether the images are those that the run was trained on.
        plain: whether they are 8-bit pictures, which a processor of transformers prepares rightly.
        grey: whether a model of three channels saw them as grey.
    """

    def __init__(
        self,
        steps: Steps,
        run: RunFolder,
        images_hash: str,
        plain: bool = True,
        grey: bool = False,
    ) -> None:
        self.options, self.state = steps.options, steps.state
        self.run, self.images_hash = run, images_hash
        self.agreement, self.ranks = steps.agreement, steps.ranks
        self.sharded = steps.sharded
        cutter = steps.cutter
        self.made_of = made_of(
            steps.options, steps.teacher.backbone, cutter.mean, cutter.std, plain=plain, grey=grey
        )
        write = partial(write_checkpoint, run, steps.options.checkpoint)
        self.saver = Saver(run.checkpoints, write, steps.options.checkpoint)

    def save(self, report: Report, last: bool = False) -> None:
        """A checkpoint, and the teacher's backbone as transformers saves it.

        Args:
            report: told what could not be saved.
            last: wait for it to be written.

        Raises: UserError if the last one cannot be written; of others there is a next one.
        """
        if not self.sharded:
            check_alike(self.state.student, self.ranks)
        content = self.state.state_dict()
        content |= {"images_hash": self.images_hash, MADE_OF: self.made_of}
        whole = sharding.gathered(content, self.ranks)
        if self.ranks.rank > 0:
            return
        self.saver.saved(report)
        self.saver.begin(self.state.done, whole)
        if last:
            with self.agreement.this_rank_only():
                self.saver.saved(report, last)

    def can_go_back(self, report: Report) -> bool:
        """Whether there is a checkpoint to go back to; the one on its way is waited for."""
        self.saver.saved(report)
        folder, up_to = self.run.checkpoints, self.state.recovery.back_to or 0
        return broadcast_from_rank0(self.ranks, lambda: bool(checkpoint.checkpoints(folder, up_to)))

    def resume(
        self, say: Callable[[str], None] = lambda line: None, up_to: int | None = None
    ) -> bool:
        """Take up the newest checkpoint of the run that is whole, if there is one.

        Args:
            say: told of damaged checkpoints.
            up_to: do not look at checkpoints of later steps.

        Returns: whether there was one.

        Raises: UserError if the images are not those it was trained on, or the model is another.
        """
        # Not to the GPU, which may have no room for a second state.
        cpu = torch.device("cpu")
        saved = checkpoint.load_newest(self.run.checkpoints, cpu, say, up_to)
        if saved is not None:
            self.check_same_run(saved)
            self.state.load_state_dict(saved)
        if self.ranks.rank == 0:
            self.run.truncate_metrics(0 if saved is None else self.state.done)
            if saved is not None:
                self.same_model({MADE_OF: self.made_of, **saved}, say)
        return saved is not None

    def same_model(self, saved: dict, say: Callable[[str], None]) -> None:
        """Write the model of the checkpoint that was taken up, if RUN/model is of another step.

        Raises: UserError if it cannot be written and no step is left that would write it again.
        """
        if model_step(self.run) == self.state.done:
            return
        try:
            write_model(self.run, saved)
        except checkpoint.NOT_WRITTEN as error:
            line = f"{self.run.model} cannot be written: {error}"
            if self.state.done == self.options.train.steps:
                raise UserError(f"{line}; make room, and finish with --resume") from error
            say(line)

    def check_same_run(self, saved: dict) -> None:
        """Refuse a checkpoint of other images, another distilled teacher or another network.

        Raises: UserError.
        """
        path, state = self.run.path, self.state
        if saved["images_hash"] != self.images_hash:
            labels, then = self.options.data.labels, self.run.settings().get("data.labels")
            if labels != then:
                raise UserError(
                    f"data.labels is {labels} now and was {then} when {path} began, so that other"
                    " images are held out; leave it out to resume, and name labels with dino-x"
                    " evaluate"
                )
            raise UserError(
                f"the images are not those {path} was trained on (files were added,"
                " removed or changed in size); put them back, or start a new run"
            )
        if saved.get("distilled") != state.distilled:
            raise UserError(
                f"teacher.model '{self.options.teacher.model}' is not the model that"
                f" {path} was distilled from; put it back, or start a new run"
            )
        for name, network in (("student", state.student), ("teacher", state.teacher)):
            sharding.check_fits(f"the checkpoint of {path}", network, saved[name])
