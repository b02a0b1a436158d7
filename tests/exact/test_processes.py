"""Several processes that share an effective batch have the gradient of one."""

import subprocess
import sys

import pytest
import torch

from dino_x.exact import KoLeo, Sinkhorn, Softmax
from tests.exact import one_of_several_processes as worker
from tests.exact.test_step import IMAGES, error, gradient


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_have_the_gradient_of_one(tmp_path, count):
    command = [sys.executable, worker.__file__]
    running = [
        subprocess.Popen([*command, str(rank), str(count), str(tmp_path)]) for rank in range(count)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * count
    for name, centering in {"sinkhorn": Sinkhorn(), "softmax": Softmax(0.8)}.items():
        expected, result = gradient([IMAGES], centering=centering, statistic=KoLeo(1.0))
        for rank in range(count):
            found, terms = torch.load(tmp_path / f"{rank}.pt")[name]
            assert error(found, expected) < 1e-10
            assert terms == pytest.approx(result.terms, rel=1e-10)
    expected, result = gradient([IMAGES], statistic=worker.SIGREG)
    for rank in range(count):
        found, terms = torch.load(tmp_path / f"{rank}.pt")["sigreg"]
        assert "sigreg" in terms
        assert error(found, expected) < 1e-10
        assert terms == pytest.approx(result.terms, rel=1e-10)
    refused = torch.load(tmp_path / "0.pt")["refused"]
    assert "each process has an equal share" in refused
