"""Start from weights: a run, a folder or hub name of transformers, or a released ``.pth`` file."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from dino_x.config.options import ModelOptions
from dino_x.errors import UserError
from dino_x.model.accounting import Accounting
from dino_x.model.families import CLASSES, PATCH_KERNELS, check_transformers, square
from dino_x.model.meta_format import LEFT_OUT, convert
from dino_x.model.patch_kernels import grey_kernels, repeated_kernels, resized_kernels
from dino_x.model.pretrained import (
    GREY,
    IMAGENET,
    Channels,
    Preparation,
    find_model,
    first_line,
    quiet_transformers,
    read_preparation,
    refuse_own_code,
)
from dino_x.model.weight_files import SUFFIXES

FIXED = ("width", "depth", "registers", "layerscale")  # come with weights and stay


@dataclass(frozen=True)
class Start:
    """A network with its weights, its preparation of images, and the accounting of its tensors."""

    vit: Any
    preparation: Preparation
    accounting: Accounting


def is_file_of_weights(name: str | Path) -> bool:
    """Whether a model's name is that of a file, such as ``.pth``, and not one on the hub."""
    return Path(name).suffix in SUFFIXES


def load_start(options: ModelOptions, seed: int = 0) -> Start:
    """The network that a run starts from, with channels and patches as the options ask.

    Args:
        options: ``name`` is no built-in size. ``channels`` and ``patch_size`` change the patch
            embedding by the rules in patch_kernels.py; ``heads`` counts where a ``.pth`` file does
            not say how many there are.
        seed: seed of the tensors that are not in the file.

    Raises: UserError if it is no model, of another architecture, or less than 99% could be loaded
        and ``allow_partial`` is off; and for options that cannot be changed.
    """
    name = options.name
    from_file = is_file_of_weights(name)
    fixed = FIXED if from_file else (*FIXED, "heads")
    for field in fixed:
        if getattr(options, field) is not None:
            raise UserError(
                f"model.{field} cannot be changed: model '{name}' is loaded with its"
                " weights; leave it out"
            )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = _from_file(options) if from_file else _from_folder(name)
        start.accounting.check(name, options.allow_partial)
        return with_patch_size(with_channels(start, options.channels), options.patch_size)


def _from_folder(name: str) -> Start:
    """The network of a run, a folder or a hub name, as transformers loads it."""
    folder = find_model(name)
    try:
        refuse_own_code(folder, name)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # transformers has no common class for files that were made up
        raise UserError(f"model '{name}' cannot be loaded: {first_line(error)}") from error
    if config.model_type not in CLASSES:
        raise UserError(
            f"model '{name}' is a '{config.model_type}'; known are {', '.join(CLASSES)}"
        )
    check_transformers(config.model_type)
    if getattr(config, "use_mask_token", True) is False:
        config.use_mask_token = True  # iBOT needs one; it is counted as missing
    preparation = read_preparation(folder, config)
    try:
        loaded: Any = CLASSES[config.model_type].from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(f"model '{name}' cannot be loaded: {first_line(error)}") from error
    vit, info = loaded
    accounting = Accounting(
        total=len(vit.state_dict()),
        missing=tuple(sorted(info["missing_keys"])),
        wrong={
            key: shapes(found, expected) for key, found, expected in sorted(info["mismatched_keys"])
        },
        unused=dict.fromkeys(sorted(info["unexpected_keys"]), ""),
        assumed=()
        if preparation.stated
        else (mean_and_std_in_words(preparation.mean, preparation.std),),
    )
    return Start(vit, preparation, accounting)


def _from_file(options: ModelOptions) -> Start:
    """The network of a released ``.pth`` file, converted to transformers' names."""
    path = Path(options.name)
    if not path.is_file():
        raise UserError(f"no such file of weights: {path}")
    converted = convert(path, options.heads, allow_partial=options.allow_partial)
    check_transformers(converted.config.model_type)
    vit = CLASSES[converted.config.model_type](converted.config)
    expected = vit.state_dict()
    fits, missing, wrong = {}, [], {}
    for name, tensor in expected.items():
        found = converted.state.get(name)
        if found is None:
            missing.append(name)
        elif found.shape == tensor.shape:
            fits[name] = found
        else:
            wrong[name] = shapes(found.shape, tensor.shape)
    vit.load_state_dict(fits, strict=False)
    unused = dict.fromkeys((name for name in converted.state if name not in expected), "")
    for name, why in converted.unused.items():
        if not why or why == LEFT_OUT:
            unused[name] = why
    mean, std = GREY if converted.config.num_channels == 1 else IMAGENET
    eps = f"norm epsilon {converted.config.layer_norm_eps:g}"
    accounting = Accounting(
        total=len(expected),
        reshaped={name: how for name, how in converted.reshaped.items() if name in fits},
        missing=tuple(missing),
        wrong=wrong,
        unused=unused,
        assumed=(*converted.assumed, mean_and_std_in_words(mean, std), eps),
    )
    size = square(converted.config.image_size)
    return Start(vit, Preparation(size, mean, std, stated=False), accounting)


def mean_and_std_in_words(mean: Channels, std: Channels) -> str:
    """What is taken for the mean and std of images, with a warning where that may be wrong."""
    if len(mean) == 1:
        return f"mean {mean[0]:g} and std {std[0]:g} of images"
    return (
        "ImageNet's mean and std of images (the satellite models have others: give their folder,"
        " with its preprocessor_config.json)"
    )


def shapes(found: Any, expected: Any) -> str:
    """Two shapes in words, such as ``[7], not [24]``."""
    return f"{list(found)}, not {list(expected)}"


def with_channels(start: Start, channels: int | None) -> Start:
    """The network with another number of input channels; grey images keep their features.

    The kernels of several channels become those of one (`grey_kernels`), and these those of any
    number (`repeated_kernels`): the features of an image whose channels are all alike are exactly
    those that the network gave to it before, as grey.
    """
    old = start.preparation.channels
    if channels in (None, old):
        return start
    kernels, bias = _kernels(start.vit)
    assert channels is not None
    mean, std = start.preparation.mean, start.preparation.std
    steps = []
    if old > 1:
        kernels, bias, one_mean, one_std = grey_kernels(kernels, bias, mean, std)
        mean, std = (one_mean,), (one_std,)
        steps.append(f"summed over {old} channels, with their mean and std taken in")
    if channels > 1:
        kernels, mean, std = repeated_kernels(kernels, channels), mean * channels, std * channels
        steps.append(f"repeated for {channels} channels, divided by {channels}")
    how = "; ".join(steps)
    config = copy.deepcopy(start.vit.config)
    config.num_channels = channels
    preparation = replace(start.preparation, mean=mean, std=std)
    return _rebuilt(start, config, preparation, kernels, bias, how)


def with_patch_size(start: Start, size: int | None) -> Start:
    """The network for patches of another size; its grid of positions keeps its patches."""
    old = square(start.vit.config.patch_size)
    if size in (None, old):
        return start
    assert size is not None
    kernels, bias = _kernels(start.vit)
    config = copy.deepcopy(start.vit.config)
    config.patch_size = size
    config.image_size = square(config.image_size) // old * size
    preparation = replace(start.preparation, image_size=config.image_size)
    how = f"patches of {old} px resized to {size} px"
    return _rebuilt(start, config, preparation, resized_kernels(kernels, size), bias, how)


def _kernels(vit: Any) -> tuple[Tensor, Tensor]:
    convolution = vit.get_submodule(PATCH_KERNELS[vit.config.model_type])
    return convolution.weight.detach(), convolution.bias.detach()


def _rebuilt(
    start: Start, config: Any, preparation: Preparation, kernels: Tensor, bias: Tensor, how: str
) -> Start:
    """The same network with another patch embedding, accounted for."""
    layer = PATCH_KERNELS[config.model_type]
    vit: nn.Module = type(start.vit)(config)
    state = start.vit.state_dict() | {f"{layer}.weight": kernels, f"{layer}.bias": bias}
    vit.load_state_dict(state)
    before = start.accounting.reshaped.get(f"{layer}.weight")
    reshaped = {f"{layer}.weight": f"{before}, {how}" if before else how}
    accounting = replace(start.accounting, reshaped={**start.accounting.reshaped, **reshaped})
    return Start(vit.eval(), preparation, accounting)
