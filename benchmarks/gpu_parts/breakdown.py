"""Where the time of a step goes: each of its parts by itself, without the parts within it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_parts.card import Card
from dino_x.exact import ExactStep
from dino_x.exact.processes import Processes
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.steps import Steps

PARTS: dict[str, tuple[type, str]] = {
    "views": (Cutter, "crops"),
    "teacher": (ExactStep, "bottlenecks"),
    "Sinkhorn-Knopp": (ExactStep, "bias"),
    "second pass (KoLeo)": (ExactStep, "statistic_gradients"),
    "student": (ExactStep, "student_outputs"),
    "loss": (ExactStep, "losses"),
    "backward": (Processes, "backward"),
    "plan": (Steps, "plan"),
    "optimizer and teacher": (Steps, "update"),
    "terms read": (ExactStep, "values"),
}
REST = "all else"


class Breakdown:
    """Seconds of each part of the steps that are watched; each part is waited for.

    Args:
        card: what is waited for.

    Attributes:
        seconds: by part, without what other parts took within it.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.seconds: dict[str, float] = {}
        self._within: list[float] = []  # what parts took, within those that are open

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A context of one part."""
        self.card.synchronize()
        started = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            self.card.synchronize()
            took, within = time.perf_counter() - started, self._within.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + took - within
            if self._within:
                self._within[-1] += took

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A context in which parts are timed."""
        with ExitStack() as stack:
            for name, (owner, method) in PARTS.items():
                stack.enter_context(self._watched(owner, method, name))
            with self.part(REST):
                yield

    @contextmanager
    def _watched(self, owner: type, method: str, name: str) -> Iterator[None]:
        before = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return before(*arguments, **named)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            setattr(owner, method, before)

    def busy(self, work: Callable[[], None]) -> float:
        """The share of some work's time in which the GPU computes, by PyTorch's profiler."""
        plain = self.card.seconds(work)
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            work()
            torch.cuda.synchronize()
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in watched.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        covered, until = 0.0, 0.0
        for start, end in spans:
            covered += max(0.0, end - max(start, until))
            until = max(until, end)
        return min(1.0, covered / 1e6 / plain)
