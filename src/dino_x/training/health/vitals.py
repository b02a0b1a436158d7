"""The numbers that health looks at: pure functions of a step's sample, gradients and weights.

R rows (views), V global views, S images, D bottleneck, F features, K prototypes.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dino_x.distributed.sharding import norms_of, whole
from dino_x.evaluation.spectrum import alpha_req, rankme
from dino_x.losses import transfer
from dino_x.losses.memory import working_bytes
from dino_x.model.teacher import Network
from dino_x.training.step.probe import ProbedRows

PARTS = ("patch_embedding", "layers", "dino_head", "ibot_head")
LAYER = "backbone.vit.model.layer."
WEIGHTS_A_TENSOR = 4096  # looked at, evenly spaced: 0.6 million of a ViT-S, in milliseconds


def part_of(name: str) -> str:
    """The part of ``Network`` that a parameter belongs to; the final norm counts as a layer."""
    if name.startswith(("dino_head", "ibot_head")):
        return name.partition(".")[0]
    return "patch_embedding" if ".embeddings." in name else "layers"


def layer_of(name: str) -> str | None:
    """``layer_07`` for a parameter of the eighth layer, None for one of no layer."""
    if not name.startswith(LAYER):
        return None
    return f"layer_{int(name.removeprefix(LAYER).partition('.')[0]):02d}"


@torch.no_grad()
def gradient_norms(student: Network, layers: bool) -> dict[str, float]:
    """Norm of ``.grad`` by part, and by layer too if asked. A part without gradients has none."""
    named = [(name, w.grad) for name, w in student.named_parameters() if w.grad is not None]
    if not named:
        return {}
    norms = transfer.read(norms_of([gradient for _, gradient in named]))
    squares: dict[str, float] = {}
    for (name, _), norm in zip(named, norms, strict=True):
        groups: list[str | None] = [part_of(name)]
        if layers:
            groups.append(layer_of(name))
        for group in filter(None, groups):
            squares[group] = squares.get(group, 0.0) + norm**2
    return {group: math.sqrt(squares[group]) for group in sorted(squares)}


@torch.no_grad()
def weights_by_part(network: nn.Module) -> dict[str, Tensor]:
    """A copy of some weights of each part: evenly spaced, at most ``WEIGHTS_A_TENSOR`` a tensor."""
    found: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, weight in network.named_parameters():
        step = max(1, weight.numel() // WEIGHTS_A_TENSOR)
        found[part_of(name)].append(whole(weight.detach()).flatten()[::step])
    return {part: torch.cat(weights) for part, weights in found.items() if weights}


def relative_distance(after: Iterable[Tensor], before: Iterable[Tensor]) -> float:
    """``|after - before| / |before|`` over all the tensors; 0 if ``before`` is 0."""
    pairs = list(zip(after, before, strict=True))
    change = math.sqrt(sum(float((a - b).double().square().sum()) for a, b in pairs))
    size = math.sqrt(sum(float(b.double().square().sum()) for _, b in pairs))
    return change / size if size else 0.0


@torch.no_grad()
def target_numbers(sample: ProbedRows, prototypes_KD: Tensor) -> dict[str, float]:
    """How the DINO targets of the sample spread over the prototypes.

    Never more logits than ``losses.memory.working_bytes`` at a time, or one row of them.

    Args:
        sample: its bottlenecks, bias and temperature.
        prototypes_KD: the teacher's of the same step, before its update.

    Returns: ``target_entropy`` and ``mean_target_entropy`` as shares of log K, ``prototypes``
        (exp of the entropy of the mean target), ``prototypes_first`` (that come first in some row).
    """
    rows_RD = sample.teacher_bottlenecks_VSD.flatten(0, 1).to(sample.dino_bias_K.dtype)
    rows_RD = rows_RD / sample.teacher_temperature
    prototypes_KD = prototypes_KD.to(rows_RD.dtype)
    count = len(prototypes_KD)
    rows_at_once = max(1, working_bytes(rows_RD.device) // (count * rows_RD.element_size()))
    mean_K = torch.zeros_like(sample.dino_bias_K)
    entropy, first = rows_RD.new_zeros(()), torch.zeros_like(mean_K, dtype=torch.bool)
    for chunk_CD in rows_RD.split(rows_at_once):
        log_target_CK = torch.addmm(sample.dino_bias_K, chunk_CD, prototypes_KD.T)
        first[log_target_CK.argmax(dim=1)] = True
        log_target_CK -= log_target_CK.logsumexp(dim=1, keepdim=True)
        target_CK = log_target_CK.exp()
        mean_K += target_CK.sum(dim=0) / len(rows_RD)
        entropy -= (target_CK * log_target_CK).sum() / len(rows_RD)
    mean_entropy = float(torch.special.entr(mean_K).sum())
    log_k = math.log(count) if count > 1 else 1.0
    return {
        "target_entropy": float(entropy) / log_k,
        "mean_target_entropy": mean_entropy / log_k,
        "prototypes": math.exp(mean_entropy),
        "prototypes_first": float(first.sum()),
    }


def feature_std(features_RF: Tensor) -> float:
    """Spread of L2-normalised features: the root of their variance, 0 to 1.

    ``sqrt(F)`` times the root mean square over features of each one's std, so that rows in all
    directions alike have 1, and equal rows 0. It is also ``sqrt(1 - |mean row|^2)``.

    Source: Chen and He 2021, "SimSiam", section 4.1, where a std near ``1 / sqrt(F)`` is health.
    """
    unit_RF = functional.normalize(features_RF.double(), dim=1)
    return math.sqrt(max(0.0, float((unit_RF - unit_RF.mean(dim=0)).square().sum(dim=1).mean())))


def feature_numbers(features_VSF: Tensor) -> dict[str, float]:
    """Spread, RankMe and alpha-ReQ of all views; alpha-ReQ only if there is one."""
    rows_RF = features_VSF.flatten(0, 1).detach().to("cpu", torch.float64)
    alpha = alpha_req(rows_RF)
    numbers = {"feature_std": feature_std(rows_RF), "rankme": rankme(rows_RF)}
    return numbers | ({"alpha_req": alpha} if math.isfinite(alpha) else {})


def neighbour_numbers(features_VSF: Tensor) -> dict[str, float]:
    """KoLeo's distances on the unit sphere, of the first view of each image to its nearest other.

    Empty for a single image.
    """
    unit_SF = functional.normalize(features_VSF[0].double(), dim=1)
    if len(unit_SF) < 2:
        return {}
    distance_SS = torch.cdist(unit_SF, unit_SF, compute_mode="donot_use_mm_for_euclid_dist")
    nearest_S = distance_SS.fill_diagonal_(torch.inf).amin(dim=1)
    return {
        "koleo_distance": float(nearest_S.mean()),
        "koleo_nearest": float(nearest_S.min()),
    }
