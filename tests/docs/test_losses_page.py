"""The examples of docs/losses.md run as they stand on the page."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"


def examples() -> dict[str, str]:
    """Python blocks of the page by the heading that they stand under."""
    sections = re.split(r"^## +", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        blocks = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        if blocks:
            found[section.splitlines()[0]] = "\n".join(blocks)
    return found


def test_page_has_the_two_examples() -> None:
    assert list(examples()) == ["In a plain PyTorch loop", "In a Lightning module"]


def test_plain_loop_lowers_the_loss() -> None:
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(examples()["In a plain PyTorch loop"], PAGE.name, "exec"), names)
    losses = [float(loss) for loss in names["losses"]]
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_lightning_module_trains() -> None:
    pytest.importorskip("lightning")
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(examples()["In a plain PyTorch loop"], PAGE.name, "exec"), names)
    before = names["student"][0].weight.detach().clone()
    exec(compile(examples()["In a Lightning module"], PAGE.name, "exec"), names)
    trainer = names["trainer"]
    assert trainer.global_step == 20
    assert torch.isfinite(trainer.callback_metrics["loss"])
    assert not torch.equal(names["module"].student[0].weight, before)
