"""What the page's script needs to show values: the points of a picture, as an attribute of it."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np


def curve_data(
    lines: Sequence[tuple[str, int, np.ndarray, np.ndarray]],
    frame: Sequence[float],
    x_label: str,
    unit: str,
) -> str:
    """The attribute ``data-hover`` of a chart.

    Args:
        lines: name, style, x and y of each.
        frame: left, right, top and bottom in pixels; smallest and largest x and y; 1 if the y axis
            is logarithmic, else 0.
        x_label: what x counts.
        unit: of y; may be empty.
    """
    shown = [
        {"label": label, "style": style, "x": rounded(x), "y": rounded(y)}
        for label, style, x, y in lines
    ]
    return attribute(
        "data-hover", {"lines": shown, "frame": rounded(frame), "x": x_label, "unit": unit}
    )


def point_data(points: Sequence[tuple[float, float, str]]) -> str:
    """The attribute ``data-points`` of a map: place in pixels and words of each point."""
    return attribute("data-points", [[round(x, 1), round(y, 1), text] for x, y, text in points])


def attribute(name: str, value: Any) -> str:
    """An attribute of an element that holds JSON.

    >>> attribute("data-x", {"a": "<"})
    ' data-x="{&quot;a&quot;:&quot;&lt;&quot;}"'
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return f' {name}="{escape(text)}"'


def rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    """Numbers to six digits; whole ones without a dot."""
    return [float(f"{value:.6g}") for value in np.asarray(values, dtype=float).tolist()]
