"""What of networks in parts can be told without several processes; see tests/equivalence."""

import pytest
import torch

from dino_x.distributed import sharding
from dino_x.errors import UserError
from dino_x.losses.ranks import ALONE
from tests.training.runs import pretrain


def test_a_network_that_is_whole_stays_as_it_is():
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = sharding.gathered(
        {"network": network.state_dict(), "optimizer": optimizer.state_dict()}, ALONE
    )
    other = torch.nn.Linear(3, 2)
    taken = torch.optim.AdamW(other.parameters(), lr=7.0)
    sharding.load_network(other, saved["network"])
    sharding.load_optimizer(taken, saved["optimizer"])
    assert torch.equal(other.weight, network.weight)
    assert taken.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    moments = (o.state[n.weight]["exp_avg"] for o, n in ((optimizer, network), (taken, other)))
    assert torch.equal(*moments)
    assert not sharding.is_sharded(network)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("weight", torch.zeros(2, 4), r"weight: 2x4, not 2x3"),
        ("more", torch.zeros(()), r"more: one number, not none"),
        ("bias", None, r"bias: none, not 2"),
    ],
)
def test_weights_of_another_network_are_named(name, tensor, words):
    network = torch.nn.Linear(3, 2)
    state = {**network.state_dict(), name: tensor}
    with pytest.raises(UserError, match=rf"^its file has other weights than this model \({words}"):
        sharding.check_fits("its file", network, {n: v for n, v in state.items() if v is not None})


def test_a_checkpoint_of_another_run_is_refused_in_one_line(films, tmp_path, capsys):
    overrides = {"train__effective_batch": 4, "train__steps": 1, "train__micro_batch": 4}
    assert pretrain(films, tmp_path / "a", **overrides) == 0
    assert pretrain(films, tmp_path / "b", **overrides, head__prototypes=33) == 0
    for file in (tmp_path / "a" / "checkpoints").iterdir():
        (tmp_path / "b" / "checkpoints" / file.name).write_bytes(file.read_bytes())
    capsys.readouterr()
    again = overrides | {"head__prototypes": 33}
    assert pretrain(films, tmp_path / "b", "--resume", **again) == 2
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0
    assert "b has other weights than this model (dino_head.last_layer: 61x24, not 33x24)" in line


def test_an_old_pytorch_is_named(monkeypatch):
    needed = "set_reduce_scatter_unused_params"
    if hasattr(sharding.FSDPModule, needed):
        sharding.check_torch()
    monkeypatch.delattr(sharding.FSDPModule, needed, raising=False)
    with pytest.raises(UserError, match=r"needs PyTorch 2.13 or later; this is 2"):
        sharding.check_torch()
