"""The verdict on a model: its metrics against the baselines, with their uncertainty."""

from collections.abc import Mapping
from typing import Any

from dino_x.evaluation.bootstrap import Metric
from dino_x.evaluation.contenders import BASELINES, MODEL, START

TITLES = {
    "model": "model",
    "random": "random weights",
    "pixels": "raw pixels",
    "start": "starting weights",
}


def title(name: str) -> str:
    """The title of a name of the results, for people."""
    return TITLES.get(name, name)


def title_of_model(name: str) -> str:
    """The title of a name at the start of a sentence: the model, raw pixels."""
    return f"the {title(name)}" if name == MODEL else title(name)


def verdict(metrics: Mapping[str, Metric], setting: str, metric: str) -> dict[str, Any]:
    """The model against the best of the baselines, and against all others.

    Args:
        metrics: by name: ``model``, the baselines and any other model, on the same draws.
        setting: the setting they were measured in, such as ``20`` neighbours.
        metric: the name of the metric, such as ``balanced_accuracy``.

    Returns: ``setting``, ``metric``, ``baseline`` (the name of the best one), ``differences`` (the
    model's metric minus that of each other name, paired) and ``sentence``.
    """
    others = [name for name in metrics if name != MODEL]
    differences = {name: metrics[MODEL] - metrics[name] for name in others}
    baselines = [name for name in others if name in BASELINES]
    best = max(baselines, key=lambda name: metrics[name].value)
    named = [best]
    if START in baselines and best != START:  # was it worth it to continue from these weights?
        named.append(START)
    named += [name for name in others if name not in BASELINES]
    clauses = [clause(differences[name], title(name)) for name in named]
    return {
        "setting": setting,
        "metric": metric,
        "baseline": best,
        "differences": {name: difference.as_json() for name, difference in differences.items()},
        "sentence": f"the model {'; it '.join(clauses)}",
    }


def clause(difference: Metric, other: str) -> str:
    """One comparison in words: won or lost only where the whole interval says so.

    >>> import numpy as np
    >>> clause(Metric(0.03, np.linspace(0.01, 0.05, 1001)), "raw pixels")
    'beats raw pixels by 0.030 (0.011 to 0.049)'
    >>> clause(Metric(-0.01, np.linspace(-0.05, 0.03, 1001)), "raw pixels")
    'cannot be told from raw pixels: -0.010 (-0.048 to 0.028)'
    """
    low, high = difference.interval
    if difference.value == low == high == 0:
        return f"equals {other}"
    if low > 0:
        return f"beats {other} by {difference.value:.3f} ({low:.3f} to {high:.3f})"
    if high < 0:
        return f"is worse than {other} by {-difference.value:.3f} ({-high:.3f} to {-low:.3f})"
    return f"cannot be told from {other}: {difference.value:.3f} ({low:.3f} to {high:.3f})"
