"""From resolved options to the networks, the state and the step that a run starts with."""

from dataclasses import dataclass

import torch
from torch import nn

from dino_x.config.options import LossOptions, Options
from dino_x.distributed import sharding
from dino_x.distributed.processes import Replicated
from dino_x.exact import CenteringState, ExactStep, HeadState, KoLeo, SIGReg, Sinkhorn, Softmax
from dino_x.exact.centering import Centering
from dino_x.exact.step import no_fault
from dino_x.losses.ranks import Ranks
from dino_x.machine.device import autocast, dtype_of, loss_products
from dino_x.model.backbone import Backbone
from dino_x.model.teacher import Network, build_student, build_teacher
from dino_x.randomness import generator
from dino_x.runs.start import take_heads
from dino_x.training.optimizer import build_optimizer
from dino_x.training.step.distillation import distilled_teacher, fingerprint
from dino_x.training.step.gram import first_gram_teacher
from dino_x.training.step.networks import PlannedNetworks
from dino_x.training.train_state import TrainState


@dataclass(frozen=True)
class Built:
    """What a run starts with.

    Attributes:
        state: before the first step.
        targets_of: the network that makes targets: the teacher, or one that is distilled.
    """

    state: TrainState
    targets_of: Network


def build(
    options: Options,
    device: torch.device,
    backbone: Backbone | None,
    ranks: Ranks,
    *,
    sharded: bool,
) -> Built:
    """Student, teacher, optimizer and centering of a run, on their device.

    Args:
        options: resolved.
        device: of this process.
        backbone: the student's, if it is loaded already.
        ranks: the processes of the run.
        sharded: whether each process holds a part of the networks.

    Raises: UserError for weights or heads that do not fit.
    """
    student = build_student(options, backbone)
    if options.model.heads_from == "run":
        take_heads(student, options.model.name)
    student = student.to(dtype_of(options.train.precision))
    student.backbone.recompute = options.train.activation_checkpointing
    teacher = build_teacher(student)
    frozen = distilled_teacher(options, student)
    gram = first_gram_teacher(options, teacher.backbone)
    targets_of = frozen or teacher
    distilled = None if frozen is None else fingerprint(frozen)
    centering = first_centering(options, targets_of, device)
    networks: list[nn.Module] = [student, teacher, targets_of]
    if gram is not None:
        networks.append(gram.backbone)
    place(networks, device, ranks, sharded=sharded)
    optimizer = build_optimizer(student, options.optim)
    state = TrainState(student, teacher, optimizer, centering, gram, distilled)
    return Built(state, targets_of)


def place(networks: list[nn.Module], device: torch.device, ranks: Ranks, *, sharded: bool) -> None:
    """Networks from the CPU to the device: whole, or this process's part of them."""
    for network in dict.fromkeys(networks):
        if sharded:
            sharding.shard(network, device, ranks)
        else:
            network.to(device)


def first_centering(options: Options, network: Network, device: torch.device) -> CenteringState:
    """Centers of zeros and empty queues, for the heads of the network that makes targets."""
    dtype = dtype_of(options.train.precision)
    states = []
    for head in (network.dino_head, network.ibot_head):
        prototypes, width = head.last_layer.shape
        bottleneck_D = torch.empty(width, device=device, dtype=dtype)
        states.append(HeadState.first(prototypes, bottleneck_D, options.loss.queue))
    return CenteringState(*states)


def step_of_run(
    options: Options, built: Built, device: torch.device, processes: Replicated
) -> ExactStep:
    """The exact step of a run; the centering is resolved."""
    loss = options.loss
    return ExactStep(
        PlannedNetworks(built.state.student, built.targets_of, built.state.distilled is not None),
        centering=centering_of(loss, options.train.effective_batch),
        statistic=statistic_of(options, step=0),
        dino_weight=loss.dino_weight,
        ibot_weight=loss.ibot_weight,
        student_temperature=loss.student_temperature,
        implementation=loss.implementation,
        precision=autocast(options.train.precision, device),
        products=loss_products(options.train.precision, device),
        processes=processes,
        fault=no_fault,
    )


def centering_of(loss: LossOptions, effective_batch: int) -> Centering:
    """Sinkhorn-Knopp or softmax centering, as the options say."""
    if loss.centering != "sinkhorn":
        steps = effective_batch / loss.center_batch if loss.center_batch else 1.0
        return Softmax(loss.center_momentum**steps)
    implementation = "streaming" if loss.implementation == "fused" else "reference"
    return Sinkhorn(loss.sinkhorn_iterations, loss.sinkhorn_relaxation, implementation)


def statistic_of(options: Options, step: int) -> KoLeo | SIGReg:
    """The term of a step that looks at the whole batch; ``none`` is one without a weight.

    SIGReg's directions are drawn from (seed, step), so that they are the same in all processes and
    micro-batches, and after a restart.
    """
    loss = options.loss
    if loss.regularizer == "none":
        return KoLeo(0.0)
    if loss.regularizer == "koleo":
        return KoLeo(loss.koleo_weight, group_of(loss))
    seed = int(generator(options.train.seed, step, "sigreg directions").integers(2**62))
    return SIGReg(loss.sigreg_weight, loss.sigreg_directions, loss.sigreg_knots, seed)


def group_of(loss: LossOptions) -> int | None:
    """Images of a KoLeo group; None is the effective batch."""
    return None if loss.koleo_group == "effective" else loss.koleo_group
