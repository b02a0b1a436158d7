"""evaluation.json as lines to show."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dino_x.evaluation.verdict import TITLES as EVALUATION_TITLES

Key = tuple[str, str, str]  # task, setting, metric

MODEL = "model"
TITLES = EVALUATION_TITLES | {MODEL: "this model"}
TASKS = {
    "knn": "Nearest neighbours (kNN)",
    "linear": "Linear probe",
    "few_shot": "Few-shot",
    "segmentation": "Segmentation by a linear probe on patches",
}
SHORT = {
    "knn": "kNN",
    "linear": "linear probe",
    "few_shot": "few-shot",
    "segmentation": "segmentation",
}
SETTINGS = {"knn": "k = {}", "few_shot": "{} patients a class"}
METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "r2": "R2",
    "mae": "mean absolute error",
    "dice": "Dice",
    "iou": "IoU",
}


@dataclass(frozen=True)
class Score:
    """One metric with its 95% interval, if there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def between(self) -> str:
        """``(0.851 to 0.901)``, or nothing."""
        if self.low is None or self.high is None:
            return ""
        return f"({self.low:.3f} to {self.high:.3f})"

    @property
    def text(self) -> str:
        """``0.877 (0.851 to 0.901)``."""
        return f"{self.value:.3f} {self.between}".rstrip()


@dataclass(frozen=True)
class Comparison:
    """All models in one task, setting and metric: what one table shows."""

    task: str
    setting: str
    metric: str
    scores: dict[str, Score]

    @property
    def key(self) -> Key:
        """Task, setting and metric."""
        return self.task, self.setting, self.metric

    @property
    def task_title(self) -> str:
        """The task for people."""
        return TASKS.get(self.task, self.task)

    @property
    def short_title(self) -> str:
        """``kNN, k = 20, balanced accuracy``."""
        task, _, metric = self.title.removeprefix(self.task_title).rpartition(": ")
        return f"{SHORT.get(self.task, self.task)}{task}, {metric}"

    @property
    def title(self) -> str:
        """``Nearest neighbours (kNN), k = 20: balanced accuracy``."""
        setting = SETTINGS.get(self.task, "{}").format(self.setting)
        setting = "" if self.setting == "all" else f", {setting}"
        setting = setting.replace(" 1 patients", " 1 patient")
        return f"{self.task_title}{setting}: {METRICS.get(self.metric, self.metric)}"


def title_of(name: str) -> str:
    """What a row is called; of a folder only its last part, as paths can name people."""
    if name in TITLES:
        return TITLES[name]
    if is_hub_name(name):
        return name
    return name.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]


def is_hub_name(name: str) -> bool:
    """Whether a name can be that of a model on a hub, such as ``facebook/dinov2-small``."""
    if name.startswith(("/", ".", "~")) or "\\" in name:
        return False
    return name.count("/") <= 1


def comparisons(evaluation: dict[str, Any]) -> list[Comparison]:
    """Every task, setting and metric, in the order of the file."""
    results = results_of(evaluation)
    found: dict[Key, dict[str, Score]] = {key: {} for key in results[MODEL]}
    for name, scores in results.items():
        for key in found.keys() & scores.keys():
            found[key][name] = scores[key]
    return [Comparison(*key, scores) for key, scores in found.items()]


def results_of(evaluation: dict[str, Any]) -> dict[str, dict[Key, Score]]:
    """Every score by its model and its (task, setting, metric)."""
    found = {name: dict(scores_in(tasks)) for name, tasks in evaluation["results"].items()}
    return {name: scores for name, scores in found.items() if scores}


def scores_in(tasks: dict[str, Any]) -> Iterator[tuple[Key, Score]]:
    """Each score below ``task: {setting: {metric: {value, low, high}}}``."""
    for task, settings in tasks.items():
        for setting, metrics in settings.items():
            for metric, found in metrics.items():
                score = Score(found["value"], found.get("low"), found.get("high"))
                yield (task, setting, metric), score


def headlines(evaluation: dict[str, Any]) -> list[Comparison]:
    """One comparison a task: the one that the task's verdict is about, else the first."""
    chosen: dict[str, Comparison] = {}
    for comparison in comparisons(evaluation):
        if comparison.task not in chosen or is_of_verdict(evaluation, comparison):
            chosen[comparison.task] = comparison
    return list(chosen.values())


def verdict_on(evaluation: dict[str, Any], task: str) -> dict[str, Any]:
    """The verdict on a task that the file has; empty if there is none."""
    verdict: dict[str, Any] = evaluation.get("verdicts", {}).get(task, {})
    return verdict


def is_of_verdict(evaluation: dict[str, Any], comparison: Comparison) -> bool:
    """Whether the verdict on a task is about this setting and metric."""
    verdict = verdict_on(evaluation, comparison.task)
    about = (verdict.get("setting"), verdict.get("metric"))
    return about == (comparison.setting, comparison.metric)


def sentence(evaluation: dict[str, Any], comparison: Comparison) -> str:
    """What a task says, in words, without a final dot.

    The verdict that came with the metrics if there is one: its differences are paired. Otherwise
    the plain differences, as far as intervals allow.
    """
    verdict = verdict_on(evaluation, comparison.task)
    if is_of_verdict(evaluation, comparison) and verdict.get("sentence"):
        return without_paths(str(verdict["sentence"]), evaluation["results"])
    model = comparison.scores.get(MODEL)
    if model is None or len(comparison.scores) == 1:
        return "there is nothing to compare it with"
    others = [name for name in comparison.scores if name != MODEL]
    parts = [plain_difference(model, name, comparison.scores[name]) for name in others]
    return f"the model {' and '.join(parts)}"


def without_paths(text: str, names: Iterable[str]) -> str:
    """A sentence in which each model has its title instead of its path."""
    for name in sorted(names, key=len, reverse=True):
        if name not in TITLES:
            text = text.replace(name, title_of(name))
    return text


def plain_difference(model: Score, name: str, other: Score) -> str:
    """``is 0.250 above random weights, within the intervals``."""
    gain = round(model.value - other.value, 3)
    direction = "above" if gain > 0 else "below"
    verb = "equals" if gain == 0 else f"is {abs(gain):.3f} {direction}"
    unsure = ", within the intervals" if apart(model, other) is False else ""
    return f"{verb} {title_of(name)}{unsure}"


def apart(one: Score, other: Score) -> bool | None:
    """Whether two intervals have nothing in common; None if one of them is missing."""
    if one.low is None or one.high is None:
        return None
    if other.low is None or other.high is None:
        return None
    return one.low > other.high or other.low > one.high


def better(evaluation: dict[str, Any], comparison: Comparison, baseline: str) -> bool | None:
    """Whether the model is better than a baseline beyond chance; None if nothing tells.

    From the paired difference if the file has it for this metric, else from the two intervals.
    """
    differences = verdict_on(evaluation, comparison.task).get("differences", {})
    if differences.get(baseline) and is_of_verdict(evaluation, comparison):
        return bool(differences[baseline]["low"] > 0)
    model, other = comparison.scores.get(MODEL), comparison.scores.get(baseline)
    if model is None or other is None:
        return None
    distinct = apart(model, other)
    return distinct and model.value > other.value
