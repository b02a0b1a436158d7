"""One line that answers what a user asks first: was it worth it?"""

from collections.abc import Mapping
from typing import Any

from dino_x.evaluation.contenders import MODEL, PIXELS, RANDOM, START
from dino_x.evaluation.verdict import title
from dino_x.evaluation.wording import TASK_TITLES

FREE = (PIXELS, RANDOM, START)  # what one has without any training of one's own
YES, NO, OPEN = "yes", "no", "open"
ANSWERS = {
    YES: "Yes",
    NO: "No",
    OPEN: "That cannot be told from these images",
}


def worth(
    verdicts: Mapping[str, Mapping[str, Any]], seen: Mapping[str, Mapping[str, int]]
) -> dict[str, str]:
    """Whether a model beats all that is free, in every task that was done.

    Yes, if the interval of every difference is above 0. No, if one is below 0. Otherwise it cannot
    be told, and neither can it if the model was trained on tested images.

    Args:
        verdicts: by task, see ``verdict.verdict``.
        seen: how many tested images a run was trained on, see ``seen.seen_images``.

    Returns: ``answer`` (yes, no or open) and ``sentence``.
    """
    parts, differences = [], []
    for name in FREE:
        told = []
        for task, finding in verdicts.items():
            difference = finding["differences"].get(name)
            if difference is None:
                continue
            differences.append(difference)
            told.append(f"{TASK_TITLES.get(task, task)} {_shown(difference)}")
        if told:
            parts.append(f"against {title(name)}: {', '.join(told)}")
    answer = _answer(differences)
    words = ANSWERS[answer]
    if seen.get(MODEL, {}).get("trained_on"):
        answer, words = OPEN, "That cannot be told, as the model was trained on tested images"
    return {"answer": answer, "sentence": f"Was it worth it? {words}; {'; '.join(parts)}."}


def _answer(differences: list[Mapping[str, float]]) -> str:
    if any(difference["high"] < 0 for difference in differences):
        return NO
    if differences and all(difference["low"] > 0 for difference in differences):
        return YES
    return OPEN


def _shown(difference: Mapping[str, float]) -> str:
    low, high = difference["low"], difference["high"]
    return f"{difference['value']:+.3f} ({low:+.3f} to {high:+.3f})"
