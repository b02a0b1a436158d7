"""The page about DINOv3's recipe names options and tests that exist."""

import re
from pathlib import Path

from dino_x.config.presets import known_options

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dinov3.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(tests/[\w/.]+)`", PAGE)
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_option_that_the_page_names_exists():
    known = known_options()
    sections = {name.partition(".")[0] for name in known}
    named = re.findall(r"`(\w+\.\w+)", PAGE)
    options = [name for name in named if name.partition(".")[0] in sections]
    assert len(options) > 8
    assert [name for name in options if name not in known] == []
    assert "(dinov3.md)" in (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
