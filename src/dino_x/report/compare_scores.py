"""Runs side by side: their evaluations, and whether they differ beyond chance."""

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dino_x.report import scores
from dino_x.report.run_data import RunData
from dino_x.report.scores import MODEL, Comparison
from dino_x.report.tables import Table, table_of
from dino_x.runs.evaluations import subject


@dataclass(frozen=True)
class Scored:
    """One task, setting and metric.

    Attributes:
        comparison: the runs and the baselines.
        runs: which of its names are runs.
        against: what the other runs differ from A by, sentences.
        headline: whether the verdict on its task is about it.
    """

    comparison: Comparison
    runs: list[str]
    against: list[str]
    headline: bool

    @property
    def table(self) -> Table:
        """For the page."""
        return table_of(self.comparison, " ".join(self.against), self.runs)


def letters(runs: Sequence[RunData]) -> str:
    """A, B, ... as many as there are runs."""
    return string.ascii_uppercase[: len(runs)]


def lettered(runs: Sequence[RunData]) -> list[tuple[str, RunData]]:
    """Each run with its letter."""
    return list(zip(letters(runs), runs, strict=True))


def same_evaluation(runs: Sequence[RunData]) -> bool | None:
    """Whether all that are evaluated were on the same images and labels; None below 2 of them."""
    found = [run.evaluation for run in runs if run.evaluation]
    if len(found) < 2:
        return None

    def identity(result: dict[str, Any]) -> str:
        asked = subject(result.get("settings", {}))
        return str([asked, result.get("counts"), result.get("patients"), result.get("masks")])

    return len({identity(result) for result in found}) == 1


def scored_of(runs: Sequence[RunData], same_test: bool | None) -> list[Scored]:
    """Each metric that at least one run has, the runs first and then the baselines."""
    evaluated = {f"{a}: {run.name}": run.evaluation for a, run in lettered(runs) if run.evaluation}
    found: dict[scores.Key, dict[str, scores.Score]] = {}
    for name, evaluation in evaluated.items():
        for item in scores.comparisons(evaluation):
            found.setdefault(item.key, {})[name] = item.scores[MODEL]
    if evaluated and same_test is not False:
        for item in scores.comparisons(next(iter(evaluated.values()))):
            found[item.key] |= baselines_of(item, letter=next(iter(evaluated))[0])
    headlines = headlines_of(list(evaluated.values()))
    names = list(evaluated)
    return [
        Scored(
            Comparison(*key, found[key]),
            names,
            against_first(found[key], names, same_test),
            key in headlines,
        )
        for key in by_task(found)
    ]


def baselines_of(item: Comparison, letter: str) -> dict[str, scores.Score]:
    """The scores of random weights, which are the run's, and of raw pixels."""
    titles = {
        "random": f"{scores.title_of('random')} ({letter}'s)",
        "pixels": scores.title_of("pixels"),
    }
    return {title: item.scores[name] for name, title in titles.items() if name in item.scores}


def headlines_of(evaluations: Sequence[dict[str, Any]]) -> set[scores.Key]:
    """The metric that the verdict on each task is about, from the first run that has the task."""
    found: dict[str, scores.Key] = {}
    for evaluation in evaluations:
        for item in scores.headlines(evaluation):
            found.setdefault(item.task, item.key)
    return set(found.values())


def by_task(keys: Iterable[scores.Key]) -> list[scores.Key]:
    """The keys with those of one task together, tasks in the order in which they first appear."""
    tasks: dict[str, list[scores.Key]] = {}
    for key in keys:
        tasks.setdefault(key[0], []).append(key)
    return list(chain.from_iterable(tasks.values()))


def against_first(
    found: dict[str, scores.Score], runs: Sequence[str], same_test: bool | None
) -> list[str]:
    """Each other run against the first: by how much, and whether it exceeds the intervals."""
    if not same_test:
        return []
    first, *others = [name for name in runs if name in found]
    return [difference_of(name, found[name], first, found[first]) for name in others]


def difference_of(name: str, score: scores.Score, first: str, base: scores.Score) -> str:
    """``B - A = +0.070 (beyond the intervals).``"""
    certainty = {
        None: "no intervals to judge it by",
        True: "beyond the intervals",
        False: "the intervals overlap: may be chance",
    }
    gain = score.value - base.value
    return f"{name[0]} - {first[0]} = {gain:+.3f} ({certainty[scores.apart(score, base)]})."
