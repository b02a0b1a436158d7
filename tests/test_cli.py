"""The command line as a person types it: help, words that are nearly right, files for a group."""

import os
import shlex
import stat

import pytest

from dino_x.cli import COMMANDS, main
from dino_x.config.options_text import options_text
from dino_x.config.presets import SHOWN, known_options
from dino_x.flags import build_parser
from dino_x.help_texts import TEXTS
from dino_x.parsing import FLAGS, GROUPS
from tests.training.runs import pretrain


def commands():
    """The parsers of all commands by name."""
    parser = build_parser()
    return next(action.choices for action in parser._actions if action.dest == "command")


def test_each_command_has_a_sentence_and_an_example_that_is_understood(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert set(TEXTS) == set(COMMANDS) == set(commands())
    for name, parser in commands().items():
        text = parser.format_help()
        assert TEXTS[name][0] in " ".join(text.split()), name
        assert max(map(len, text.splitlines())) <= 80, name
        for line in TEXTS[name][1].splitlines():
            program, *words = shlex.split(line)
            assert program == "dino-x"
            assert build_parser().parse_args(words).command == words[0]


def test_flags_are_in_groups():
    grouped = [flag for flags in GROUPS.values() for flag in flags]
    assert sorted(grouped) == sorted(FLAGS)
    text = commands()["pretrain"].format_help()
    assert text.index("batch and length:") < text.index("--effective-batch N ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrian"], "there is no command 'pretrian'; did you mean 'pretrain'?"),
        (["lr"], "for an option of that name: dino-x options lr"),
        (["pretrain", "--out", "x", "--lr", "1"], "unknown option '--lr'; did you mean '--set opt"),
        (["pretrain", "--out", "x", "--epochs", "3"], "did you mean '--steps'? (a step is"),
        (["index", "--data", "x", "--out", "y", "z"], "files are named without a flag here; see"),
        (
            ["evaluate", "--model", "x", "--data", "y", "--epochs", "3"],
            "unknown option '--epochs'; see dino-x evaluate --help",
        ),  # it has no --steps
        (
            ["embed", "--model", "x", "--data", "y", "--out", "f.csv", "--lr", "3"],
            "unknown option '--lr'; see dino-x embed --help",
        ),  # nor --set
        (["pretrain", "--out", "x", "tests"], "did you mean '--data tests'?"),
        (["export", "x", "--to", "y", "--format", "tim"], "got 'tim'; did you mean 'timm'?"),
        (["options", "momentun"], "no option has 'momentun' in its name or meaning"),
    ],
)
def test_a_word_that_is_nearly_right_is_answered_with_the_right_one(
    words, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_options_are_found_by_name_section_meaning_and_other_tools_name(capsys):
    assert main(["options"]) == 0
    every = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{every}" for name in known_options())
    assert max(map(len, options_text(["optim"], 80).splitlines())) <= 80
    assert "optim.lr  " in options_text(["lr"])
    assert "[auto | sinkhorn | softmax]" in options_text(["loss.centering"])
    assert "whole number from 1" in options_text(["batch_size"])
    assert options_text(["masks"]).startswith("masks: ")
    assert "views.gamma" in options_text(["exponent"])
    assert "views.gamma" not in options_text(["adamw"])


def test_presets_stand_in_columns():
    head, line = options_text(["optim.lr"]).splitlines()[1:3]
    for preset, value in (("small", "0.0015"), ("continue", "0.0002"), ("highres", "5e-05")):
        assert line[head.index(preset) :].startswith(value)
        assert SHOWN[preset]["optim.lr"] == float(value)


def test_a_group_may_read_what_a_run_leaves(films, tmp_path):
    before = os.umask(0o027)
    try:
        run = ("--effective-batch", 4, "--micro-batch", 2, "--steps", 1)
        assert pretrain(films, tmp_path / "run", *run, "--centering", "sinkhorn") == 0
        exported = ["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")]
        assert main([*exported, "--format", "transformers"]) == 0
    finally:
        os.umask(before)
    for folder in ("run", "out"):
        for path in (tmp_path / folder).rglob("*"):
            wanted = 0o750 if path.is_dir() else 0o640
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path
