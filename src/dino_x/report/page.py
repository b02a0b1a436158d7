"""The page: plain data in, one self-contained HTML file out.

Nothing in it is fetched from anywhere, and its content policy forbids it to. Its one script, which
shows values and large pictures, is in the page, and the policy allows that text and no other.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dino_x.errors import UserError
from dino_x.files import write_text
from dino_x.report.class_details import ClassDetails, UnitTable
from dino_x.report.curves import DrawnChart
from dino_x.report.run_data import Finding
from dino_x.report.scatter import FeatureMap, legend_symbol
from dino_x.report.settings import Setting
from dino_x.report.tables import Table
from dino_x.report.verdict import Sentence, Tile
from dino_x.version import __version__


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Attributes:
        uri: its pixels, as data.
        alt: what it shows, in words.
        label: the few words below it.
        sides: width and height in which it is shown, pixels.
        blocky: enlarged without smoothing, so that places are seen as such.
        mark: ``right`` or ``wrong`` for a neighbour whose label is that of the query, or is not.
    """

    uri: str
    alt: str
    label: str
    sides: tuple[int, int]
    blocky: bool = False
    mark: str = ""


@dataclass(frozen=True)
class PictureRow:
    """Pictures that belong together, in order."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Gallery:
    """A section of pictures: strips with how to read them, or why there are none."""

    caption: str
    strips: list[PictureRow] = field(default_factory=list)
    missing: str = ""
    note: str = ""


@dataclass(frozen=True)
class ReportPage:
    """Everything that the page about one run says."""

    name: str
    state: Sentence
    tiles: list[Tile]
    training: list[Sentence]
    health: list[Sentence]
    worth: list[Sentence]
    changed: list[Setting]
    settings: list[Setting]
    preset: str
    loss: list[DrawnChart]
    online: list[DrawnChart]
    health_charts: list[DrawnChart]
    more_health: list[DrawnChart]
    schedules: list[DrawnChart]
    health_measured: bool
    findings: list[tuple[int, str, Finding]]
    evaluation: list[Table]
    more_evaluation: list[Table]
    tested_on: str
    warnings: list[str]
    seen: Gallery
    first_last: Gallery
    maps: Gallery
    attention: Gallery
    neighbours: Gallery
    feature_maps: list[FeatureMap]
    details: list[ClassDetails]
    units: UnitTable | None
    refresh: int | None
    has_model: bool
    snippet: str
    images_shown: bool


def render(template: str, **content: Any) -> str:
    """A page from its template; every text is escaped, pictures made here are not."""
    made = datetime.now().astimezone()
    return (
        environment()
        .get_template(template)
        .render(
            **content,
            version=__version__,
            made=made.strftime("%Y-%m-%d %H:%M"),
            style=style(),
            script=script(),
            script_hash=script_hash(),
            refresh=getattr(content["page"], "refresh", None),
        )
    )


@cache
def environment() -> Environment:
    """Where templates are and what they can do."""
    loader = PackageLoader("dino_x.report", "templates")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    found.filters["svg"] = Markup
    found.filters["breakable"] = breakable
    found.filters["symbol"] = lambda style: Markup(legend_symbol(style))
    return found


def breakable(name: str) -> Markup:
    """An option's name that may be broken after its dots and underscores."""
    return Markup(escape(name).replace(".", Markup(".<wbr>")).replace("_", Markup("_<wbr>")))


@cache
def style() -> Markup:
    """The style sheet, which goes into the page."""
    return Markup(Path(__file__).with_name("templates").joinpath("style.css").read_text())


@cache
def script() -> Markup:
    """The script, which goes into the page."""
    return Markup(Path(__file__).with_name("templates").joinpath("page.js").read_text())


def script_hash() -> str:
    """What the page's policy knows its script by. Source: CSP 3, section 2.3.1."""
    digest = hashlib.sha256(str(script()).encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def write_page(text: str, path: Path) -> None:
    """Write the file whole or not at all.

    Raises: UserError if it cannot be written.
    """
    if not path.name:
        raise UserError("the page has no name: name a file with --out")
    try:
        write_text(path, text)
    except OSError as error:
        why = "is a folder" if path.is_dir() else error.strerror
        raise UserError(f"cannot write {path}: {why}; name another file with --out") from error
