"""The projection head, made from the options of a run."""

from dino_x.config.options import HeadOptions
from dino_x.exact import Head as ExactHead


class Head(ExactHead):
    """Tokens [R, features] to bottlenecks [R, D] of norm 1, and the prototypes [K, D]."""

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
