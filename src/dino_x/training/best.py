"""The evaluation while training: the best checkpoint of a run, and whether it still rises."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino_x.config.options import Options
from dino_x.runs import checkpoint
from dino_x.runs.folder import RunFolder, lines

FIGURES = ("online/knn_balanced_accuracy", "online/retrieval_top1")  # a run has one of them


def figure_of(metrics: dict[str, float]) -> float | None:
    """The figure of the evaluation of a step; None if it was not evaluated."""
    return next((metrics[name] for name in FIGURES if name in metrics), None)


def figures(metrics: Path, steps: int) -> list[tuple[int, float]]:
    """The (step, figure) of every evaluation of the first ``steps`` steps, in order."""
    found = ((int(line["step"]), figure_of(line)) for line in lines(metrics, steps))
    return [(step, figure) for step, figure in found if figure is not None]


def best_checkpoint(run: RunFolder, step: int) -> tuple[int, float] | None:
    """The checkpoint whose figure is best, the earliest of several, and the figure.

    The figure of a checkpoint is that of the last evaluation up to its step.

    Args:
        run: with its checkpoints.
        step: the step of the newest checkpoint, which may not be written yet.

    Returns: its step and figure; None if nothing was evaluated.
    """
    known = figures(run.metrics, step)
    best: tuple[int, float] | None = None
    for saved in sorted({*checkpoint.steps_of(run.checkpoints), step}):
        before = [figure for evaluated, figure in known if evaluated <= saved]
        if before and (best is None or before[-1] > best[1]):
            best = saved, before[-1]
    return best


class Patience:
    """Waits for a figure to rise.

    Args:
        limit: evaluations in a row without a new best one, after which it has waited long enough;
            None waits for ever.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.best: float | None = None
        self.waited = 0

    def take(self, figure: float) -> None:
        """Take up the figure of an evaluation."""
        if self.best is None or figure > self.best:
            self.best, self.waited = figure, 0
        else:
            self.waited += 1

    @property
    def over(self) -> bool:
        """Whether it has waited long enough."""
        return self.limit is not None and self.waited >= self.limit


def patience_of(run: RunFolder, options: Options, done: int) -> Patience:
    """How long a run that is resumed has waited for its evaluation to rise.

    A run that is trained for longer waits anew from the step where it was lengthened.

    Args:
        run: with its metrics.
        options: of the run now; with other steps than it had, it is lengthened now.
        done: the steps that are done.
    """
    patience = Patience(options.online.patience)
    anew = max([0, *lengthened_after(run.read_facts())])
    if run.settings().get("train.steps") != options.train.steps:
        anew = done
    for step, figure in figures(run.metrics, done):
        patience.take(figure)
        if step <= anew:
            patience.waited = 0
    return patience


def lengthened_after(facts: Mapping[str, Any]) -> list[int]:
    """The steps after which a run was given more, as its facts say."""
    entries = facts.get("lengthened")
    found = [entry.get("after") for entry in entries or [] if isinstance(entry, dict)]
    return [step for step in found if isinstance(step, int)]
