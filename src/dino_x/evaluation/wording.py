"""What tasks and metrics are called, and how a figure is written."""

METRIC_TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "recall": "recall",
    "precision": "precision",
    "specificity": "specificity",
    "r2": "R2",
    "mae": "mean absolute error",
    "dice": "Dice",
    "iou": "IoU",
}
TASK_TITLES = {
    "knn": "kNN",
    "linear": "linear probe",
    "few_shot": "few labels",
    "segmentation": "segmentation",
}


def plain(metric: dict[str, float]) -> str:
    """The value of a metric alone."""
    return f"{metric['value']:.3f}"


def with_interval(metric: dict[str, float]) -> str:
    """The value of a metric and its interval.

    >>> with_interval({"value": 0.8774, "low": 0.8551, "high": 0.9012})
    '0.877 (0.86-0.90)'
    >>> with_interval({"value": -0.2, "low": -0.5, "high": -0.1})
    '-0.200 (-0.50 to -0.10)'
    """
    between = "-" if metric["low"] >= 0 else " to "
    return f"{metric['value']:.3f} ({metric['low']:.2f}{between}{metric['high']:.2f})"
