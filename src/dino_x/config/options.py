"""Every option of a run: its meaning, its check, its default. The presets are in presets.py.

The command line, the saved ``config.yaml`` and the documentation come from these classes.
Defaults are DINOv3's published values wherever it has one (Simeoni et al. 2025, and the
configuration released with it); what is ours is said so.
"""

from typing import Literal

from dino_x.config.image_options import (
    CropSizes,  # noqa: F401 offered here with the others
    DataOptions,
    MaskOptions,
    ViewOptions,
    WindowOptions,
)
from dino_x.config.loss_options import GramOptions, LossOptions
from dino_x.config.section import Pixels, PositiveInt, Section, Share, Width, option


class ModelOptions(Section):
    """The backbone. A name fixes the sizes; each can be set by itself."""

    name: str = option(
        "vits16",
        "A size (vit-tiny, vits16, vitb16, vitl16), or weights to start from: a RUN, a"
        " folder, a name on the hub, a .pth file.",
    )
    allow_partial: bool = option(
        False,
        "Start even if less than 99% of the tensors can be loaded; the others get new weights.",
    )
    heads_from: Literal["auto", "new", "run"] = option(
        "auto",
        "Projection heads: new ones, or those of the RUN that the model is. auto takes"
        " the RUN's if it has some.",
    )
    channels: int | None = option(
        None,
        "Number of input channels; null keeps those of loaded weights, and is 3 for a new"
        " model. Grey images keep their features. Any number but 1 and 3 takes images of just"
        " so many channels, all of which are used.",
        ge=1,
        le=512,
    )
    width: Width | None = option(None, "Number of features of a token, D.")
    depth: Width | None = option(None, "Number of layers.")
    heads: Width | None = option(None, "Number of attention heads.")
    patch_size: Pixels | None = option(
        None, "Side of a patch in pixels; the patch kernels of loaded weights are resized to it."
    )
    registers: int | None = option(None, "Number of register tokens.", ge=0)
    layerscale: float | None = option(None, "Initial value of LayerScale in a new model.", gt=0)
    init: Literal["normal", "fan_in"] = option(
        "normal",
        "Initial weights of a new model: normal has a standard deviation of 0.02, fan_in"
        " of sqrt(1 / (2 * width)).",
    )
    drop_path: float = option(0.3, "Rate of stochastic depth, the same in every layer.", ge=0, lt=1)
    rope_rescale: float | None = option(
        2.0,
        "In training, RoPE coordinates are multiplied by a random number between 1/x and"
        " x; null turns that off.",
        gt=1,
    )
    rope_scope: Literal["block", "forward"] = option(
        "block",
        "block draws that number for each block, as DINOv3's training does; forward draws one"
        " for all blocks, as transformers does. Both draw one for each kind of crop.",
    )


class HeadOptions(Section):
    """The projection heads, one for DINO and one for iBOT; alike unless they are told apart."""

    prototypes: PositiveInt = option(65536, "Number of prototypes, K.")
    layers: Width = option(3, "Number of layers of the MLP.")
    hidden: Width = option(2048, "Width of the hidden layers of the MLP.")
    bottleneck: Width = option(256, "Width of the L2-normalised bottleneck.")
    ibot_prototypes: PositiveInt | None = option(
        None, "Number of prototypes of the iBOT head; null takes head.prototypes."
    )
    ibot_hidden: Width | None = option(
        None, "Width of the hidden layers of the iBOT head; null takes head.hidden."
    )
    ibot_bottleneck: Width | None = option(
        None, "Width of the bottleneck of the iBOT head; null takes head.bottleneck."
    )
    init: Literal["normal", "fan_in"] = option(
        "normal",
        "Initial weights of the head: normal has a standard deviation of 0.02 as in"
        " DINOv3, fan_in of sqrt(1 / inputs).",
    )
    normalize_prototypes: bool = option(False, "Prototypes are on the unit sphere, as in DINOv2.")


class TeacherOptions(Section):
    """What makes the targets: the EMA teacher, or a frozen one that is distilled."""

    model: str | None = option(
        None,
        "RUN to distill: its frozen backbone and heads make the targets. null: the EMA"
        " teacher makes them.",
    )
    momentum: Share = option(
        0.992, "EMA momentum at the start; it rises to momentum_end along a cosine."
    )
    momentum_batch: PositiveInt | None = option(
        None,
        "Effective batch that momentum is for: it becomes momentum ** (effective batch /"
        " momentum_batch), so that the teacher remembers as many images at any batch. null takes"
        " momentum as it is.",
    )
    momentum_end: Share = option(1.0, "EMA momentum at the end.")
    temperature_start: float = option(0.04, "Temperature of the targets at the start.", gt=0)
    temperature: float = option(0.07, "Temperature of the targets after the warmup.", gt=0)
    temperature_warmup: int | None = option(
        None, "Number of steps of the temperature warmup; null is 30% of all steps.", ge=0
    )


class OptimOptions(Section):
    """AdamW and its schedules."""

    lr: float = option(0.004, "Peak learning rate for an effective batch of lr_batch.", gt=0)
    lr_batch: PositiveInt = option(
        1024,
        "Effective batch that lr is for; the learning rate is multiplied by"
        " sqrt(effective batch / lr_batch).",
    )
    lr_end: float | None = option(
        1e-6,
        "Learning rate at the end of the cosine for an effective batch of lr_batch, multiplied as"
        " lr is; null keeps the peak.",
        ge=0,
    )
    warmup: int | None = option(
        None, "Number of steps of linear warmup; null is 10% of all steps.", ge=0
    )
    weight_decay: float = option(
        0.04, "Weight decay at the start; it rises to weight_decay_end along a cosine.", ge=0
    )
    weight_decay_end: float = option(0.4, "Weight decay at the end.", ge=0)
    layer_decay: float = option(
        0.9, "Factor of the learning rate from one layer to the layer below it.", gt=0, le=1
    )
    patch_embed_lr: float = option(0.2, "Factor of the learning rate of the patch embedding.", ge=0)
    clip: float = option(
        3.0, "Gradients with a larger norm are scaled down to it; 0 turns that off.", ge=0
    )
    clip_scope: Literal["part", "joint"] = option(
        "part",
        "Whose norm is compared with clip: part is that of the backbone and of each head by"
        " itself, as in DINOv3; joint is that of all together.",
    )
    freeze_last_layer: int | None = option(
        None,
        "Number of steps in which the prototypes are not trained; null is 1% of all steps.",
        ge=0,
    )
    freeze_backbone: int | None = option(
        None, "Number of steps in which only the heads are trained; null takes the preset's.", ge=0
    )
    beta1: float = option(0.9, "First beta of AdamW.", ge=0, lt=1)
    beta2: float = option(0.999, "Second beta of AdamW.", ge=0, lt=1)


class TrainOptions(Section):
    """How long, in what portions, on what."""

    effective_batch: PositiveInt = option(256, "Number of images that an optimizer step looks at.")
    micro_batch: PositiveInt | Literal["auto"] = option(
        "auto",
        "Number of images that go through the network together. It changes memory and"
        " speed, and nothing else.",
    )
    steps: PositiveInt | None = option(None, "Number of optimizer steps; null takes the preset's.")
    seed: int = option(0, "Seed of everything random.", ge=0, le=2**63 - 1)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "Device to train on.")
    precision: Literal["fp32", "bf16", "fp64"] = option(
        "fp32", "Precision of training; bf16 is mixed precision."
    )
    activation_checkpointing: bool = option(
        False,
        "Compute activations again in the backward pass. It takes much less memory, and a"
        " third more time.",
    )
    compile: bool = option(
        False,
        "Compile the blocks with torch.compile. It takes minutes at the start, and gains"
        " nothing on a CPU.",
    )
    skip_not_finite: int = option(
        3,
        "Steps with NaN or infinity in loss or gradient are skipped. After so many in a"
        " row the run returns to its last checkpoint, once. 0 stops at the first.",
        ge=0,
    )
    backoff: float = option(
        0.5, "Factor of the learning rate when a run returns to a checkpoint.", gt=0, lt=1
    )
    shard: Literal["none", "full"] = option(
        "none",
        "With several processes, full shards networks and optimizer over them, for models"
        " that do not fit on one GPU. It changes memory and speed, and nothing else.",
    )


class CheckpointOptions(Section):
    """What is kept on disk."""

    every: PositiveInt = option(
        100, "Number of steps between checkpoints; the last step always has one."
    )
    keep: PositiveInt = option(2, "Number of newest checkpoints that are kept.")
    keep_best: bool = option(
        False,
        "Keep the checkpoint with the best online evaluation as well. It is no choice on unseen"
        " images: evaluate it on others.",
    )
    background: bool = option(
        True, "Write checkpoints while training continues. It takes memory for a copy of the state."
    )


class ReportOptions(Section):
    """The page about the run, report.html. None of it changes the training."""

    page: bool = option(True, "Write RUN/report.html at the end of the run.")
    images: bool = option(True, "Show images on the page. Turn it off if text is burnt into them.")
    log: Literal["none", "wandb", "mlflow", "trackio"] = option(
        "none",
        "Logger that gets the figures and settings of the run as well, without paths. It is local"
        " unless its own variables say otherwise, and has to be installed.",
    )
    snapshots: bool = option(
        True, "Keep the patch features of 6 images at 6 steps, to show how they change."
    )


class HealthOptions(Section):
    """What watches a run. It changes nothing about the trajectory."""

    every: int = option(
        25,
        "Number of steps between two looks at features, targets and weights; 0 turns health off.",
        ge=0,
    )
    rows: int = option(512, "Largest number of views that are looked at.", ge=4)
    on_collapse: Literal["warn", "stop"] = option(
        "warn",
        "What happens if a run has collapsed or diverges: warn says so, stop saves a"
        " checkpoint and stops.",
    )


class OnlineOptions(Section):
    """A small evaluation of the teacher while training. It changes nothing about the trajectory."""

    every: int | None = option(
        None,
        "Number of steps between two evaluations; null is about 10 evaluations a run, 0"
        " turns them off.",
        ge=0,
    )
    images: int = option(
        512, "Largest number of images that are evaluated: references and queries of kNN.", ge=2
    )
    patience: PositiveInt | None = option(
        None,
        "The run ends early after so many evaluations in a row without a new best one; null goes on"
        " to the last step.",
    )


class Options(Section):
    """All options of a run."""

    preset: Literal[
        "auto", "try", "small", "dinov3", "dinov3-vitl", "dinov3-7b", "continue", "highres"
    ] = option(
        "auto",
        "Preset that the defaults come from. try trains a very small network in minutes, on a CPU,"
        " too. dinov3 is dinov3-vitl, DINOv3's recipe for a ViT-L"
        " on ImageNet; dinov3-7b is the recipe of its largest model.",
    )
    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    head: HeadOptions = HeadOptions()
    views: ViewOptions = ViewOptions()
    windows: WindowOptions = WindowOptions()
    masks: MaskOptions = MaskOptions()
    loss: LossOptions = LossOptions()
    gram: GramOptions = GramOptions()
    teacher: TeacherOptions = TeacherOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    report: ReportOptions = ReportOptions()
    health: HealthOptions = HealthOptions()
    online: OnlineOptions = OnlineOptions()


# What may differ when a run is resumed: none of it changes the trajectory.
FREE_ON_RESUME = (
    "checkpoint.keep_best",
    "online.patience",
    "data.paths",  # the images must be the same, wherever they are
    "data.labels",
    "train.micro_batch",
    "train.device",
    "train.activation_checkpointing",
    "train.compile",
    "train.shard",
    "data.workers",
    "data.cache_mb",
    "data.verify",
    "data.cache",
    "data.cache_gb",
    "data.index",
    "data.decode_in",
    "data.fetches",
    "data.row_groups_mb",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.background",
    "report.page",
    "report.images",
    "report.log",
    "report.snapshots",
    "health.every",
    "health.rows",
    "health.on_collapse",
    "online.every",
    "online.images",
)
