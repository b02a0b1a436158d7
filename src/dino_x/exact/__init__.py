"""The exact step as a tool: the gradient of a whole effective batch, micro-batch by micro-batch.

It is for a training loop of your own, with any student and teacher that return CLS and patch
tokens. Sinkhorn-Knopp or softmax centering and KoLeo look at the whole effective batch, whatever
the micro-batch is and however many processes share the batch. Loss and gradient are those of all
images at once, to rounding. For contrastive losses GradCache (Gao et al. 2021) does the same.

    step = ExactStep(Networks(student, teacher))
    state = step.first_state()
    for batch in loader:                                    # an iterable of MicroBatch
        result = step.gradient(batch, state, temperature=0.07)
        optimizer.step()
        optimizer.zero_grad()
        update_teacher(teacher, student, momentum=0.996)
        state = result.next_state

Torch is all that this package imports. See ``docs/losses.md`` for whole loops.
"""

from dino_x.exact.batch import Batch, MicroBatch
from dino_x.exact.centering import CenteringState, HeadState, Sinkhorn, Softmax
from dino_x.exact.head import Head
from dino_x.exact.networks import DinoNetwork, Networks, update_teacher
from dino_x.exact.processes import Processes
from dino_x.exact.results import StepResult
from dino_x.exact.statistics import BatchStatistic, KoLeo, SIGReg
from dino_x.exact.step import ExactStep

__all__ = [
    "Batch",
    "BatchStatistic",
    "CenteringState",
    "DinoNetwork",
    "ExactStep",
    "Head",
    "HeadState",
    "KoLeo",
    "MicroBatch",
    "Networks",
    "Processes",
    "SIGReg",
    "Sinkhorn",
    "Softmax",
    "StepResult",
    "update_teacher",
]
