"""Sharded networks, for models that do not fit on one GPU (PyTorch's FSDP2).

A block's weights are gathered just before it is needed and freed after it; its gradient is summed
over the processes and sharded as soon as a backward has made it. Teacher and optimizer are sharded
in the same way. What everything computes stays the same, to rounding.

The functions here work on whole networks too, and then leave them as they are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from dino_x.errors import UserError
from dino_x.losses.ranks import Ranks
from dino_x.model.backbone import Backbone
from dino_x.model.families import layers_of
from dino_x.model.head import Head


def shard(network: nn.Module, device: torch.device, ranks: Ranks) -> None:
    """Shard every backbone and head in a network, in place: each process keeps its shard.

    Each block is a unit that is gathered by itself. So are the rest of a backbone, and a head's
    MLP. Prototypes are a tensor that the head's ``prototypes()`` gathers.

    Args:
        network: whole, and the same in every process; best on the CPU, so that no GPU ever holds
            all of it.
        device: the device that the shards go to.
        ranks: two processes or more.
    """
    assert ranks.group is not None
    mesh = DeviceMesh.from_group(ranks.group, device.type)
    for part in list(network.modules()):  # a unit gets another class, so not while looking
        if isinstance(part, Backbone):
            for layer in layers_of(part.vit):
                _unit(layer, mesh)
            _unit(part, mesh)
        elif isinstance(part, Head):
            _unit(part.mlp, mesh)
            rows = part.last_layer
            rows_shard = distribute_tensor(rows.detach().to(device), mesh, [Shard(0)])
            part.last_layer = nn.Parameter(rows_shard, requires_grad=rows.requires_grad)


def _unit(module: nn.Module, mesh: DeviceMesh) -> None:
    """Make a module a unit, whose weights are gathered for its forward and its backward alone.

    Gradients are summed, where FSDP2 would take their mean: a micro-batch's loss is its share of
    the effective batch's already. A weight that one process does not use, as in a branch that
    stochastic depth drops for all of its rows, has a gradient of 0 there.
    """
    unit = fully_shard(module, mesh=mesh, reshard_after_forward=True)
    unit.set_gradient_divide_factor(1.0)
    unit.set_force_sum_reduction_for_comms(True)  # gloo has no product of a factor and a sum
    unit.set_reduce_scatter_unused_params(True, recurse=False)


def check_torch() -> None:
    """Refuse a PyTorch whose FSDP2 takes it that all processes use the same weights.

    Raises: UserError.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise UserError(
            f"train.shard=full needs PyTorch 2.13 or later; this is {torch.__version__}"
        )


def is_sharded(network: nn.Module) -> bool:
    """Whether a network is sharded."""
    return any(isinstance(weight, DTensor) for weight in network.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from its shards, by all processes at once."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def own_part(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor


def norms_of(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor; for sharded tensors with one message for all."""
    norms = torch.stack(torch._foreach_norm([own_part(tensor) for tensor in tensors]))
    first = tensors[0]
    if isinstance(first, DTensor):
        Ranks(first.device_mesh.get_group()).sum_(norms.square_())
        norms.sqrt_()
    return norms


def as_part(tensor: Tensor, like: Tensor) -> Tensor:
    """The shard of a whole tensor for this process, sharded as another tensor is."""
    if not isinstance(like, DTensor):
        return tensor
    where = like.device_mesh.device_type
    return distribute_tensor(
        tensor.to(where), like.device_mesh, like.placements, src_data_rank=None
    )


def gathered(state: Any, ranks: Ranks) -> Any:
    """A state dict with whole tensors in the place of shards: on the CPU of rank 0.

    Every process takes part, one tensor at a time; on the other ranks, sharded tensors become None.
    """
    if isinstance(state, DTensor):
        gathered_tensor = state.full_tensor()
        if ranks.rank == 0:
            return gathered_tensor.cpu()
        return None
    if isinstance(state, Mapping):
        return {key: gathered(value, ranks) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value, ranks) for value in state]
    return state


def load_network(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the weights of a whole one; each process takes its shard."""
    own = network.state_dict()
    network.load_state_dict({name: as_part(value, own[name]) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer the state of one over a whole network."""
    weights: list[Tensor] = []
    for group in optimizer.param_groups:
        weights += group["params"]
    shards = {}
    for number, values in state["state"].items():
        shards[number] = _moments_as(weights[number], values)
    optimizer.load_state_dict({**state, "state": shards})


def _moments_as(weight: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An optimizer's state of one weight, sharded as the weight is; counts of steps stay whole."""
    shards = {}
    for name, value in values.items():
        if value.shape == weight.shape:
            value = as_part(value, weight)
        shards[name] = value
    return shards


def check_fits(what: str, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse weights of another network.

    Raises: UserError naming the first tensor that is not there, or of another shape.
    """
    own = network.state_dict()
    for name in [*own, *state]:
        its, ours = _shape_in_words(state.get(name)), _shape_in_words(own.get(name))
        if its != ours:
            raise UserError(f"{what} has other weights than this model ({name}: {its}, not {ours})")


def _shape_in_words(tensor: Tensor | None) -> str:
    """The shape of a tensor for a message, such as ``3x4``."""
    if tensor is None:
        return "none"
    return "x".join(map(str, tensor.shape)) or "one number"


@torch.no_grad()
def copy_of(backbone: Backbone) -> Backbone:
    """A frozen copy of a sharded backbone, sharded in the same way; it is never gathered."""
    with torch.device("meta"):
        twin = Backbone(type(backbone.vit)(backbone.vit.config), 0.0)
    first = next(backbone.parameters())
    assert isinstance(first, DTensor)
    mesh = first.device_mesh
    twin.to(first.dtype).requires_grad_(False)
    shard(twin, first.device, Ranks(mesh.get_group()))
    twin.to_empty(device=first.device)
    twin.mean, twin.std, twin.accounting = backbone.mean, backbone.std, backbone.accounting
    for copies, tensors in (
        (twin.parameters(), backbone.parameters()),
        (twin.buffers(), backbone.buffers()),
    ):
        for copied, tensor in zip(copies, tensors, strict=True):
            own_part(copied).copy_(own_part(tensor))
    return twin
