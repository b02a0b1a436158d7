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


def run(*titles: str) -> dict:
    """The names that some sections define, one after the other."""
    torch.manual_seed(0)
    names: dict = {}
    for title in titles:
        exec(compile(examples()[title], PAGE.name, "exec"), names)
    return names


NEEDS, STEP = "The exact step: what it needs", "The exact step in "


def test_page_has_its_examples() -> None:
    assert list(examples()) == [
        NEEDS,
        STEP + "a plain loop",
        STEP + "Lightning",
        "The exact step with accelerate",
        "The losses in a plain PyTorch loop",
        "The losses in a Lightning module",
    ]


def test_exact_step_in_a_plain_loop_lowers_the_loss() -> None:
    losses = run(NEEDS, STEP + "a plain loop")["losses"]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.5


def test_exact_step_in_lightning_is_the_plain_loop() -> None:
    pytest.importorskip("lightning")
    names = run(NEEDS, STEP + "Lightning")
    assert names["trainer"].global_step == 20
    assert float(names["trainer"].callback_metrics["loss"]) < 10
    untrained = run(NEEDS)["student"].backbone.patch.weight
    assert not torch.equal(names["student"].backbone.patch.weight, untrained)


def test_exact_step_with_accelerate_trains_as_the_plain_loop_does() -> None:
    pytest.importorskip("accelerate")
    plain = run(NEEDS, STEP + "a plain loop")
    names = run(NEEDS, "The exact step with accelerate")
    for own, expected in zip(
        names["student"].parameters(), plain["student"].parameters(), strict=True
    ):
        torch.testing.assert_close(own, expected)


def test_plain_loop_lowers_the_loss() -> None:
    losses = [float(loss) for loss in run("The losses in a plain PyTorch loop")["losses"]]
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_lightning_module_trains() -> None:
    pytest.importorskip("lightning")
    names = run("The losses in a plain PyTorch loop")
    before = names["student"][0].weight.detach().clone()
    exec(compile(examples()["The losses in a Lightning module"], PAGE.name, "exec"), names)
    trainer = names["trainer"]
    assert trainer.global_step == 20
    assert torch.isfinite(trainer.callback_metrics["loss"])
    assert not torch.equal(names["module"].student[0].weight, before)
