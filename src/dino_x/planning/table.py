"""A plan on the terminal."""

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from dino_x.cost.memory import GIB
from dino_x.planning.plan import Plan
from dino_x.training.report import duration

BAR = 12  # characters of the longest bar
BESIDE = 104  # columns of a terminal that has room for both tables beside each other


def print_plan(plan: Plan, console: Console) -> None:
    """Lines on the run, two tables, lines on what it takes."""
    for name, line in before(plan).items():
        style = "yellow" if name == "centering" and plan.policy.warning else None
        say(console, name, line, style)
    console.print()
    memory = shares(
        "Memory at the peak of a step", "GiB", {n: v / GIB for n, v in plan.memory.items()}, 2
    )
    work = shares("Work an image", "GFLOP", {n: v / 1e9 for n, v in plan.flops.items()}, 1)
    if console.width >= BESIDE:
        console.print(Columns([memory, work], padding=(0, 3)))
    else:
        console.print(memory, "", work, sep="\n")
    console.print()
    for name, line in after(plan).items():
        short = name == "memory" and (plan.fits is None or plan.step.micro_batch > plan.fits)
        say(console, name, line, "yellow" if short else None)
    for note in plan.notes:
        say(console, "note", note, "yellow")


def say(console: Console, name: str, line: str, style: str | None = None) -> None:
    """One aligned line."""
    console.print(f"{name:<10}{line}", style=style, highlight=False, soft_wrap=True, markup=False)


def before(plan: Plan) -> dict[str, str]:
    """What would be trained, and how."""
    step, options = plan.step, plan.options
    images = "unknown" if step.images is None else f"{step.images:,}"
    processes = f" on each of {step.processes} processes" if step.processes > 1 else ""
    times = f"{plan.accumulation} micro-batch{'es' * (plan.accumulation > 1)}"
    crops = f"2 x {step.largest.global_size} px"
    if step.locals:
        crops += f" + {step.locals} x {step.largest.local_size} px"
    return {
        "images": images,
        "model": f"{options.model.name}, {step.student.depth} layers x {step.student.width},"
        f" {step.student.weights / 1e6:.1f} M parameters; {step.head.prototypes:,} prototypes",
        "settings": plan.preset,
        "device": f"{plan.device}, {options.train.precision}",
        "batch": f"{step.effective_batch} images a step = {times} of {step.micro_batch}{processes};"
        f" crops {crops}",
        "centering": plan.policy.message,
        "steps": steps(plan),
    }


def steps(plan: Plan) -> str:
    """How long the run is."""
    if plan.steps is None:
        return "unknown"
    seen = plan.steps * plan.step.effective_batch
    line = f"{plan.steps:,} = {seen:,} images seen"
    if plan.step.images:
        line += f" = {seen / plan.step.images:.1f} passes over the images"
    return line


def after(plan: Plan) -> dict[str, str]:
    """What the run takes."""
    fits = "more than there is"
    if plan.fits is not None and plan.step.micro_batch <= plan.fits:
        fits = f"the largest micro-batch that fits is {plan.fits}, by calculation"
    lines = {
        "memory": f"{plan.needed / GIB:.1f} GiB of {plan.room / GIB:.1f}: {fits}",
        "speed": "not measured, and no --card to calculate for"
        if plan.speed is None
        else f"{number(plan.speed.images_per_second)} images/s, {plan.speed.how}",
    }
    if plan.trial is not None and plan.trial.reading is not None:
        lines["reading"] = (
            f"{number(plan.trial.reading)} images/s with {plan.options.data.workers} threads, the"
            " first time"
        )
    if plan.seconds is not None:
        step = plan.seconds / (plan.steps or 1)
        lines["time"] = f"{duration(plan.seconds)} for the run, {number(step)} s a step"
    if plan.cost is not None:
        each = f" a GPU, {plan.step.processes} GPUs" if plan.step.processes > 1 else ""
        lines["cost"] = f"{plan.cost:,.2f} at {plan.price:g} an hour{each}"
    return lines


def number(value: float) -> str:
    """With three digits at the most, and commas."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def shares(title: str, unit: str, parts: dict[str, float], digits: int) -> Table:
    """A row a part, largest first, with bars; what is below the last digit is left out."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        show_footer=True, show_edge=False, pad_edge=False,
    )  # fmt: skip
    total, most = sum(parts.values()), max(parts.values())
    table.add_column("part", footer="together")
    table.add_column(unit, justify="right", footer=f"{total:.{digits}f}")
    table.add_column("", style="cyan")
    for name, value in sorted(parts.items(), key=lambda part: -part[1]):
        if value >= 0.5 * 10**-digits:
            bar = "█" * round(BAR * value / most)
            table.add_row(name, f"{value:.{digits}f}", bar)
    return table
