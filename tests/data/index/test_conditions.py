from pathlib import Path

import pytest

from dino_x.data.image import ImageRef
from dino_x.data.index.conditions import parse, select
from dino_x.data.index.headers import Record
from dino_x.errors import UserError

MODALITIES = ("CT", "CT", "MR", None)
THICKNESSES = (1.0, 5.0, 3.0, None)


@pytest.fixture
def records():
    found = []
    for number, (modality, thickness) in enumerate(zip(MODALITIES, THICKNESSES, strict=True)):
        path = Path("/data", f"{number}.dcm")
        ref = ImageRef(
            path=path, height=10 * number + 10, width=7, modality=modality, thickness_mm=thickness
        )
        found.append(Record(path, 0, 100, 1, (ref,), label=f"class '{number % 2}'"))
    return found


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ('modality == "CT"', [0, 1]),
        ("modality == 'CT' and thickness_mm <= 3", [0]),
        ("modality == 'CT' or thickness_mm <= 3", [0, 1, 2]),
        ("not modality == 'CT'", [2]),
        ("modality != 'CT'", [2]),
        ("modality == None", [3]),
        ("modality is not None", [0, 1, 2]),
        ("modality in ('MR', 'PT')", [2]),
        ("modality not in ['MR']", [0, 1, 3]),
        ("1 < thickness_mm <= 5", [1, 2]),
        ("20 <= height", [1, 2, 3]),
        ("height > width", [0, 1, 2, 3]),
        ("(height == 10 or height == 40) and thickness_mm > -1.5", [0]),
        ("label == \"class '1'\"", [1, 3]),
        ("source == '/data' and path == '2.dcm'", [2]),
        (" height == 10 ", [0]),
    ],
)
def test_conditions_choose_images(records, where, wanted):
    chosen = select(records, [Path("/data")], where)
    assert [int(ref.path.stem) for ref in chosen] == wanted


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("modalty == 'CT'", "does not have: 'modalty'; did you mean 'modality'"),
        ("xyzzy == 1", "'xyzzy' .they are: path, source"),
        ("modality = 'CT'", "is not a condition such as"),
        ("", "is not a condition such as"),
        ("modality", "does not understand 'modality'"),
        ("__import__('os').system('true')", "does not understand '__import__"),
        ("height == (1).__class__", "does not understand"),
        ("height == 10 if True else 1", "does not understand"),
        ("[h for h in height]", "does not understand"),
        ("height + 1 == 11", r"does not understand 'height \+ 1'"),
        ("height == True", "does not understand 'True'"),
        ("height in modality", "does not understand 'modality'"),
        ("height == 'tall'", "value of another kind"),
        ("modality < 3", "value of another kind"),
        ("modality == 'US'", "is met by none of 4 images"),
        ("(" * 500 + "height == 1" + ")" * 500, "is not a condition"),
        ("height == 1 or " * 500 + "height == 2", "more than 2,000"),
        ("height == 9" + "9" * 400, "."),
    ],
)
def test_everything_else_is_refused_and_not_run(records, where, message):
    with pytest.raises(UserError, match=message) as raised:
        select(records, [Path("/data")], where)
    assert "\n" not in str(raised.value)


def test_numbers_and_texts_are_values_and_never_columns():
    assert str(parse("height == -3")) == "(height == -3)"
