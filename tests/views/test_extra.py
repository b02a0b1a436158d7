"""Code of the user's own changes crops; what a run could not rely on is refused at its start."""

import re
from pathlib import Path

import pytest
import torch

from dino_x.config.presets import check
from dino_x.config.resolve import Facts, resolve
from dino_x.errors import UserError
from dino_x.views.extra import EXTRA_DRAWS, apply_extra, checked_extra, load_extra
from tests.views.hooks import ripple

CPU = torch.device("cpu")


def checked(name, **more):
    options = resolve({"views.extra": name, "views.global_size": 32, **more}, Facts(80)).options
    return checked_extra(options, 1, CPU, torch.float32)


def test_a_function_gets_crops_and_numbers_and_its_answer_is_taken():
    extra = checked("tests.views.hooks:ripple")
    assert extra is ripple
    crops, draws = torch.rand(5, 1, 8, 8), torch.rand(5, EXTRA_DRAWS)
    assert torch.equal(apply_extra(extra, crops, draws), ripple(crops, draws))
    assert checked(None) is None


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "views_of_ours.py").write_text(
        "def darker(crops, numbers):\n    return crops / 2\n"
    )
    monkeypatch.chdir(tmp_path)
    crops = torch.rand(2, 1, 4, 4)
    assert torch.equal(load_extra("views_of_ours:darker")(crops, None), crops / 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:x", "there is no module nowhere_at_all in .*, nor where Python looks"),
        ("tests.views.nowhere:x", "there is no module tests.views.nowhere in"),
        ("tests.views.hooks:missing", r"tests.views.hooks \(.*hooks.py\) has no missing"),
        ("tests.views.hooks:NO_FUNCTION", "NO_FUNCTION is of the type str, and no function"),
        ("tests.views.hooks:no_tensor", "gives back a NoneType for crops"),
        (
            "tests.views.hooks:smaller",
            r"gives back \[3, 1, 30, 30\] .* for crops of \[3, 1, 32, 32\]",
        ),
        ("tests.views.hooks:double", "gives back .* torch.float16"),
        ("tests.views.hooks:not_finite", "gives NaN or infinity"),
        ("tests.views.hooks:own_chance", "two results for the same crops and numbers"),
        ("tests.views.hooks:looks_around", "it must treat each crop by itself"),
        ("tests.views.hooks:raises", "raised LookupError: no such stain for 3 crops"),
        ("tests.views.hooks:takes_one", "raised TypeError: takes_one.. takes 1 positional"),
    ],
)
def test_a_function_that_a_run_could_not_rely_on_is_refused(name, message):
    with pytest.raises(UserError, match=message) as refused:
        checked(name)
    assert "\n" not in str(refused.value)


def test_a_module_that_fails_says_so_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "wrong_inside.py").write_text("import a_library_that_is_not_there\n")
    (tmp_path / "wrong_below.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="wrong_inside imports a_library_that_is_not_there"):
        load_extra("wrong_inside:x")
    with pytest.raises(UserError, match="importing wrong_below raised ZeroDivisionError"):
        load_extra("wrong_below:x")


def test_the_example_of_the_page_on_views_is_one(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "views.md").read_text()
    (tmp_path / "my_views.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    shadow = checked("my_views:shadow")
    crops, numbers = (
        torch.ones(2, 3, 8, 8),
        torch.tensor([[1.0] * EXTRA_DRAWS, [0.0] * EXTRA_DRAWS]),
    )
    dark, bright = shadow(crops, numbers)
    assert (dark[:, 0, 0] == 0.5).all()
    assert (bright == 1).all()
    assert f"`[N, {EXTRA_DRAWS}]`" in page


@pytest.mark.parametrize("name", ["views", "a:b:c", "a b:c", "/tmp/views.py:f", "a:"])
def test_a_name_that_is_none(name):
    with pytest.raises(UserError, match=r"views\.extra"):
        check({"views.extra": name})
