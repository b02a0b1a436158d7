"""How far a step is: which of its passes over the micro-batches, and which of these."""

from dataclasses import dataclass

# Work of a micro-batch, in forwards of the global crops; a backward is about two forwards.
WORK = {"targets": 1.0, "statistic": 1.0, "gradients": 4.0}


@dataclass
class Passes:
    """The passes of a step, in order, each over all micro-batches of this process.

    Attributes:
        names: of the passes, such as ``targets`` and ``gradients``.
        micro_batches: in each.
        done: micro-batches that are done, of all passes.
    """

    names: tuple[str, ...] = ()
    micro_batches: int = 1
    done: int = 0

    @property
    def text(self) -> str:
        """Where the step is, such as ``targets 3/16``; nothing before it begins.

        >>> Passes(("targets", "gradients"), 16, 19).text
        'gradients 3/16'
        """
        if not self.done or not self.names:
            return ""
        position = min(self.done, len(self.names) * self.micro_batches) - 1
        number, within = divmod(position, self.micro_batches)
        return f"{self.names[number]} {within + 1}/{self.micro_batches}"

    @property
    def share(self) -> float:
        """Which part of the step's work is done, 0 to 1.

        >>> Passes(("targets", "gradients"), 16, 24).share
        0.6
        """
        work = [WORK.get(name, 1.0) for name in self.names]
        if not work:
            return 0.0
        whole, begun = divmod(self.done, self.micro_batches)
        finished = sum(work[:whole]) + sum(work[whole : whole + 1]) * begun / self.micro_batches
        return min(1.0, finished / sum(work))
