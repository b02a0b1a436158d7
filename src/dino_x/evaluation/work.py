"""How far an evaluation is."""

from collections.abc import Callable

from dino_x.data.index.labels import Labelled
from dino_x.evaluation.embed import Progress
from dino_x.evaluation.masks import Masked


class Work:
    """One bar for all parts: images to encode for classes, images with masks, and scores."""

    def __init__(
        self, progress: Progress | None, labelled: Labelled | None, masked: Masked | None
    ) -> None:
        self.progress = progress
        labels = len(labelled.refs) if labelled else 0
        masks = len(masked.refs) if masked else 0
        self.sizes = {"classes": labels, "scores": labels, "masks": 10 * masks}

    def part(self, name: str) -> Callable[[int, int], None]:
        """The function that a part tells (work done, work in all) of its own."""
        before = sum(list(self.sizes.values())[: list(self.sizes).index(name)])
        whole = sum(self.sizes.values())

        def told(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(before + self.sizes[name] * done // total, whole)

        return told
