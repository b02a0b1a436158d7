"""The pictures in docs/report.md: the top of a run's page on a desk, and parts of it on a phone.

    python benchmarks/report_screenshots.py RUN

writes docs/images/report.png (1280 px wide) and docs/images/report-phone.png (three cuts of 360 px,
side by side, the last of them dark). Needs Chromium and a RUN with its report.html.
"""

import argparse
import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--virtual-time-budget=5000",
]  # fmt: skip
HEIGHT = 1500  # of the pictures, pixels
MOST_BYTES = 250_000
PROBE = """<script>addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  const tops = [...page.querySelectorAll("h2")].map((h) => h.id + "=" +
    Math.round(h.closest("section").getBoundingClientRect().top));
  document.title = "probe height=" + page.documentElement.scrollHeight + " " + tops.join(" ");
});</script>"""


def chromium(*arguments: str) -> str:
    """Its standard output, with a profile of its own."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        raise SystemExit("Chromium is not installed")
    with tempfile.TemporaryDirectory() as profile:
        command = [binary, *FLAGS, f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def picture(page: Path, width: int, *flags: str) -> tuple[Image.Image, dict[str, int]]:
    """The whole page at a width, and where its sections begin."""
    with tempfile.TemporaryDirectory() as folder:
        frame, shot = Path(folder, "frame.html"), Path(folder, "page.png")

        def write(height: int) -> None:
            style = f"border:0;display:block;width:{width}px;height:{height}px"
            text = html.escape(page.read_text())
            frame.write_text(
                '<!doctype html><meta charset=utf-8><body style="margin:0">'
                f'<iframe style="{style}" srcdoc="{text}"></iframe>{PROBE}'
            )

        write(400)
        found = re.search(r"<title>probe ([^<]*)", chromium("--dump-dom", frame.as_uri()))
        if found is None:
            raise SystemExit(f"{page} does not load")
        places = {k: int(v) for k, _, v in (p.partition("=") for p in found[1].split())}
        write(places["height"])
        size = f"--window-size={max(width, 500)},{places['height']}"
        chromium(f"--screenshot={shot}", size, *flags, frame.as_uri())
        image = Image.open(shot).convert("RGB")
        return image.crop((0, 0, width, image.height)), places


def save(image: Image.Image, path: Path) -> None:
    """As a PNG of at most `MOST_BYTES`, with as many colours as that allows."""
    for colours in (256, 128, 64, 32):
        image.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break
    print(f"{path}: {image.width} x {image.height} px, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Shoot, cut, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    page = parser.parse_args().run / "report.html"
    images = Path(__file__).parents[1] / "docs" / "images"

    desk, places = picture(page, 1280)
    desk.crop((0, 0, 1280, HEIGHT)).save(images / "report.png")
    save(desk.crop((0, 0, 1280, HEIGHT)), images / "report.png")

    light, places = picture(page, 360)
    dark, _ = picture(page, 360, "--blink-settings=preferredColorScheme=0")
    cuts = [(light, 0), (light, places["maps"] - 16), (dark, places["curves"] - 16)]
    phone = Image.new("RGB", (3 * 360 + 2 * 20, HEIGHT // 2 + 150), "white")
    for column, (shot, top) in enumerate(cuts):
        phone.paste(shot.crop((0, top, 360, top + phone.height)), (column * 380, 0))
    save(phone, images / "report-phone.png")


if __name__ == "__main__":
    main()
