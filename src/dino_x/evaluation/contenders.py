"""The models that are compared: the model itself, its baselines, and others that the user named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dino_x.config.model_sizes import is_size
from dino_x.errors import UserError
from dino_x.evaluation.backbone import load_backbone
from dino_x.evaluation.baselines import random_weights
from dino_x.files import without_paths
from dino_x.machine.device import dtype_of
from dino_x.model.pretrained import Preparation
from dino_x.runs.folder import run_of

MODEL, RANDOM, PIXELS, START = "model", "random", "pixels", "start"
BASELINES = (RANDOM, PIXELS, START)


@dataclass(frozen=True)
class Contender:
    """A network with the preparation of images that it expects."""

    network: nn.Module
    preparation: Preparation


def load_contenders(
    model: str | Path,
    against: Sequence[str] = (),
    *,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
) -> tuple[dict[str, Contender], list[str]]:
    """All networks: ``model``, ``random``, ``start`` for a continued run, and those ``against`` it.

    Args:
        model: a run, a folder as transformers saves models, or a name on the hub.
        against: more of them; each keeps its own preparation.
        device: auto, cpu, cuda or mps.
        precision: fp32, bf16 or fp64.
        seed: of the random weights.

    Returns: the networks by name, and sentences for the user.

    Raises:
        UserError: for a model that cannot be loaded, and for a name that is taken. Starting weights
            that cannot be loaded are a sentence, as the run may have moved since.
    """
    for position, name in enumerate(against):
        if name in (MODEL, *BASELINES):
            raise UserError(f"--against {name}: that name is taken; write it as a path, ./{name}")
        if name in against[:position] or name == str(model):
            raise UserError(f"{name} would be compared with itself: name it once")
    trained = load_backbone(model, device=device, precision=precision)
    where = next(trained.model.parameters()).device
    untrained = random_weights(trained.config, seed).to(where, dtype_of(precision))
    contenders = {
        MODEL: Contender(trained.model, trained.preparation),
        RANDOM: Contender(untrained, trained.preparation),
    }
    warnings = _warn_of_assumptions("the model", trained.preparation)
    began = starting_weights(model)
    if began is not None:
        try:
            start = load_backbone(began, device=device, precision=precision)
            contenders[START] = Contender(start.model, start.preparation)
            warnings += _warn_of_assumptions("its start", start.preparation)
        except UserError as error:
            told = without_paths(str(error))
            warnings.append(f"the weights this run started from are not compared: {told}")
    for name in against:
        other = load_backbone(name, device=device, precision=precision)
        contenders[name] = Contender(other.model, other.preparation)
        warnings += _warn_of_assumptions(name, other.preparation)
    return contenders, warnings


def starting_weights(model: str | Path) -> str | None:
    """The model whose weights a run started from; None for new weights, or if it is no run.

    A run that cannot be read has none either: what is evaluated is its model.
    """
    run = run_of(model)
    if not run.exists:
        return None
    try:
        name = run.settings().get("model.name")
    except UserError:
        return None
    if name is None or is_size(name):
        return None
    return str(name)


def _warn_of_assumptions(whose: str, preparation: Preparation) -> list[str]:
    if preparation.stated:
        return []
    return [
        f"{whose} has no preprocessor_config.json: its image size, mean and std are assumed"
        f" ({preparation.image_size} px, {preparation.mean}, {preparation.std})"
    ]
