"""The tables of quality.py: tested patients, means over seeds, intervals of paired differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from quality_sets import unpacked

from dino_x.evaluation.bootstrap import (
    Draws,
    Metric,
    balanced_accuracy_of_draws,
    draw_patients,
)

READ_OUTS = ("cls", "cls + mean")
FREE = ("pixels", "random weights", "frozen")
Line = dict[str, Any]


def print_tables(lines: Sequence[Line]) -> None:
    """One table in Markdown for each experiment, set and target."""
    truths = {line["set"]: line for line in lines if line.get("truth")}
    measured = [line for line in lines if not line.get("truth")]
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in measured:
        groups.setdefault((line["experiment"], line["set"]), []).append(line)
    for (experiment, name), own in groups.items():
        for target in targets_of(own):
            print_table(experiment, name, target, own, truths[name])


def print_validation(lines: Sequence[Line]) -> None:
    """What recipes are chosen by: validation patients, CLS, the mean over seeds."""
    groups: dict[tuple[str, str], dict[tuple[str, int], list[Line]]] = {}
    for line in lines:
        if not line.get("truth"):
            found = groups.setdefault((line["experiment"], line["set"]), {})
            found.setdefault((line["recipe"], line.get("seen", 0)), []).append(line)
    for (experiment, name), own in groups.items():
        tasks = list(next(iter(own.values()))[0]["cls"]["val"])
        print(f"\n**{experiment}, {name}**, validation patients, CLS\n")
        print("| | images seen | seeds |" + "".join(f" {task} |" for task in tasks) + " mean |")
        print("|---|---:|---:|" + "---:|" * (len(tasks) + 1))
        for (recipe, seen), group in own.items():
            means = [np.mean([line["cls"]["val"][task] for line in group]) for task in tasks]
            cells = [recipe, f"{seen:,}" if seen else "", str(len(group))]
            cells += [f"{value:.3f}" for value in [*means, np.mean(means)]]
            print("| " + " | ".join(cells) + " |")


def print_between(lines: Sequence[Line], first: str, second: str) -> None:
    """One recipe minus another, over the seeds that both have: a row a set, target and read-out."""
    truths = {line["set"]: line for line in lines if line.get("truth")}
    groups: dict[tuple[str, str, int], dict[str, list[Line]]] = {}
    for line in lines:
        if line.get("recipe") in (first, second):
            key = line["experiment"], line["set"], line.get("seen", 0)
            groups.setdefault(key, {}).setdefault(line["recipe"], []).append(line)
    print(f"\n**{first}**, and what it has more than **{second}**\n")
    print("| set | target | images seen | seeds | read-out | kNN | minus | linear | minus |")
    print("|---|---|---:|---:|---|---:|---:|---:|---:|")
    for (_, name, seen), by_recipe in groups.items():
        if len(by_recipe) < 2:
            continue
        seeds = {line["seed"] for line in by_recipe[first]}
        seeds &= {line["seed"] for line in by_recipe[second]}
        both = [[one for one in by_recipe[of] if one["seed"] in seeds] for of in (first, second)]
        patients = np.array([str(patient) for patient in truths[name]["patients"]])
        for target in targets_of(both[0]):
            scorer = Scorer(draw_patients(patients, 0), unpacked(truths[name][target]), target)
            for read_out in READ_OUTS:
                cells = [name, target, f"{seen:,}", str(len(seeds)), read_out]
                for task in ("knn", "linear"):
                    ours, theirs = (scorer.mean(group, read_out, task) for group in both)
                    low, high = (difference := ours - theirs).interval
                    cells.append(f"{ours.value:.3f}")
                    cells.append(f"{difference.value:+.3f} ({low:+.3f}, {high:+.3f})")
                print("| " + " | ".join(cells) + " |")


def targets_of(lines: Sequence[Line]) -> list[str]:
    """The names of what is told, such as ``2 classes``."""
    return list(dict.fromkeys(key.rpartition(", ")[0] for key in lines[0]["cls"]["test"]))


def print_table(
    experiment: str, name: str, target: str, lines: Sequence[Line], truth: Line
) -> None:
    """Every recipe at every number of images seen."""
    patients = np.array([str(patient) for patient in truth["patients"]])
    scorer = Scorer(draw_patients(patients, 0), unpacked(truth[target]), target)
    counts = truth["counts"]
    free = [name for name in FREE if any(line["recipe"] == name for line in lines)]
    print(
        f"\n**{experiment}, {name}, {target}**: {counts['train']:,} training images,"
        f" {counts['test']:,} tested images of {len(set(patients.tolist())):,} patients\n"
    )
    print(
        "| | images seen | seeds | CPU min | read-out |"
        + "".join(
            f" {task} |" + "".join(f" minus {name} |" for name in free)
            for task in ("kNN", "linear")
        )
    )
    print("|---|---:|---:|---:|---|" + "---:|" * 2 * (1 + len(free)))
    groups: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["recipe"], line.get("seen", 0)), []).append(line)
    order = sorted(groups, key=lambda key: (key[0] not in FREE, key))
    for recipe, seen in order:
        for read_out in READ_OUTS:
            group = [line for line in groups[recipe, seen] if read_out in line]
            if group:
                print(row(recipe, seen, read_out, group, lines, scorer))


def row(
    recipe: str,
    seen: int,
    read_out: str,
    group: Sequence[Line],
    lines: Sequence[Line],
    scorer: "Scorer",
) -> str:
    """A row of a table."""
    minutes = [line["cpu_seconds"] / 60 for line in group if "cpu_seconds" in line]
    cells = [recipe, f"{seen:,}" if seen else "", str(len({line["seed"] for line in group}))]
    cells += [f"{np.mean(minutes):.0f}" if minutes else "", read_out]
    for task in ("knn", "linear"):
        own = scorer.mean(group, read_out, task)
        cells.append(f"{own.value:.3f}")
        for free in (name for name in FREE if any(line["recipe"] == name for line in lines)):
            others = [line for line in lines if line["recipe"] == free]
            place = "cls" if free == "pixels" else read_out
            if recipe == free or not others:
                cells.append("")
                continue
            difference = own - scorer.mean(others, place, task)
            low, high = difference.interval
            cells.append(f"{difference.value:+.3f} ({low:+.3f}, {high:+.3f})")
    return "| " + " | ".join(cells) + " |"


class Scorer:
    """Balanced accuracy of packed predictions, on all patients and on draws of them."""

    def __init__(self, draws: Draws, classes_Q: np.ndarray, target: str) -> None:
        self.draws, self.classes_Q, self.target = draws, classes_Q.astype(int), target
        self.count = int(classes_Q.max()) + 1

    def mean(self, lines: Sequence[Line], read_out: str, task: str) -> Metric:
        """The mean over lines, which are runs with other seeds."""
        metrics = [self.one(line[read_out]["test"][f"{self.target}, {task}"]) for line in lines]
        draws_R = np.mean([metric.draws_R for metric in metrics], axis=0)
        return Metric(float(np.mean([metric.value for metric in metrics])), draws_R)

    def one(self, text: str) -> Metric:
        """Of one run."""
        predicted_Q = unpacked(text).astype(int)
        right_Q = predicted_Q == self.classes_Q
        shares = [right_Q[self.classes_Q == label].mean() for label in range(self.count)]
        of_draws = balanced_accuracy_of_draws(self.draws, self.classes_Q, predicted_Q, self.count)
        return Metric(float(np.mean(shares)), of_draws)
