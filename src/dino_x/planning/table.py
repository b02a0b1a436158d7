"""A plan on the terminal."""

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from dino_x.cost.memory import GIB
from dino_x.planning.plan import Plan
from dino_x.progress import duration

BAR = 12  # characters of the longest bar
BESIDE = 104  # columns of a terminal that has room for both tables beside each other


def print_plan(plan: Plan, console: Console) -> None:
    """Print lines on the run, two tables, and lines on what it takes."""
    warned = {"centering"} if plan.policy.warning else set()
    say_all(console, before(plan), warned)
    console.print()
    gib = {name: value / GIB for name, value in plan.memory.items()}
    memory = shares("Memory at the peak of a step", "GiB", gib, digits=2)
    gflop = {name: value / 1e9 for name, value in plan.flops.items()}
    work = shares("Work an image", "GFLOP", gflop, digits=1)
    if console.width >= BESIDE:
        console.print(Columns([memory, work], padding=(0, 3)))
    else:
        console.print(memory, "", work, sep="\n")
    console.print()
    warned = set() if fits(plan) else {"memory"}
    say_all(console, after(plan), warned)
    for note in plan.notes:
        say(console, "note", note, "yellow")


def fits(plan: Plan) -> bool:
    """Whether the micro-batch fits into memory, by calculation."""
    return plan.fits is not None and plan.step.micro_batch <= plan.fits


def say_all(console: Console, lines: dict[str, str], warned: set[str]) -> None:
    """Print lines by name; those whose name is in ``warned`` in yellow."""
    for name, line in lines.items():
        say(console, name, line, "yellow" if name in warned else None)


def say(console: Console, name: str, line: str, style: str | None = None) -> None:
    """Print one aligned line."""
    console.print(f"{name:<10}{line}", style=style, highlight=False, soft_wrap=True, markup=False)


def before(plan: Plan) -> dict[str, str]:
    """The lines on what would be trained, and how, by name."""
    step, options = plan.step, plan.options
    images = "unknown" if step.images is None else f"{step.images:,}"
    processes = ""
    if step.processes > 1:
        processes = f" on each of {step.processes} processes"
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
    """The number of steps, and what follows from it, in words."""
    if plan.steps is None:
        return "unknown"
    seen = plan.steps * plan.step.effective_batch
    line = f"{plan.steps:,} = {seen:,} images seen"
    if plan.step.images:
        line += f" = {seen / plan.step.images:.1f} passes over the images"
    return line


def after(plan: Plan) -> dict[str, str]:
    """The lines on what the run takes, by name."""
    largest = "more than there is"
    if fits(plan):
        largest = f"the largest micro-batch that fits is {plan.fits}, by calculation"
    speed = "not measured, and no --card to calculate for"
    if plan.speed is not None:
        speed = f"{number(plan.speed.images_per_second)} images/s, {plan.speed.how}"
    lines = {
        "memory": f"{plan.needed / GIB:.1f} GiB of {plan.room / GIB:.1f}: {largest}",
        "speed": speed,
    }
    if plan.trial is not None and plan.trial.reading is not None:
        lines["reading"] = (
            f"{number(plan.trial.reading)} images/s with {plan.options.data.workers} threads, the"
            " first time"
        )
    if plan.seconds is not None:
        step = plan.seconds / (plan.steps or 1)
        lines["time"] = f"{duration(plan.seconds)} for the run, {number(step)} s a step"
    if plan.outlook is not None:
        lines |= plan.outlook.lines()
    if plan.cost is not None:
        each = ""
        if plan.step.processes > 1:
            each = f" a GPU, {plan.step.processes} GPUs"
        lines["cost"] = f"{plan.cost:,.2f} at {plan.price:g} an hour{each}"
    return lines


def number(value: float) -> str:
    """A number with three digits at the most, and commas."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def shares(title: str, unit: str, parts: dict[str, float], digits: int) -> Table:
    """A table with a row a part, largest first, and bars; parts that round to 0 are left out."""
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
