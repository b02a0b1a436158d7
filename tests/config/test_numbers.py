"""Every number has its range: none that a computer cannot work with is taken."""

import math

import pytest

from dino_x.cli import main
from dino_x.config.presets import check, known_options
from dino_x.errors import UserError

NO_NUMBERS = (math.inf, -math.inf, math.nan, 1e300, 2**64, 2**63, 10**300)


def test_every_option_refuses_what_is_no_number_to_work_with():
    taken = []
    for name in sorted(known_options()):
        for value in NO_NUMBERS:
            try:
                check({name: value})
            except UserError as error:
                named = str(error)
            else:
                named = "taken"
            if name not in named:
                taken.append((name, value))
    assert not taken


@pytest.mark.parametrize("pair", [(0.5, math.inf), (math.nan, 1.0), (-math.inf, 1.0)])
def test_so_does_every_pair(pair):
    for name in ("views.global_scale", "views.local_scale", "views.aspect", "views.blur_sigma"):
        with pytest.raises(UserError, match=name):
            check({name: pair})


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_seeds_that_are_taken_train(seed):
    assert check({"train.seed": seed}).train.seed == seed


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--model", "m", "--data", "d", "--seed", str(2**64)],
        ["evaluate", "--model", "m", "--data", "d", "--seed", "-1"],
        ["batch-floor", "--model", "m", "--data", "d", "--out", "o", "--seed", "nan"],
        ["demo", "--out", "o", "--seed", "9" * 5000],
        ["plan", "--images", "1e9"],
        ["plan", "--images", "9", "--config", "a\0b"],
        ["plan", "--images", "9", "--price", "inf"],
        ["plan", "--images", "9", "--mfu", "nan"],
        ["plan", "--images", "9", "--set", f"train.steps={'9' * 5000}"],
        ["plan", "--images", "9", "--set", "optim.lr=2001-99-99"],
        ["plan", "--images", "9", "--set", "optim.lr=" + "[" * 5000],
        ["plan", "--images", "9", "--set", "optim.lr={a: 1, a: 2}"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_arguments_that_are_no_numbers_are_one_line(arguments, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dino-x: ")
    assert len(line) < 400


def test_a_file_whose_aliases_would_fill_the_memory_is_refused(tmp_path, capsys):
    lines = ["a: &a {x: 1, y: 2}"]
    for one, before in zip("bcdefghij", "abcdefghi", strict=True):
        items = ", ".join(f"k{n}: *{before}" for n in range(9))
        lines.append(f"{one}: &{one} {{{items}}}")
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    assert main(["plan", "--images", "9", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "line 2 is not YAML" in capsys.readouterr().err
