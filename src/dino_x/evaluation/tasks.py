"""Which tasks an evaluation does."""

from collections.abc import Sequence

from dino_x.data.index.labels import Labelled
from dino_x.errors import UserError, nearest
from dino_x.evaluation.other_targets import TASKS as OTHER_TASKS

TASKS = ("knn", "linear", "few-shot", "segmentation")
QUICK = ("knn", "linear")  # at the end of a run


def choose_tasks(wanted: Sequence[str] | None, labels: bool, masks: bool) -> list[str]:
    """The tasks to do, in the order of ``TASKS``.

    Raises:
        UserError: for an unknown one, and for one that labels or masks are missing for.
    """
    if not labels and not masks:
        raise UserError("nothing to evaluate on: give --labels, --masks or both")
    possible = []
    if labels:
        possible += [task for task in TASKS if task != "segmentation"]
    if masks:
        possible.append("segmentation")
    if not wanted:
        return possible
    needed = "--masks, or labels with a column 'mask'" if labels else "--labels"
    for task in wanted:
        if task not in TASKS:
            raise UserError(f"no task '{task}'{nearest(task, TASKS)} (tasks: {', '.join(TASKS)})")
        if task not in possible:
            raise UserError(f"the task {task} needs {needed}")
    return [task for task in possible if task in wanted]


def refuse_tasks(chosen: Sequence[str], wanted: Sequence[str] | None, labelled: Labelled) -> None:
    """Raise UserError if nothing is left to do with several labels an image, or with numbers."""
    if labelled.targets is None or set(chosen) & {*OTHER_TASKS, "segmentation"}:
        return
    raise UserError(
        f"the task {', '.join(wanted or chosen)} needs one class an image; several labels and"
        f" numbers are evaluated by {' and '.join(OTHER_TASKS)}"
    )
