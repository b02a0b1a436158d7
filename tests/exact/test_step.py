"""The exact step in a loop of one's own: any backbone, any iterable of micro-batches."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dino_x.exact import (
    Batch,
    DinoNetwork,
    ExactStep,
    Head,
    KoLeo,
    MicroBatch,
    Networks,
    SIGReg,
    Sinkhorn,
    Softmax,
)
from dino_x.exact.processes import Processes
from dino_x.losses import koleo
from tests.training.step.waiting import counted_reads

IMAGES, PATCHES, WIDTH, LOCALS = 12, 6, 10, 3


class Toy(nn.Module):
    """A backbone that is none of ours: patches mix with the mean of all, with dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.patch = nn.Linear(4, WIDTH)
        self.mask_token = nn.Parameter(torch.randn(WIDTH))
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, crops_RN4, mask_RN):
        tokens = self.patch(crops_RN4)
        if mask_RN is not None:
            tokens = torch.where(mask_RN[..., None], self.mask_token, tokens)
        tokens = tokens + self.dropout(torch.tanh(self.mix(tokens.mean(dim=1, keepdim=True))))
        return tokens.mean(dim=1), tokens


class Wrong(nn.Module):
    """A backbone that returns other rows than it was given."""

    def forward(self, crops, masks):
        return torch.zeros(3, WIDTH), torch.zeros(3, PATCHES, WIDTH)


def networks(dropout=0.0, normalize=True):
    torch.manual_seed(0)
    heads = [
        Head(
            WIDTH,
            17,
            layers=2,
            hidden=8,
            bottleneck=5,
            init="fan_in",
            normalize_prototypes=normalize,
        )
        for _ in range(2)
    ]
    student = DinoNetwork(Toy(dropout), *heads).double()
    teacher = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    teacher.eval()
    return Networks(student, teacher)


def images(seed=1, mask=0.4):
    """Crops and masks by image: [B, 2, N, 4], [B, L, N, 4], [B, 2, N]."""
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randn(IMAGES, 2, PATCHES, 4, generator=generator, dtype=torch.float64)
    local = torch.randn(IMAGES, LOCALS, 3, 4, generator=generator, dtype=torch.float64)
    masks = torch.rand(IMAGES, 2, PATCHES, generator=generator) < mask
    masks[::5] = False  # some crops are not masked at all
    return crops, local, masks


def micro_batches(sizes, mask=0.4):
    crops, local, masks = images(mask=mask)
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        yield MicroBatch(
            crops[part].transpose(0, 1).flatten(0, 1),
            masks[part].transpose(0, 1).flatten(0, 1),
            local[part].transpose(0, 1).flatten(0, 1),
        )
        start += size


def gradient(sizes, dropout=0.0, mask=0.4, **settings):
    both = networks(dropout)
    step = ExactStep(both, **settings)
    state = step.first_state()
    torch.manual_seed(3)
    result = step.gradient(micro_batches(sizes, mask), state, 0.07)
    return flat_gradient(both.student), result


def flat_gradient(student):
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in student.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients])


def error(value, reference):
    return float((value - reference).norm() / reference.norm())


CUTS = [[1] * 12, [4, 4, 4], [5, 7], [3, 1, 8]]


@pytest.mark.parametrize("sizes", CUTS)
@pytest.mark.parametrize("centering", [Sinkhorn(), Softmax(0.8)])
def test_gradient_does_not_depend_on_the_cut(sizes, centering):
    whole, expected = gradient([IMAGES], centering=centering)
    found, result = gradient(sizes, centering=centering)
    assert set(result.terms) == {"dino", "ibot", "koleo", "loss"}
    assert error(found, whole) < 1e-10
    for name, value in expected.terms.items():
        assert result.terms[name] == pytest.approx(value, rel=1e-10)
    for head in ("dino", "ibot"):
        center_K = getattr(result.next_state, head).center_K
        torch.testing.assert_close(center_K, getattr(expected.next_state, head).center_K)


@pytest.mark.parametrize("group", [2, 3])
def test_koleo_in_groups_that_span_micro_batches(group):
    whole, _ = gradient([IMAGES], statistic=KoLeo(1.0, group))
    found, _ = gradient([1] * 12, statistic=KoLeo(1.0, group))
    assert error(found, whole) < 1e-10


@pytest.mark.parametrize("sizes", CUTS)
def test_negative_control_each_micro_batch_by_itself_has_another_gradient(sizes):
    """As plain gradient accumulation does: a batch for each micro-batch, gradients averaged."""
    weight = 0.1 if min(sizes) > 1 else 0.0  # KoLeo of one image does not exist
    whole, _ = gradient([IMAGES], statistic=KoLeo(weight))
    both = networks()
    step = ExactStep(both, statistic=KoLeo(weight))
    naive = torch.zeros_like(whole)
    for micro in micro_batches(sizes):
        both.student.zero_grad(set_to_none=True)
        step.gradient([micro], step.first_state(), 0.07)
        naive += micro.images / IMAGES * flat_gradient(both.student)
    assert error(naive, whole) > 1e-2


@pytest.mark.parametrize("sizes", CUTS)
def test_sigreg_is_exact_for_any_cut_and_not_for_each_micro_batch_by_itself(sizes):
    statistic = SIGReg(1.0, directions=20, seed=3)
    terms = {"dino_weight": 0.0, "ibot_weight": 0.0, "statistic": statistic}
    whole, expected = gradient([IMAGES], **terms)
    found, result = gradient(sizes, **terms)
    assert error(found, whole) < 1e-10
    assert result.terms["sigreg"] == pytest.approx(expected.terms["sigreg"], rel=1e-10)
    both = networks()
    step = ExactStep(both, **terms)
    naive = torch.zeros_like(whole)
    for micro in micro_batches(sizes):
        both.student.zero_grad(set_to_none=True)
        step.gradient([micro], step.first_state(), 0.07)
        naive += micro.images / IMAGES * flat_gradient(both.student)
    assert error(naive, whole) > 1e-2
    other, _ = gradient(sizes, **terms | {"statistic": SIGReg(1.0, directions=20, seed=4)})
    assert error(other, whole) > 1e-3, "the directions must matter"


def test_dropout_is_replayed():
    """KoLeo's pass and the gradient's pass must see the same student, or its gradient is wrong."""
    both = networks(dropout=0.5)
    step = ExactStep(both, statistic=KoLeo(1.0))
    seen = []
    tokens = both.student_tokens

    def watched(micro, patches):
        found = tokens(micro, patches)
        seen.append(found[0].detach())
        return found

    both.student_tokens = watched
    step.gradient(micro_batches([4, 4, 4]), step.first_state(), 0.07)
    first, second = seen[:3], seen[3:]
    for before, after in zip(first[1:], second, strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(first[0], networks().student_tokens(placed([4, 4, 4])[0], "all")[0])


@pytest.mark.parametrize(("keep", "forwards"), [(True, 5), (False, 6)])
def test_the_first_micro_batch_goes_through_the_student_once(keep, forwards):
    """Its graph of KoLeo's pass is kept for the gradient's pass, and changes nothing."""
    whole, _ = gradient([12], statistic=KoLeo(1.0))
    both, processes = networks(), Processes()
    processes.keep_graphs = keep
    calls = []
    tokens = both.student_tokens
    both.student_tokens = lambda *asked: calls.append(asked) or tokens(*asked)
    step = ExactStep(both, statistic=KoLeo(1.0), processes=processes)
    step.gradient(micro_batches([4, 4, 4]), step.first_state(), 0.07)
    assert len(calls) == forwards
    assert error(flat_gradient(both.student), whole) < 1e-10


def placed(sizes):
    return list(Batch(micro_batches(sizes)).micro_batches())


def test_two_steps_draw_different_dropout():
    both = networks(dropout=0.5)
    step, state = ExactStep(both), ExactStep(both).first_state()
    losses = {step.gradient(micro_batches([6, 6]), state, 0.07).terms["loss"] for _ in range(3)}
    assert len(losses) == 3


def test_it_is_the_plain_loss_written_out():
    """DINO, iBOT and KoLeo of the whole batch from the papers, with all logits in memory."""
    both = networks()
    found, result = gradient([5, 7])
    (micro,) = micro_batches([IMAGES])
    masks, student, teacher = micro.masks, both.student, both.teacher

    def targets(bottlenecks, head):
        scores = torch.exp(bottlenecks @ head.prototypes().T / 0.07)
        for _ in range(3):
            scores = scores / scores.sum(dim=0, keepdim=True)
            scores = scores / scores.sum(dim=1, keepdim=True)
        return scores

    def log_probabilities(tokens, head):
        return F.log_softmax(head(tokens) @ head.prototypes().T / 0.1, dim=-1)

    cls, patches = teacher.backbone(micro.global_crops, None)
    dino_targets = targets(teacher.dino_head(cls), teacher.dino_head).view(2, IMAGES, -1)
    ibot_targets = targets(teacher.ibot_head(patches[masks]), teacher.ibot_head)
    cls, patches = student.backbone(micro.global_crops, masks)
    local_cls, _ = student.backbone(micro.local_crops, None)
    views = log_probabilities(torch.cat([cls, local_cls]), student.dino_head)
    views = views.view(2 + LOCALS, IMAGES, -1)
    pairs = [(s, t) for s in range(2 + LOCALS) for t in range(2) if s != t]
    dino = -sum((dino_targets[t] * views[s]).sum(-1).mean() for s, t in pairs) / len(pairs)
    patch_loss = -(ibot_targets * log_probabilities(patches[masks], student.ibot_head)).sum(-1)
    counts = masks.sum(dim=1, keepdim=True).expand_as(masks)[masks]
    ibot = (patch_loss / counts).sum() / masks.any(dim=1).sum()
    spread = sum(koleo(view) for view in cls.view(2, IMAGES, -1))
    loss = dino + ibot + 0.1 * spread
    loss.backward()
    expected = torch.cat([w.grad.flatten() for w in student.parameters()])
    assert result.terms["loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert error(found, expected) < 1e-8


def test_distillation_hides_no_patch_from_the_student():
    """DINOv3's distillation: iBOT compares patches that both networks see."""
    both = networks()
    both.hide_patches = False
    step = ExactStep(both)
    result = step.gradient(micro_batches([5, 7]), step.first_state(), 0.07)
    assert "ibot" in result.terms
    assert both.student.backbone.mask_token.grad is None
    _, masked = gradient([5, 7])
    assert result.terms["ibot"] != pytest.approx(masked.terms["ibot"], rel=1e-3)


@pytest.mark.parametrize("sizes", CUTS)
def test_pairs_with_a_local_crop_have_a_weight_of_their_own(sizes):
    """DINOv3's DINO term: the sum over global pairs and 0.5 x that over local ones, by all pairs.

    The term is linear in the weight, so three weights say what each kind of pair adds.
    """
    only_dino = {"ibot_weight": 0.0, "statistic": KoLeo(0.0)}
    both, result = gradient(sizes, **only_dino)
    half, of_half = gradient([IMAGES], local_weight=0.5, **only_dino)
    none, of_none = gradient(sizes, local_weight=0.0, **only_dino)
    assert error(half, (both + none) / 2) < 1e-10
    mean = (result.terms["dino"] + of_none.terms["dino"]) / 2
    assert of_half.terms["dino"] == pytest.approx(mean, rel=1e-10)
    pairs, global_pairs = 2 * (2 + LOCALS) - 2, 2
    assert of_none.terms["dino"] / result.terms["dino"] == pytest.approx(
        global_pairs / pairs, rel=0.15
    )


def test_what_a_step_reads_does_not_grow_with_its_micro_batches():
    both = networks()
    step, found = ExactStep(both), []
    for sizes in ([4, 4, 4], [1] * 12):
        with counted_reads() as reads:
            step.gradient(micro_batches(sizes), step.first_state(), 0.07)
        found.append(reads)
    assert set(found[0]) == {"read"}
    assert found[0] == found[1]


def test_nothing_masked_has_no_ibot_term():
    _, result = gradient([4, 8], mask=-1.0)
    assert "ibot" not in result.terms


def test_a_queue_changes_the_targets_and_moves_on():
    both = networks()
    step = ExactStep(both)
    state = step.first_state(queue=30)
    first = step.gradient(micro_batches([4, 8]), state, 0.07)
    assert len(first.next_state.dino.queue_QD) == 2 * IMAGES
    second = step.gradient(micro_batches([4, 8]), first.next_state, 0.07)
    assert len(second.next_state.dino.queue_QD) == 30
    assert second.terms["dino"] != first.terms["dino"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_crops": torch.zeros(3, 6, 4)}, "two global crops of each image"),
        ({"masks": torch.zeros(4, 6)}, "expected bool"),
        ({"masks": torch.zeros(3, 6, dtype=torch.bool)}, "one row a global crop"),
        ({"local_crops": torch.zeros(3, 3, 4)}, "multiple of the 2 images"),
    ],
)
def test_micro_batches_of_wrong_shape_are_refused(change, message):
    good = {
        "global_crops": torch.zeros(4, 6, 4),
        "masks": torch.zeros(4, 6, dtype=torch.bool),
        "local_crops": None,
    }
    with pytest.raises(ValueError, match=message):
        MicroBatch(**good | change)


def test_an_empty_batch_and_tokens_of_wrong_shape_are_refused():
    step = ExactStep(networks())
    with pytest.raises(ValueError, match="the effective batch is empty"):
        step.gradient([], step.first_state(), 0.07)
    step.networks.student.backbone = Wrong()
    with pytest.raises(ValueError, match="the student returned CLS tokens of shape"):
        step.gradient(micro_batches([IMAGES]), step.first_state(), 0.07)


def test_importing_it_loads_torch_alone():
    script = (
        "import sys, dino_x.exact;"
        "names = {name.split('.')[0] for name in sys.modules};"
        "print(sorted(names & {'pydicom', 'gdcm', 'pyarrow', 'transformers', 'pydantic', 'rich',"
        " 'yaml', 'nibabel', 'tifffile', 'PIL', 'sklearn'}))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
