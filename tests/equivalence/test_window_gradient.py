"""The flagship: the gradient is that of the effective batch, whatever the micro-batch."""

import pytest
import torch
from torch.nn import functional as F

from dino_x.training.build import statistic_of
from tests.equivalence.conftest import relative_error
from tests.model.released_format import network

SIZES = [1, 2, 8]
NEW_MODEL = ("width", "depth", "heads", "patch_size", "layerscale")


@pytest.mark.parametrize("centering", ["sinkhorn", "softmax"])
@pytest.mark.parametrize("size", SIZES)
def test_gradient_does_not_depend_on_the_micro_batch(bench, size, centering):
    step = bench(loss__centering=centering)
    terms_whole, whole, centers_whole = step.exact(16)
    terms, gradient, centers = step.exact(size)
    assert {"dino", "ibot", "koleo"} <= set(terms)
    assert relative_error(gradient, whole) < 1e-10
    for name, value in terms_whole.items():
        assert terms[name] == pytest.approx(value, rel=1e-10)
    for head in ("dino", "ibot"):
        center_K = getattr(centers, head).center_K
        expected_K = getattr(centers_whole, head).center_K
        torch.testing.assert_close(center_K, expected_K, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_gradient_with_a_koleo_group_that_spans_micro_batches(bench, size):
    step = bench(loss__koleo_group=4, loss__koleo_weight=1.0)
    _, whole, _ = step.exact(16)
    _, gradient, _ = step.exact(size)
    assert relative_error(gradient, whole) < 1e-10
    _, other, _ = bench(loss__koleo_group=8, loss__koleo_weight=1.0).exact(16)
    assert relative_error(other, whole) > 1e-3, "the group must matter, or the test shows nothing"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("term", ["all", "sinkhorn alone", "koleo alone"])
def test_negative_control_naive_accumulation_has_another_gradient(bench, size, term):
    weights = {"sinkhorn alone": {"loss__koleo_weight": 0}}.get(term, {})
    if term == "koleo alone":
        if size == 1:
            pytest.skip("KoLeo of one image does not exist, which is the point")
        weights = {"loss__dino_weight": 0, "loss__ibot_weight": 0}
    if term == "all" and size == 1:
        weights = {"loss__koleo_weight": 0}
    step = bench(**weights)
    _, whole, _ = step.exact(16)
    _, naive, _ = step.naive(size)
    assert relative_error(naive, whole) > 1e-2


def test_naive_accumulation_of_one_micro_batch_is_exact(bench):
    """So the control above differs by its scope alone, not by some other mistake."""
    step = bench()
    _, whole, _ = step.exact(16)
    _, naive, _ = step.naive(16)
    assert torch.equal(naive, whole)


def test_reference_losses_give_the_same_gradient(bench):
    _, fused, _ = bench().exact(2)
    _, reference, _ = bench(loss__implementation="reference").exact(2)
    assert relative_error(fused, reference) < 1e-10


@pytest.mark.parametrize(("local_crops", "tolerance"), [(0, 1e-10), (3, 1e-6)])
def test_gradient_of_a_dinov2_that_was_loaded(bench, tmp_path, local_crops, tolerance):
    """Local crops need interpolated positions, which transformers computes in float32."""
    network("dinov2 registers").save_pretrained(tmp_path / "m")
    loaded = dict.fromkeys(f"model__{name}" for name in NEW_MODEL)
    loaded |= {"model__name": str(tmp_path / "m"), "views__local_crops": local_crops}
    step = bench(**loaded)
    _, whole, _ = step.exact(16)
    _, gradient, _ = step.exact(2)
    assert relative_error(gradient, whole) < tolerance
    positions = step.steps.student.backbone.vit.embeddings.position_embeddings
    assert positions.grad.abs().max() > 0


def plain_sinkhorn(logits_NK, iterations):
    """The published algorithm: scale rows and columns of exp(logits) in turn, targets [N, K]."""
    q_KN = torch.exp(logits_NK).T
    rows, columns = q_KN.shape
    q_KN = q_KN / q_KN.sum()
    for _ in range(iterations):
        q_KN = q_KN / q_KN.sum(dim=1, keepdim=True) / rows
        q_KN = q_KN / q_KN.sum(dim=0, keepdim=True) / columns
    return (q_KN * columns).T


def plain_koleo(features_BF):
    """KoLeo of one group, by all distances."""
    features = F.normalize(features_BF, dim=1)
    itself = torch.eye(len(features), device=features.device)
    distances = torch.cdist(features, features) + 10 * itself
    return -torch.log(distances.min(dim=1).values + 1e-8).mean()


def test_gradient_is_that_of_the_plain_loss_written_out(bench):
    """DINO + iBOT + KoLeo on the whole batch, from the papers, with every logit materialised."""
    step = bench()
    terms, gradient, _ = step.exact(2)
    student, teacher, loss = step.steps.student, step.steps.teacher, step.options.loss
    student.zero_grad(set_to_none=True)
    (micro,) = step.micro_batches(16)
    masks = micro.masks()
    with torch.no_grad():
        cls, patches = teacher(micro.global_crops(), None, None)
        to_logits = [
            (teacher.dino_head(cls), teacher.dino_head.prototypes()),
            (teacher.ibot_head(patches[masks]), teacher.ibot_head.prototypes()),
        ]
        dino_targets, ibot_targets = (
            plain_sinkhorn(z @ w.T / step.temperature, 3) for z, w in to_logits
        )
    global_cls, patches = student(micro.global_crops(), masks, micro.global_randomness())
    local_cls, _ = student(micro.local_crops(), None, micro.local_randomness())

    def log_probabilities(tokens, head):
        return F.log_softmax(head(tokens) @ head.prototypes().T / loss.student_temperature, dim=-1)

    views = log_probabilities(torch.cat([global_cls, local_cls]), student.dino_head).view(5, 16, -1)
    targets = dino_targets.view(2, 16, -1)
    pairs = [(s, t) for s in range(5) for t in range(2) if s != t]
    dino = -sum((targets[t] * views[s]).sum(-1).mean() for s, t in pairs) / len(pairs)
    patch_loss = -(ibot_targets * log_probabilities(patches[masks], student.ibot_head)).sum(-1)
    counts = masks.sum(dim=1, keepdim=True).expand_as(masks)[masks]
    ibot = (patch_loss / counts).sum() / masks.any(dim=1).sum()
    koleo = sum(plain_koleo(view) for view in global_cls.view(2, 16, -1))
    (dino + loss.ibot_weight * ibot + loss.koleo_weight * koleo).backward()
    expected = torch.cat([weight.grad.flatten() for weight in student.parameters()])
    assert terms["dino"] == pytest.approx(dino.item(), rel=1e-10)
    assert terms["ibot"] == pytest.approx(ibot.item(), rel=1e-10)
    assert terms["koleo"] == pytest.approx(koleo.item(), rel=1e-6)  # its epsilon is our own
    assert relative_error(gradient, expected) < 1e-6


@pytest.mark.parametrize("size", [1, 8])
def test_gradient_with_heads_of_different_size(bench, size):
    """As DINOv3's 7B has them: 262,144 prototypes for DINO and 98,304 for iBOT."""
    step = bench(head__ibot_prototypes=37, head__ibot_bottleneck=10, loss__centering="softmax")
    _, whole, _ = step.exact(16)
    terms, gradient, state = step.exact(size)
    assert relative_error(gradient, whole) < 1e-10
    assert "ibot" in terms
    assert (len(state.dino.center_K), len(state.ibot.center_K)) == (61, 37)


SIGREG = {
    "loss__regularizer": "sigreg", "loss__sigreg_weight": 1.0, "loss__sigreg_directions": 50,
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_sigreg_is_that_of_the_effective_batch(bench, size):
    step = bench(**SIGREG)
    terms_whole, whole, _ = step.exact(16)
    terms, gradient, _ = step.exact(size)
    assert set(terms) == {"dino", "ibot", "sigreg", "loss"}
    assert relative_error(gradient, whole) < 1e-10
    for name, value in terms_whole.items():
        assert terms[name] == pytest.approx(value, rel=1e-10)
    without = bench(loss__regularizer="none").exact(16)[1]
    assert relative_error(without, whole) > 1e-2, "the term must matter"


@pytest.mark.parametrize("size", SIZES)
def test_negative_control_sigreg_of_each_micro_batch_has_another_gradient(bench, size):
    step = bench(**SIGREG, loss__dino_weight=0, loss__ibot_weight=0)
    _, whole, _ = step.exact(16)
    _, naive, _ = step.naive(size)
    assert relative_error(naive, whole) > 1e-2


def test_without_a_regularizer_there_is_no_such_term(bench):
    terms, _, _ = bench(loss__regularizer="none").exact(2)
    assert set(terms) == {"dino", "ibot", "loss"}


def test_each_step_draws_other_directions_and_the_same_again(bench):
    options = bench(**SIGREG).options
    seeds = [statistic_of(options, step).seed for step in (0, 1, 2, 0)]
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 3
