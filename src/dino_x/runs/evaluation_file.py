"""evaluation.json: what it holds, and reading it from a file that anybody may have written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dino_x.errors import UserError
from dino_x.files import read_json

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A part of the file; it may hold more than is named. Texts are not taken for numbers."""

    model_config = ConfigDict(strict=True)


class Figure(Part):
    """A value and its interval; None where it is not known, as with one patient."""

    value: Finite
    low: Finite | None = None
    high: Finite | None = None


class Difference(Part):
    """A paired difference and its interval."""

    value: Finite
    low: Finite
    high: Finite


class FirstFigures(Part):
    """The scores of a model in files of the first version: one kNN, without intervals."""

    balanced_accuracy: Finite
    auroc: Finite = 0.0
    k: int = 0


Tasks = dict[str, dict[str, dict[str, Figure]]]  # by task, setting and metric


class Verdict(Part):
    """What a task says: of which setting and metric, and the paired differences."""

    setting: str = ""
    metric: str = ""
    differences: dict[str, Difference | None] = {}
    sentence: str = ""


class Curve(Part):
    """A ROC curve: as many false as true positive rates."""

    false_positive_rate: Annotated[list[Finite], Field(min_length=1)]
    true_positive_rate: list[Finite]

    @model_validator(mode="after")
    def of_one_length(self) -> Self:
        """Refuse rates that do not belong together."""
        if len(self.false_positive_rate) != len(self.true_positive_rate):
            raise ValueError("as many false as true positive rates")
        return self


class ClassFigures(Part):
    """The number of images of a class, and its figures; None if it is never answered."""

    images: Count
    auroc: Figure
    recall: Figure | None = None
    precision: Figure | None = None
    specificity: Figure | None = None
    average_precision: Figure | None = None


class Details(Part):
    """Each class of a task by itself."""

    classes: Annotated[dict[str, ClassFigures], Field(min_length=1)]
    confusion: list[list[Count]] | None
    roc: dict[str, Curve]


class Unit(Part):
    """Scores of whole volumes, slides or patients."""

    count: Count
    mixed: Count
    results: dict[str, Tasks]
    verdicts: dict[str, Any]


class Settings(Part):
    """How it was evaluated, as far as a page needs it."""

    k: int = 0
    labels: str | None = None
    split_by: str | None = None
    tested_split: str = "test"


class Evaluation(Part):
    """What pages and cards read of the file."""

    settings: Settings = Settings()
    counts: dict[str, dict[str, Count]] | None = None
    patients: dict[str, Count] | None = None
    results: dict[str, Tasks | FirstFigures]
    details: dict[str, Details | None] = {}
    units: dict[str, Unit] = {}
    verdicts: dict[str, Verdict] = {}
    worth: dict[str, Any] | None = None
    warnings: list[str] = []


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """What an evaluation.json holds, or None if there is no whole file with results of a model.

    Files of the first version get the form of today.

    Raises: UserError for a file with other values than an evaluation has.
    """
    try:
        found = read_json(path)
    except UserError:
        return None
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, dict) or "model" not in results:
        return None
    try:
        check_references(Evaluation.model_validate(found))
    except ValidationError as error:
        raise _other(path, ".".join(map(str, error.errors()[0]["loc"]))) from None
    except KeyError as error:
        raise _other(path, f"{error.args[0]}, which is missing") from None
    settings = found.get("settings", {})
    return {**found, "results": {name: _tasks(of, settings) for name, of in results.items()}}


def _tasks(found: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of a model by task, setting and metric, also from a file of the first version."""
    if not isinstance(found.get("balanced_accuracy"), int | float):
        return found
    k = str(settings.get("k", found.get("k", "")))
    metrics = [metric for metric in ("balanced_accuracy", "auroc") if metric in found]
    return {"knn": {k: {metric: {"value": found[metric]} for metric in metrics}}}


def check_references(evaluation: Evaluation) -> None:
    """Whether what one part of the file names is in the others.

    Raises: KeyError with the name that is missing.
    """
    for detail in evaluation.details.values():
        if detail is not None:
            _ = [detail.roc[name] for name in detail.classes]
    for unit in evaluation.units.values():
        model: Any = evaluation.results["model"]
        _ = (evaluation.counts or {})[evaluation.settings.tested_split]
        for task in unit.verdicts:
            about = evaluation.verdicts[task]
            _ = unit.results["model"][task][about.setting][about.metric]
            _ = model[task][about.setting][about.metric]


def _other(path: Path, place: str) -> UserError:
    return UserError(
        f"{path} holds something else than an evaluation, at {place}: make it again with"
        " dino-x evaluate, or remove it"
    )
