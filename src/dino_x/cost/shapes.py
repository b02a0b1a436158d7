"""The sizes of a step as numbers, from which its memory and its products are counted.

B images of the effective batch, b of a micro-batch, T tokens of a crop, N patches, D features.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from dino_x.config.options import CropSizes, Options
from dino_x.distributed.shares import all_sizes, largest_share, parts_of_a_share
from dino_x.model.backbone import Backbone
from dino_x.model.families import layers_of, registers_of
from dino_x.model.head import Head
from dino_x.model.teacher import Network
from dino_x.views.sizes import GLOBAL_VIEWS, crop_sizes


@dataclass(frozen=True)
class Vit:
    """A backbone's sizes.

    Attributes:
        weights: all of its numbers, biases and tokens too.
        matrices: numbers in the matrices of one layer; each token is multiplied with each.
        width, depth, heads: D, layers, attention heads.
        gated: whether its MLP multiplies two branches.
        patch, channels: side of a patch in pixels, and input channels.
        extra: tokens beside the patches, CLS and registers.
        turned: whether queries and keys are turned by their positions (RoPE).
    """

    weights: int
    matrices: int
    width: int
    depth: int
    heads: int
    gated: bool
    patch: int
    channels: int
    extra: int
    turned: bool = True

    @classmethod
    def of(cls, backbone: Backbone) -> "Vit":
        """The sizes of a network on any device, meta too."""
        config, layers = backbone.vit.config, layers_of(backbone.vit)
        return cls(
            weights=numbers(backbone.parameters()),
            matrices=numbers(w for w in layers[0].parameters() if w.ndim == 2),
            width=backbone.width,
            depth=backbone.depth,
            heads=config.num_attention_heads,
            gated=bool(getattr(config, "use_gated_mlp", getattr(config, "use_swiglu_ffn", False))),
            patch=backbone.patch_size,
            channels=backbone.channels,
            extra=1 + registers_of(config),
            turned=backbone.rope is not None,
        )

    def patches(self, side: int) -> int:
        """The number of patches, N, of a crop of so many pixels."""
        return (side // self.patch) ** 2

    def tokens(self, side: int) -> int:
        """The number of tokens, T, of a crop of so many pixels."""
        return self.patches(side) + self.extra

    @property
    def after_attention(self) -> int:
        """Numbers in the matrices of one layer that follow attention: output projection, MLP."""
        return self.matrices - 3 * self.width**2

    @property
    def hidden(self) -> int:
        """The width of the MLP."""
        return (self.matrices - 4 * self.width**2) // ((3 if self.gated else 2) * self.width)


@dataclass(frozen=True)
class HeadShape:
    """A projection head's sizes: numbers of its MLP, hidden width and layers, D, K.

    ``matrices`` are the numbers of the MLP without biases, ``largest`` those of one of them.
    """

    mlp: int
    matrices: int
    largest: int
    features: int
    hidden: int
    layers: int
    bottleneck: int
    prototypes: int
    normalised: bool

    @classmethod
    def of(cls, head: Head) -> "HeadShape":
        """The sizes of a network's head."""
        linears = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
        prototypes, bottleneck = head.last_layer.shape
        return cls(
            mlp=numbers(head.mlp.parameters()),
            matrices=numbers(linear.weight for linear in linears),
            largest=max(linear.weight.numel() for linear in linears),
            features=linears[0].in_features,
            hidden=linears[-1].in_features,
            layers=len(linears),
            bottleneck=bottleneck,
            prototypes=prototypes,
            normalised=head.normalize_prototypes,
        )

    @classmethod
    def of_both(cls, network: Network) -> "HeadShape":
        """The sizes of each of a network's two heads; where they differ, the larger ones.

        What is calculated from it is then a little more than what is needed.
        """
        dino, ibot = cls.of(network.dino_head), cls.of(network.ibot_head)
        larger = {
            name: max(getattr(dino, name), getattr(ibot, name))
            for name in ("mlp", "matrices", "largest", "bottleneck", "prototypes")
        }
        return replace(dino, **larger)

    @property
    def weights(self) -> int:
        """The number of all weights of the head."""
        return self.mlp + self.prototypes * self.bottleneck


@dataclass(frozen=True)
class Step:
    """One optimizer step of one process, as numbers.

    Attributes:
        options: resolved; centering and KoLeo are decided.
        student, teacher: backbones; two of one size, unless a larger teacher is distilled.
        head, teacher_head: of each of their two heads.
        gram: the Gram teacher's backbone, if there is one.
        effective_batch, micro_batch, processes: images a step, images at once, processes.
        canvas: side of the squares that images are kept in, and
        channels: of these.
        images: in the data set; None if that is not known.
    """

    options: Options
    student: Vit
    teacher: Vit
    head: HeadShape
    teacher_head: HeadShape
    gram: Vit | None
    effective_batch: int
    micro_batch: int
    processes: int
    canvas: int
    channels: int
    images: int | None = None

    @classmethod
    def of(
        cls,
        options: Options,
        student: Network,
        *,
        targets: Network | None = None,
        gram: Backbone | None = None,
        micro_batch: int = 1,
        processes: int = 1,
        canvas: int,
        channels: int = 1,
        images: int | None = None,
    ) -> "Step":
        """The step of networks on any device.

        Args:
            options: resolved.
            student: trained.
            targets: what makes the targets, if it is not a copy of the student.
            gram: the Gram teacher; with none given, it is a copy of the student if there is one.
            micro_batch, processes, canvas, channels, images: see the class.
        """
        own = Vit.of(student.backbone)
        teacher = targets or student
        anchor = Vit.of(gram) if gram is not None else own
        return cls(
            options=options,
            student=own,
            teacher=Vit.of(teacher.backbone),
            head=HeadShape.of_both(student),
            teacher_head=HeadShape.of_both(teacher),
            gram=anchor if options.gram.weight else None,
            effective_batch=options.train.effective_batch,
            micro_batch=micro_batch,
            processes=processes,
            canvas=canvas,
            channels=channels,
            images=images,
        )

    def at(self, micro_batch: int) -> "Step":
        """The same step with another micro-batch."""
        return replace(self, micro_batch=micro_batch)

    @property
    def share(self) -> int:
        """Images of a step that are this process's; of the one that has the most."""
        return largest_share(self.effective_batch, self.processes)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a process in a step."""
        return parts_of_a_share(self.effective_batch, self.micro_batch, self.processes)

    @property
    def parts(self) -> int:
        """The number of shards of networks and optimizer, one a process."""
        return self.processes if self.options.train.shard == "full" else 1

    @property
    def sizes(self) -> list[CropSizes]:
        """Sets of crop sizes that steps have."""
        return crop_sizes(self.options)

    @property
    def largest(self) -> CropSizes:
        """The set that takes most memory."""
        return max(self.sizes, key=lambda one: (one.global_size, one.local_size))

    @property
    def locals(self) -> int:
        """The number of local crops an image."""
        return self.options.views.local_crops

    def masked(self, sizes: CropSizes) -> float:
        """Masked patches an image, on average."""
        masks = self.options.masks
        patches = self.student.patches(sizes.global_size)
        return GLOBAL_VIEWS * masks.probability * sum(masks.ratio) / 2 * patches

    @property
    def keep(self) -> float:
        """Share of the student's branches that stochastic depth keeps."""
        return 1.0 - self.options.model.drop_path

    def looked(self, sizes: CropSizes) -> float | None:
        """Tokens of a global crop that the student's last block makes; None for all.

        CLS and the masked patches, on average; all with Gram anchoring.
        """
        return None if self.gram is not None else 1 + self.masked(sizes) / GLOBAL_VIEWS

    @property
    def two_passes(self) -> bool:
        """Whether KoLeo or SIGReg spans micro-batches, so that the student runs once more."""
        loss = self.options.loss
        weights = {"koleo": loss.koleo_weight, "sigreg": loss.sigreg_weight, "none": 0.0}
        group = self.effective_batch
        if loss.regularizer == "koleo" and loss.koleo_group != "effective":
            group = loss.koleo_group
        sizes = all_sizes(self.effective_batch, self.micro_batch, self.processes)
        return bool(weights[loss.regularizer]) and any(size % group for size in sizes)

    @property
    def passed_twice(self) -> float:
        """Share of the images whose global crops go through the student twice.

        The first micro-batch of a process does not, for its graph is kept, if weights are whole.
        """
        if not self.two_passes:
            return 0.0
        if self.parts > 1:
            return 1.0
        return max(0.0, 1.0 - self.processes * self.micro_batch / self.effective_batch)


def numbers(weights: Iterable) -> int:
    """The number of elements of some tensors, in all."""
    return sum(weight.numel() for weight in weights)
