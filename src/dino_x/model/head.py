"""The projection head, made from the options of a run."""

from dino_x.config.options import HeadOptions
from dino_x.exact import Head as ExactHead


class Head(ExactHead):
    """Tokens [R, features] to bottlenecks [R, D] of norm 1, and the prototypes [K, D]."""

    @classmethod
    def for_ibot(cls, features: int, options: HeadOptions) -> "Head":
        """The head for patch tokens, whose K, D and width may be others than the DINO head's."""
        own = {
            "prototypes": options.ibot_prototypes or options.prototypes,
            "hidden": options.ibot_hidden or options.hidden,
            "bottleneck": options.ibot_bottleneck or options.bottleneck,
        }
        return cls(features, options.model_copy(update=own))

    def __init__(self, features: int, options: HeadOptions) -> None:
        super().__init__(
            features,
            options.prototypes,
            layers=options.layers,
            hidden=options.hidden,
            bottleneck=options.bottleneck,
            init=options.init,
            normalize_prototypes=options.normalize_prototypes,
        )
