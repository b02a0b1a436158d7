"""The examples of docs/api.md run as they stand on the page."""

import re
from pathlib import Path

import yaml

from tests.conftest import TINY

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_page_runs_from_top_to_bottom(films, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").symlink_to(films)
    small = {name: value for name, value in TINY.items() if "." in name} | {"train.steps": 2}
    sections: dict = {}
    for name, value in small.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = list(value) if isinstance(value, tuple) else value
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(sections))
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    assert len(names["steps"]) == 2
    assert names["evaluation"]["results"]["model"]
    assert names["page"].is_file()
    assert len(names["classes"]) == len(names["found"]) > 4
