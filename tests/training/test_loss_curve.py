"""Kept loss curves: a change that is not meant to change the mathematics reproduces them.

To keep new ones after a change that is: ``python -m tests.training.test_loss_curve``.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_films
from tests.tiny import OLD_TRANSFORMERS
from tests.training.runs import metrics, pretrain

CURVES = Path(__file__).parent / "curves"
NAMES = ("loss", "dino", "ibot", "koleo", "gradient_norm")
FLAGS = {"sinkhorn": ("--centering", "sinkhorn"), "softmax": ("--centering", "softmax")}


def curve(films, run, centering, implementation="fused"):
    """A short run in float64, so that machines differ by rounding only."""
    flags = ["--effective-batch", 16, "--micro-batch", 8, "--steps", 12, "--precision", "fp64"]
    flags += FLAGS[centering]
    assert pretrain(films, run, *flags, loss__implementation=implementation) == 0
    return {name: [step[name] for step in metrics(run)] for name in NAMES}


@pytest.mark.skipif(OLD_TRANSFORMERS, reason="it draws other first weights")
@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("centering", FLAGS)
def test_the_kept_curve_is_reproduced(films, tmp_path, centering, implementation):
    kept = json.loads((CURVES / f"{centering}.json").read_text())
    found = curve(films, tmp_path / "run", centering, implementation)
    assert found.keys() == kept.keys()
    assert not (tmp_path / "run" / "health.jsonl").exists(), "health finds nothing in kept runs"
    for name, values in kept.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        place = make_films(Path(folder) / "films")
        for kind in FLAGS:
            values = curve(place, Path(folder) / kind, kind)
            CURVES.mkdir(exist_ok=True)
            (CURVES / f"{kind}.json").write_text(json.dumps(values, indent=1) + "\n")
    sys.exit(0)
