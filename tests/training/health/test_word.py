"""The word in the progress line: nothing is called healthy of which too little was seen."""

from dino_x.config.resolve import Facts, resolve
from dino_x.training.health.health import Health
from tests.conftest import TINY


def watched(centering):
    """Health of a run, of which no step was taken yet."""
    settings = TINY | {"train.steps": 300, "health.every": 25, "loss.centering": centering}
    return Health(resolve(settings, Facts(400)).options, 32, None)


def after(health, steps, loss, mean_entropy=0.95, entropy=0.6):
    """The word after some more steps with this loss, as a share of log K."""
    done = int(health.history.steps[-1]["step"]) if health.history.steps else 0
    for step in range(done + 1, done + steps + 1):
        line = {"step": step, "health/dino_of_log_k": loss, "gradient_norm": 1.0,
                "teacher_momentum": 0.99}  # fmt: skip
        if step == 1 or step % 25 == 0:
            line |= {"health/rows": 64, "health/target_entropy": entropy, "health/prototypes": 40.0,
                     "health/mean_target_entropy": mean_entropy, "health/update_ratio": 0.001,
                     "health/teacher_distance": 0.1, "health/teacher_moved": 0.1}  # fmt: skip
            for network in ("student", "teacher"):
                line |= {f"health/{network}/feature_std": 0.9, f"health/{network}/rankme": 20.0}
        health.judge(line)
    return health.word()


def test_a_run_is_starting_until_a_collapse_could_have_been_named():
    health = watched("sinkhorn")
    assert after(health, 49, 0.9) == "starting"
    assert after(health, 1, 0.9) == "healthy"  # the third look


def test_a_run_at_log_k_is_starting_until_it_would_be_called_uniform():
    health = watched("sinkhorn")
    assert after(health, 125, 0.99) == "starting"
    assert after(health, 1, 0.99) == "healthy"


def test_with_softmax_log_k_is_no_measure():
    """A loss of 0.9 log K is what guessing costs where the mean target has that entropy."""
    assert after(watched("softmax"), 60, 0.9, mean_entropy=0.9) == "starting"
    assert after(watched("softmax"), 60, 0.8, mean_entropy=0.9) == "healthy"
    assert after(watched("sinkhorn"), 60, 0.9, mean_entropy=0.9) == "healthy"


def test_with_softmax_a_run_that_stays_where_guessing_is_is_uniform():
    guessing = {"loss": 0.9, "mean_entropy": 0.9, "entropy": 0.85}
    assert after(watched("softmax"), 150, **guessing) == "uniform since step 1"
    assert after(watched("sinkhorn"), 150, **guessing) == "healthy"
