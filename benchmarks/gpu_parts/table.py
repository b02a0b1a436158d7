"""The table of gpu.py in Markdown, from its lines."""

from benchmarks.gpu_parts.results import Line

VERDICTS = {True: "holds", False: "**does not hold**", None: ""}
HEAD = ("part", "what", "found", "wanted", "")


def table(lines: list[Line], order: list[str]) -> str:
    """A title with the machine, then a row for each line, part by part.

    Args:
        lines: of the file, in any order.
        order: of the parts.
    """
    machines = [line["machine"] for line in lines if "machine" in line]
    rows = [row_of(line) for name in order for line in lines if line.get("part") == name]
    text = [title_of(machines[-1] if machines else {}), ""]
    text += [cells(HEAD), "|---|---|---:|---:|---|", *map(cells, rows)]
    return "\n".join(text)


def title_of(machine: dict[str, str]) -> str:
    """What everything was measured on; on a CPU it says that it was at toy size."""
    if not machine:
        return "No part got so far as to say what machine this is."
    described = ", ".join(value for name, value in machine.items() if name != "no_gpu")
    if "no_gpu" in machine:
        return f"CPU, toy size ({machine['no_gpu']}): {described}"
    return described


def row_of(line: Line) -> tuple[str, ...]:
    """The cells of a line."""
    if "skipped" in line:
        return (line["part"], line["what"], "not measured", "", line["skipped"])
    return (line["part"], line["what"], line["found"], line["wanted"], VERDICTS[line["holds"]])


def cells(row: tuple[str, ...]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |"


def broken(lines: list[Line]) -> list[Line]:
    """The lines that do not hold."""
    return [line for line in lines if line.get("holds") is False]
