"""What any page we write must be, checked in its source."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}
NETWORK = re.compile(
    r"(?:https?:)?//[\w.-]+\.\w+|url\(|@import|<script .*src|<link|<iframe|srcset", re.I
)


class Page(HTMLParser):
    """A parsed page; unclosed and misnested elements are errors."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without its beginning"
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check(text):
    """A page that is well formed, accessible as far as its source says, and fetches nothing."""
    page = Page(text)
    assert text.lower().startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels)), levels
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
        assert not any(name.startswith("on") for name in attributes)
    for picture in page.all("img"):
        assert picture["alt"].strip()
        assert picture["src"].startswith("data:image/")
    for drawing in page.all("svg"):
        assert drawing.get("role") == "img" or drawing.get("aria-hidden") == "true"
        assert drawing.get("aria-label") or drawing.get("aria-hidden")
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    names = text.replace("http://www.w3.org/2000/svg", "")  # the name of a language, no address
    assert not NETWORK.search(names), NETWORK.search(names)
    policies = [m.get("content", "") for m in page.all("meta") if "http-equiv" in m]
    assert policies[0].startswith("default-src 'none'")
    (script,) = re.findall("<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policies[0]
    return page
