"""The pages in a real browser: nothing overflows, and text can be read in light and dark.

Needs Chromium (``apt-get install chromium``); without one these tests are skipped and say so.
"""

import html
import re
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
import pytest

from dino_x.report.compare import compare_page
from tests.report.runs import evaluation_of, make_run

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--virtual-time-budget=3000",
]  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")

# Each width in a frame of its own, as Chromium's window has a least width of its own. What is
# wider than the frame is counted; boxes that scroll by themselves may be.
PROBE = """<script>
addEventListener("load", () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    for (const fold of page.querySelectorAll("details")) fold.open = true;
    const width = frame.clientWidth;
    const wide = [...page.querySelectorAll("body *")].filter((e) =>
      e.getBoundingClientRect().right > width + 1 && !e.closest(".scroll, pre, .skip"));
    const broken = [...page.images].filter((i) => !i.complete || !i.naturalWidth).length;
    const paper = getComputedStyle(page.body).backgroundColor.match(/\\d+/)[0];
    found.push([width, page.documentElement.scrollWidth, wide.length, broken, paper].join(":"));
  }
  document.title = "probe " + found.join(" ");
});
</script>"""


def probe(folder, pages, widths, *flags):
    """What Chromium finds on each page at each width: `Seen` in the order of the frames."""
    frames = "".join(
        f'<iframe style="border:0;width:{width}px;height:600px" srcdoc="{html.escape(text)}">'
        "</iframe>"
        for text in pages
        for width in widths
    )
    source = folder / "frames.html"
    source.write_text(f"<!doctype html><meta charset=utf-8>{frames}{PROBE}")
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, profile, *flags, "--dump-dom", source.as_uri()],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    found = re.search(r"<title>probe ([^<]*)</title>", done.stdout)
    assert found, f"the page did not load: {done.stderr[-500:]}"
    return [Seen(*map(int, part.split(":"))) for part in found[1].split()]


class Seen(NamedTuple):
    """A page in a frame: widths in pixels, elements that overflow, pictures that did not load."""

    width: int
    scroll_width: int
    overflowing: int
    broken: int
    paper: int  # the red of its background, 0 to 255


@pytest.fixture(scope="module")
def pages(real_run, full_page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    runs = [
        make_run(folder / name, evaluation=evaluation_of(0.8), optim__lr=rate)
        for name, rate in (("a-run-with-a-rather-long-name", 0.1), ("b", 0.2), ("c", 0.3))
    ]
    compare_page(runs, folder / "compare.html")
    real, compared = real_run / "report.html", folder / "compare.html"
    return [real.read_text(), full_page, compared.read_text()]


@needs_browser
def test_nothing_is_wider_than_a_phone_or_a_desk(pages, tmp_path):
    found = probe(tmp_path, pages, (360, 1280))
    assert [seen.width for seen in found] == [360, 1280] * 3
    for seen in found:
        assert (seen.scroll_width, seen.overflowing, seen.broken) == (seen.width, 0, 0)
        assert seen.paper > 230


HOVER = """<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const view = page.defaultView;
  const tip = () => page.querySelector(".tip").hidden ? "" : page.querySelector(".tip").textContent;
  const said = [];
  const chart = page.querySelector("#online-1 svg");
  const box = chart.getBoundingClientRect();
  const place = (share) => new view.PointerEvent("pointermove", {
    clientX: box.left + share * box.width, clientY: box.top + box.height / 2});
  chart.dispatchEvent(place(0.97));
  said.push(tip());
  chart.dispatchEvent(new view.KeyboardEvent("keydown", {key: "ArrowLeft"}));
  said.push(tip());
  chart.dispatchEvent(new view.PointerEvent("pointerleave"));
  said.push(tip());
  page.querySelector("h3 .larger").click();
  const large = page.querySelector("dialog");
  said.push(large.open && large.querySelector("svg.chart") !== null);
  large.close();
  page.querySelector(".pairs img").click();
  said.push(large.open && large.querySelector("img").alt);
  document.title = "said " + said.join("|");
});
</script>"""


@needs_browser
def test_values_are_shown_on_hover_and_by_keys_and_pictures_get_large(pages, tmp_path):
    source = tmp_path / "hover.html"
    frame = f'<iframe style="width:900px;height:700px" srcdoc="{html.escape(pages[0])}"></iframe>'
    source.write_text(f"<!doctype html><meta charset=utf-8>{frame}{HOVER}")
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         source.as_uri()],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    found = re.search(r"<title>said ([^<]*)</title>", done.stdout)
    assert found, done.stderr[-500:]
    last, before, gone, chart, picture = found[1].split("|")
    assert re.fullmatch(r"step 4: [\d.]+ share", last)
    assert re.fullmatch(r"step [123]: [\d.]+ share", before)
    assert (gone, chart, picture) == ("", "true", "Image 1")


@needs_browser
def test_it_is_dark_where_the_reader_wants_it(pages, tmp_path):
    (seen,) = probe(tmp_path, pages[1:2], (360,), "--blink-settings=preferredColorScheme=0")
    assert seen.paper < 40


def luminance(colour):
    """Relative luminance of #rrggbb. Source: WCAG 2.1, definition."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_lines_have_the_contrast_of_wcag_aa(theme):
    from dino_x.report.page import style

    colours = {}
    for block in re.findall(r":root \{(.*?)\}", style(), re.S)[: theme + 1]:
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for text, ground in [
        *((text, ground) for text in ("ink", "muted", "accent") for ground in ("page", "card")),
        *((mark, f"{mark}-back") for mark in ("good", "watch", "problem", "note")),
    ]:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line in (f"s{i}" for i in range(6)):
        assert contrast(colours[line], colours["card"]) >= 3, line
