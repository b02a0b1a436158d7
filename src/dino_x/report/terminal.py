"""A comparison of runs on the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dino_x.report.compare import SideBySide
from dino_x.report.compare_scores import Scored


def print_comparison(result: SideBySide, console: Console) -> None:
    """Flags first, then settings, final numbers and evaluation."""
    for flag in result.flags:
        console.print(Text(f"Note: {flag}"), style="yellow")
    if result.differences:
        rows = [(d.name, d.values) for d in result.differences]
        console.print(side_by_side("Settings that differ", "option", result.names, rows))
    else:
        console.print("All settings are the same.")
    console.print(
        side_by_side(
            "Final numbers (means of the last tenth of the steps)", "", result.names, result.finals
        )
    )
    if not result.scored:
        console.print(
            "No run is evaluated: dino-x evaluate --model RUN --data FOLDER --labels LABELS.csv",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    else:
        console.print(score_table(result))


def score_table(result: SideBySide) -> Table:
    """A row a metric: the runs with their intervals, what they differ by, the baselines."""
    names: dict[str, None] = {}
    for scored in result.scored:
        names |= dict.fromkeys(scored.comparison.scores)
    table = Table(
        title="Evaluation (95% intervals)", title_justify="left", box=box.SIMPLE_HEAD,
        title_style="bold",
    )  # fmt: skip
    table.add_column("metric", overflow="fold")
    for name in names:
        table.add_column(Text(name), justify="right")
    compared = any(scored.against for scored in result.scored)
    if compared:
        table.add_column("difference")
    for scored in result.scored:
        cells = [score_text(scored, name, result.names) for name in names]
        if compared:
            cells.append(Text("\n".join(scored.against)))
        table.add_row(Text(scored.comparison.short_title), *cells)
    return table


def score_text(scored: Scored, name: str, runs: Sequence[str]) -> Text:
    """A score of a run with its interval, of a baseline without; a dash if there is none."""
    score = scored.comparison.scores.get(name)
    if score is None:
        return Text("-")
    return Text(score.text if name in runs else f"{score.value:.3f}")


def side_by_side(
    title: str, first: str, names: list[str], rows: list[tuple[str, list[str]]]
) -> Table:
    """A table with a column a run."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column(first, overflow="fold")
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for name, values in rows:
        table.add_row(Text(name), *(Text(value) for value in values))
    return table
