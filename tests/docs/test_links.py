"""Every page can be reached, and every link on a page leads somewhere; no site is built for it."""

import re
from pathlib import Path

import pytest
import yaml

from dino_x.version import __version__

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    """A page without its blocks of code and its code in lines."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as the site and GitHub make them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    slugs = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s]+", "-", slug) for slug in slugs}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = without_code(page.read_text(encoding="utf-8"))
    missing = []
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        inside = not page.is_relative_to(DOCS) or file.is_relative_to(DOCS)
        known = not anchor or (file.suffix == ".md" and anchor in anchors(file))
        if not (file.exists() and inside and known):
            missing.append(target)
    assert missing == []


def test_the_checker_sees_a_broken_link(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](gone.md) `[b](code.md)` [c](#one-two)\n\n    [d](block.md)\n")
    assert LINK.findall(without_code(page.read_text())) == ["gone.md", "#one-two"]
    assert anchors(page) == {"one-two"}


def test_every_page_is_in_the_navigation_and_on_the_first_page():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = {str(page) for section in settings["nav"] for page in leaves(section)}
    pages = {page.name for page in DOCS.glob("*.md")}
    assert listed == pages
    linked = set(LINK.findall((DOCS / "index.md").read_text(encoding="utf-8")))
    assert pages - {"index.md"} <= linked


def leaves(section):
    """The pages below an entry of the navigation."""
    if isinstance(section, str):
        return [section]
    parts = section.values() if isinstance(section, dict) else section
    return [page for part in parts for page in leaves(part)]


def test_nobody_is_told_to_install_from_pypi():
    """The name is not registered there: what is would be somebody else's."""
    texts = [*PAGES, DOCS / "first_run.ipynb", *(ROOT / "src").rglob("*.py")]
    told = re.compile(r"install\s+(-U\s+)?['\"]?dino-x")
    assert [text.name for text in texts if told.search(text.read_text(encoding="utf-8"))] == []
    assert told.search("pip install 'dino-x-ssl[s3]'")


def test_what_the_other_files_name_is_there():
    """The container, the hooks and the workflow do what `make` does."""
    container = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", container, re.MULTILINE)
              for name in line.split()]  # fmt: skip
    assert len(copied) >= 4
    assert [name for name in copied if not (ROOT / name).exists()] == []
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [run.removeprefix("make ") for run in steps if run]
    assert targets == ["test", "docs"]
    assert all(re.search(f"^{target}:", makefile, re.MULTILINE) for target in targets)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    tools = [Path(hook["entry"].split()[0]).name for hook in hooks["repos"][0]["hooks"]]
    assert len(tools) == 3
    assert [tool for tool in tools if f"$(BIN)/{tool}" not in makefile] == []


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
