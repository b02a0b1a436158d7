"""Names of other tools, and mistakes in files, are answered with our names and the line."""

import pytest

from dino_x.cli import main
from dino_x.config.other_names import OTHER_NAMES, hint
from dino_x.config.presets import check, known_options, read_config
from dino_x.errors import UserError
from dino_x.flags import build_parser


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("--lr", "--set optim.lr=VALUE"), ("--batch-size=64", "--effective-batch"),
        ("--epochs", "--steps"), ("--output-dir", "--out"), ("--num-workers", "data.workers"),
        ("--setps", "--steps"),
    ],
)  # fmt: skip
def test_a_flag_of_another_tool_is_answered_with_ours(flag, ours, capsys):
    assert main(["pretrain", "--data", "x", "--out", "y", flag, "3"]) == 2
    assert f"did you mean '{ours}" in capsys.readouterr().err.replace("--set data", "data")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("lr", "optim.lr"), ("batch_size", "train.effective_batch"),
        ("optim.learning_rate", "optim.lr"), ("koleo_weight", "loss.koleo_weight"),
        ("optim.lrr", "optim.lr"),
    ],
)  # fmt: skip
def test_a_bare_name_is_answered_with_its_section(name, ours):
    with pytest.raises(UserError, match=f"unknown option '{name}'; did you mean '{ours}'"):
        check({name: 1})


def test_each_name_of_another_tool_stands_for_one_of_ours():
    known = {*known_options(), *build_parser().known_options()}
    assert set(OTHER_NAMES.values()) <= known
    assert not set(OTHER_NAMES) & known
    assert hint("nothing like it at all", known) == ""


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("train: {steps: 3}\noptim: {lr: 1}\ntrain: {seed: 4}\n", 3, "train"),
        ("train:\n  steps: 3\n  seed: 1\n  steps: 4\n", 4, "steps"),
    ],
)
def test_a_key_that_is_there_twice_is_named_with_its_line(tmp_path, text, line, key):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"line {line}: the key '{key}' is there twice"):
        read_config(file)
