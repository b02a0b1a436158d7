"""The figures of docs/plan.md that a short command makes are those that it makes now."""

import io
import re
import shlex

import pytest
from rich.console import Console

from dino_x.cli import overrides_in
from dino_x.cost.gpus import gpu_of
from dino_x.flags import build_parser
from dino_x.planning.plan import Plan, Request, plan
from dino_x.planning.table import print_plan
from tests.docs.pages import DOCS

PAGE = (DOCS / "plan.md").read_text(encoding="utf-8")
WIDTH = 110  # of the terminal that the block on the page was printed on


def planned(*words: str) -> tuple[str, Plan]:
    """What the command prints, and the plan itself."""
    arguments = build_parser().parse_args(["plan", *words])
    request = Request(
        gpu=gpu_of(arguments.card), gpus=1, mfu=None, price=arguments.price, measure=False,
        images=arguments.images,
    )  # fmt: skip
    console = Console(file=(printed := io.StringIO()), width=WIDTH)
    result = plan(overrides_in(arguments), request, console)
    print_plan(result, console)
    return printed.getvalue(), result


def test_the_plan_on_the_page_is_what_the_command_prints():
    command, shown = re.search(
        r"    dino-x (plan --model [^`]*?)\n\n```text\n(.*?)```", PAGE, re.DOTALL
    ).groups()
    words = shlex.split(command.replace("\\\n", " "))[1:]
    printed, _ = planned(*words)
    assert [line.rstrip() for line in printed.strip().splitlines()] == shown.strip().splitlines()


@pytest.mark.parametrize("patch", [14, 16])
def test_the_operations_on_the_page_are_those_that_are_counted(patch):
    row = re.search(rf"^\| {patch} px, crops of 224 and \d+ \|(.*)\|$", PAGE, re.MULTILINE)[1]
    local = {14: 98, 16: 96}[patch]
    found = []
    for drop in (0, 0.1, 0.3):
        _, result = planned(
            "--model", "vits16", "--preset", "dinov3", "--card", "rtx4090", "--precision", "bf16",
            "--steps", "10000", "--images", "150000", "--set", f"model.patch_size={patch}",
            f"views.local_size={local}", f"model.drop_path={drop}",
        )  # fmt: skip
        found.append(sum(result.flops.values()) / 1e9)
    assert [float(cell) for cell in row.split("|")] == pytest.approx(found, abs=1)
