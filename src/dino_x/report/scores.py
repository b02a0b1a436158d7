"""evaluation.json as lines to show, whichever version wrote it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dino_x.evaluation.verdict import TITLES as EVALUATION_TITLES

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
    "dice": "Dice",
    "iou": "IoU",
}


@dataclass(frozen=True)
class Score:
    """One figure with its 95% interval, if there is one."""

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
    is_hub_name = name.count("/") <= 1 and not name.startswith(("/", ".", "~")) and "\\" not in name
    return name if is_hub_name else name.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]


def comparisons(evaluation: dict[str, Any]) -> list[Comparison]:
    """Every task, setting and metric, in the order of the file."""
    results = modern(evaluation)
    found = []
    for task, settings in results[MODEL].items():
        for setting, metrics in settings.items():
            for metric in metrics:
                scores = {
                    name: score
                    for name, tasks in results.items()
                    if (score := tasks.get(task, {}).get(setting, {}).get(metric)) is not None
                }
                found.append(Comparison(task, setting, metric, scores))
    return found


def modern(evaluation: dict[str, Any]) -> dict[str, dict[str, dict[str, dict[str, Score]]]]:
    """``results[name][task][setting][metric]``; older files hold one kNN without intervals."""
    found: dict[str, dict[str, dict[str, dict[str, Score]]]] = {}
    for name, tasks in evaluation["results"].items():
        if not isinstance(tasks, dict):
            continue
        if "balanced_accuracy" in tasks:
            old = {m: Score(tasks[m]) for m in ("balanced_accuracy", "auroc") if m in tasks}
            asked = evaluation.get("settings", {}).get("k", tasks.get("k", ""))
            found[name] = {"knn": {str(asked): old}}
        else:
            for task, setting, metric, figure in leaves(tasks):
                inner = found.setdefault(name, {}).setdefault(task, {}).setdefault(setting, {})
                inner[metric] = Score(figure["value"], figure.get("low"), figure.get("high"))
    return found


def leaves(tasks: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Each (task, setting, metric, figure)."""
    for task, settings in tasks.items():
        for setting, metrics in settings.items():
            for metric, figure in metrics.items():
                if isinstance(figure, dict) and "value" in figure:
                    yield task, setting, metric, figure


def headlines(evaluation: dict[str, Any]) -> list[Comparison]:
    """One comparison a task: the one its verdict is about, else the first."""
    chosen: dict[str, Comparison] = {}
    for comparison in comparisons(evaluation):
        verdict = evaluation.get("verdicts", {}).get(comparison.task, {})
        is_it = (comparison.setting, comparison.metric) == (
            verdict.get("setting"), verdict.get("metric"),
        )  # fmt: skip
        if is_it or comparison.task not in chosen:
            chosen[comparison.task] = comparison
    return list(chosen.values())


def sentence(evaluation: dict[str, Any], comparison: Comparison) -> str:
    """What a task says, in words, without a final dot.

    The verdict that came with the figures if there is one: its differences are paired. Otherwise
    the plain differences, as far as intervals allow.
    """
    verdict = evaluation.get("verdicts", {}).get(comparison.task, {})
    about = (verdict.get("setting"), verdict.get("metric"))
    if about == (comparison.setting, comparison.metric) and verdict.get("sentence"):
        text = str(verdict["sentence"])
        for name in sorted(evaluation["results"], key=len, reverse=True):
            text = text if name in TITLES else text.replace(name, title_of(name))
        return text
    model = comparison.scores.get(MODEL)
    parts = []
    for name, score in comparison.scores.items():
        if name == MODEL or model is None:
            continue
        gain = round(model.value - score.value, 3)
        verb = "equals" if gain == 0 else f"is {abs(gain):.3f} {'above' if gain > 0 else 'below'}"
        unsure = "" if apart(model, score) is not False else ", within the intervals"
        parts.append(f"{verb} {title_of(name)}{unsure}")
    return f"the model {' and '.join(parts)}" if parts else "there is nothing to compare it with"


def apart(one: Score, other: Score) -> bool | None:
    """Whether two intervals have nothing in common; None if there are none."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return None
    return one.low > other.high or other.low > one.high


def better(evaluation: dict[str, Any], comparison: Comparison, baseline: str) -> bool | None:
    """Whether the model is better than a baseline beyond chance; None if nothing tells.

    From the paired difference if the file has it for this figure, else from the two intervals.
    """
    verdict = evaluation.get("verdicts", {}).get(comparison.task, {})
    difference = verdict.get("differences", {}).get(baseline)
    about = (verdict.get("setting"), verdict.get("metric"))
    if difference and about == (comparison.setting, comparison.metric):
        return difference["low"] > 0
    model, other = comparison.scores.get(MODEL), comparison.scores.get(baseline)
    if model is None or other is None or apart(model, other) is None:
        return None
    return bool(apart(model, other)) and model.value > other.value
