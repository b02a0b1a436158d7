"""``dino-x options``: every option with its values, what presets set, and what it means."""

from collections.abc import Iterable, Sequence
from typing import Any, get_args

from dino_x.config.options import Options
from dino_x.config.other_names import OTHER_NAMES, hint
from dino_x.config.presets import (
    SHOWN,
    allowed_values,
    as_yaml,
    dotted,
    field_of,
    known_options,
    takes_number,
)
from dino_x.errors import UserError

NAME, CELL = 26, 9  # columns of a name, and of a value
INDENT = "    "
BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "up to {}", "lt": "below {}"}


def options_text(words: Sequence[str] = (), width: int = 80) -> str:
    """Options by section.

    Args:
        words: that are looked for in names and meanings; names of other tools count, too. With
            none, every option.
        width: columns of the text.

    Raises: UserError if there is no such option.
    """
    names = known_options()
    for word in words:
        names = matching(word, names)
    if not names:
        shown = " ".join(words)
        raise UserError(
            f"no option has '{shown}' in its name or meaning{hint(shown, known_options())};"
            " dino-x options lists them all"
        )
    lines: list[str] = []
    for section in dict.fromkeys(name.partition(".")[0] for name in names):
        of_section = [name for name in names if name.partition(".")[0] == section]
        if lines:
            lines.append("")
        lines += section_lines(section, of_section, width)
    return "\n".join(lines)


def matching(word: str, names: Iterable[str]) -> list[str]:
    """The options that a word may mean: a section, a name, else a word of the meaning."""
    names, plain = list(names), word.strip("-").replace("-", "_").lower()
    ours = OTHER_NAMES.get(plain)
    if plain in names:
        return [plain]
    if ours in names:
        return [ours]
    in_section = [name for name in names if name.partition(".")[0] == plain]
    if in_section:
        return in_section
    return [name for name in names if plain in name or plain in meaning(name).lower()]


def meaning(name: str) -> str:
    """What an option means."""
    return field_of(name).description or ""


def section_lines(section: str, names: Sequence[str], width: int) -> list[str]:
    """The options of a section: a line of values, and their meaning, each."""
    declared: Any = Options.model_fields[section].annotation
    about = ""
    if section not in known_options():
        about = (declared.__doc__ or "").split("\n")[0]
    columns = [preset for preset in SHOWN if any(name in SHOWN[preset] for name in names)]
    lines = wrapped(f"{section}: {about}", width, indent="") if about else []
    if columns:
        lines.append(row("", ["default", *columns]))
    defaults = dotted(Options().model_dump())
    for name in names:
        values = [as_yaml(defaults[name])]
        if any(name in SHOWN[preset] for preset in columns):
            values += [as_yaml(SHOWN[preset].get(name, defaults[name])) for preset in columns]
        lines.append(row(name, values))
        text = f"{meaning(name)} [{allowed(name)}]" if allowed(name) else meaning(name)
        lines += wrapped(text, width)
    return lines


def row(name: str, values: Sequence[str]) -> str:
    """A name and values in columns; a long value moves those after it."""
    cells = [f"{value:<{CELL - 1}} " for value in values]
    return f"{name:<{NAME - 1}} {''.join(cells)}".rstrip()


def wrapped(text: str, width: int, indent: str = INDENT) -> list[str]:
    """A text in lines that are set in."""
    lines, line = [], indent
    for word in text.split():
        if len(line) + len(word) + 1 > width and line.strip():
            lines.append(line.rstrip())
            line = indent
        line += f"{word} "
    return [*lines, line.rstrip()]


def allowed(name: str) -> str:
    """The values that an option takes, in words."""
    field = field_of(name)
    kinds = set(types(field.annotation))
    parts = [" | ".join(allowed_values(name))] if allowed_values(name) else []
    if bool in kinds:
        parts.append("true | false")
    if takes_number(name) and bool not in kinds:
        parts.append(f"whole number {bounds(field)}".strip())
    if float in kinds and tuple not in kinds:
        parts.append(f"number {bounds(field)}".strip())
    if not parts:
        return ""
    if type(None) in kinds:
        parts.append("null")
    return " | ".join(parts)


def types(declared: Any) -> list[Any]:
    """The plain types that a declaration is made of."""
    inside = get_args(declared)
    if not inside:
        return [declared]
    outer = [tuple] if getattr(declared, "__origin__", None) is tuple else []
    return outer + [found for part in inside for found in types(part)]


def bounds(field: Any) -> str:
    """The bounds of a number, such as ``from 0 up to 1``."""
    checks = list(field.metadata)
    for part in get_args(field.annotation):  # of one that may be null
        checks += [
            check for inner in getattr(part, "__metadata__", ()) for check in unfolded(inner)
        ]
    said = [
        text.format(f"{limit:g}")
        for bound, text in BOUNDS.items()
        for check in checks
        if (limit := getattr(check, bound, None)) is not None and is_telling(limit)
    ]
    return " ".join(dict.fromkeys(said))


def unfolded(check: Any) -> list[Any]:
    """The checks of a pydantic field, or the check itself."""
    return list(getattr(check, "metadata", [])) or [check]


def is_telling(limit: float) -> bool:
    """Whether a bound says something of an option; others only keep sizes within reason."""
    return limit == 0 or 1e-4 <= abs(limit) <= 1e4
