"""Options that trade memory against time: the weights they give are those of a run without."""

import copy

import numpy as np
import pytest
import torch
import torch._dynamo

from dino_x.config.options import ModelOptions
from dino_x.model.backbone import ForwardRandomness, build_backbone
from tests.training.runs import pretrain, weights


def test_activation_checkpointing_changes_no_bit(films, tmp_path):
    settings = {"train__effective_batch": 16, "train__steps": 4, "model__drop_path": 0.3}
    assert pretrain(films, tmp_path / "plain", **settings) == 0
    settings["train__activation_checkpointing"] = "true"
    assert pretrain(films, tmp_path / "again", **settings) == 0
    plain, again = (weights(tmp_path / name, 4) for name in ("plain", "again"))
    assert plain.keys() == again.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, again[name]), name


def kept_for_backward(backbone, crops, randomness):
    """Bytes that the forward leaves for the backward pass, weights not counted."""
    weights = {parameter.data_ptr() for parameter in backbone.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = backbone(crops, None, randomness)
    return sum(storages.values()), outputs


def test_activation_checkpointing_keeps_a_tenth():
    options = ModelOptions(name="vit-tiny", width=64, depth=6, heads=2, patch_size=8)
    backbone = build_backbone(options, 64, seed=0)
    crops, randomness = torch.randn(4, 3, 64, 64), ForwardRandomness(np.ones((6, 2, 4), bool), 1.0)
    plain, _ = kept_for_backward(backbone, crops, randomness)
    backbone.recompute = True
    again, _ = kept_for_backward(backbone, crops, randomness)
    assert again < plain / 10


@pytest.mark.slow
def test_blocks_are_compiled_a_few_times_whatever_rows_are_kept():
    """PyTorch compiles a function 8 times at most, and then runs it as it is, without a word.

    As in training: the teacher, the student without and with gradients, global and local crops, in
    micro-batches of one image to three, of which stochastic depth keeps all, some, one or none.
    """
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    options = ModelOptions(name="vit-tiny", width=16, depth=2, heads=2, patch_size=8, drop_path=0.3)
    student, teacher = (build_backbone(options, 32, seed=0) for _ in range(2))
    teacher.requires_grad_(False)
    for network in (student, teacher):
        network.compile_blocks(backend)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rng = np.random.default_rng(0)
    for step in range(3):
        for side, views in ((32, 2), (16, 3)):
            rows = views * (1 + step % 3)
            crops = torch.randn(rows, 3, side, side)
            randomness = ForwardRandomness(rng.random((2, 2, rows)) >= 0.3, 1.0)
            looked = np.empty(0, dtype=np.int64)
            with torch.no_grad():
                teacher(crops, None, None)
                student(crops, None, randomness, looked)
            if side == 32:
                looked = np.sort(rng.choice(16 * rows, 5 + step, replace=False))
            sum(part.sum() for part in student(crops, None, randomness, looked)).backward()
    assert 8 < len(graphs) < 24
    assert not torch._dynamo.utils.counters["unimplemented"], "the limit was met"


def test_compiled_blocks_give_the_same():
    """For any number of rows, dropped or looked at. Without the last stage, which takes minutes."""
    options = ModelOptions(name="vit-tiny", width=16, depth=2, heads=2, patch_size=8, drop_path=0.3)
    plain = build_backbone(options, 32, seed=0).double()
    compiled = copy.deepcopy(plain)
    compiled.compile_blocks(backend="aot_eager")
    for rows in (3, 5):
        crops = torch.randn(rows, 3, 32, 32, dtype=torch.float64)
        keep = np.random.default_rng(rows).random((2, 2, rows)) >= 0.3
        looked_at = np.arange(0, 16 * rows, 5)
        found, expected = (
            network(crops, None, ForwardRandomness(keep, 1.0), looked_at)
            for network in (compiled, plain)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        sum(part.sum() for part in found).backward()
        sum(part.sum() for part in expected).backward()
        for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-10)
