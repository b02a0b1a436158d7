"""Code that comes with a model is never run, whoever says yes to it."""

import io
import json
import sys

import pytest

from dino_x.cli import main
from dino_x.errors import UserError
from dino_x.evaluation.backbone import load_backbone
from dino_x.model.pretrained import refuse_own_code

CODE = """
import pathlib
pathlib.Path(__file__).with_name("was_run").touch()
from transformers import PretrainedConfig
class Own(PretrainedConfig):
    model_type = "{kind}"
"""


@pytest.mark.parametrize("kind", ["own_kind", "dinov2"])
@pytest.mark.parametrize("command", ["evaluate", "pretrain", "export"])
def test_code_of_a_model_is_refused_though_standard_input_says_yes(
    tmp_path, kind, command, films, monkeypatch, capsys
):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": kind, "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(kind=kind))
    flags = {
        "evaluate": ["--model", folder, "--data", films, "--labels", "folder"],
        "pretrain": ["--model", folder, "--data", films, "--out", tmp_path / "run"],
        "export": [folder, "--to", tmp_path / "to", "--format", "transformers"],
    }
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\n"))
    assert main([command, *map(str, flags[command])]) == 2
    said = capsys.readouterr().err
    assert "code of its own" in said
    assert len(said.splitlines()) == 1
    assert not (folder / "was_run").exists()


def test_a_model_without_code_is_not_refused(tmp_path):
    refuse_own_code(tmp_path, "x")
    (tmp_path / "config.json").write_text("[]")
    refuse_own_code(tmp_path, "x")
    with pytest.raises(UserError):
        load_backbone(tmp_path)
