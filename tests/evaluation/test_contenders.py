"""Who is compared: the starting weights of a continued run, and what the user names."""

import json
import shutil

import pytest
import torch
import yaml

from dino_x.errors import UserError
from dino_x.evaluation.contenders import load_contenders, starting_weights

from .conftest import SIZE, save_tiny


def run_from(folder, start, name="model.name"):
    """A run's folder whose settings say what it started from."""
    section, key = name.split(".")
    (folder / "model").mkdir(parents=True)
    save_tiny(folder / "model", seed=9)
    settings = {"data": {"paths": ["x"]}, section: {key: str(start)}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def weight(contender):
    return contender.network.state_dict()["embeddings.patch_embeddings.weight"]


def test_a_continued_run_is_compared_with_what_it_started_from(tiny_model, tmp_path):
    run = run_from(tmp_path / "run", tiny_model)
    contenders, warnings = load_contenders(run, device="cpu")
    assert list(contenders) == ["model", "random", "start"]
    expected, _ = load_contenders(tiny_model, device="cpu")
    assert torch.equal(weight(contenders["start"]), weight(expected["model"]))
    assert not torch.equal(weight(contenders["start"]), weight(contenders["model"]))
    assert warnings == []


def test_a_run_that_began_anew_has_no_start(tiny_model, tmp_path):
    assert starting_weights(run_from(tmp_path / "run", "vit-tiny")) is None
    assert starting_weights(tiny_model) is None
    contenders, warnings = load_contenders(tmp_path / "run", device="cpu")
    assert list(contenders) == ["model", "random"]
    assert warnings == []


def test_a_start_that_is_gone_is_a_sentence_that_says_why(tmp_path):
    run = run_from(tmp_path / "run", tmp_path / "gone")
    contenders, warnings = load_contenders(run, device="cpu")
    assert "start" not in contenders
    assert len(warnings) == 1
    assert warnings[0].startswith("the weights this run started from are not compared: no such mod")


def test_every_other_model_has_its_own_preparation(tiny_model, tmp_path):
    save_tiny(tmp_path / "other", channels=3)
    file = tmp_path / "other" / "preprocessor_config.json"
    stated = json.loads(file.read_text()) | {"size": {"height": 64, "width": 64}}
    file.write_text(json.dumps(stated))
    other = str(tmp_path / "other")
    contenders, _ = load_contenders(tiny_model, [other], device="cpu")
    assert list(contenders) == ["model", "random", other]
    sizes = {name: contender.preparation.image_size for name, contender in contenders.items()}
    assert sizes == {"model": SIZE, "random": SIZE, other: 64}
    assert contenders[other].preparation.channels == 3


def test_an_assumed_preparation_is_told_of_whoever_it_is(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    _, warnings = load_contenders(tiny_model, [str(tmp_path / "bare")], device="cpu")
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{tmp_path / 'bare'} has no preprocessor_config.json")


@pytest.mark.parametrize(
    ("against", "message"),
    [
        (["random"], r"--against random: that name is taken; write it as a path, \./random"),
        (["/nowhere/model"], "no such model folder: /nowhere/model"),
        (["{empty}"], "is no model: it has no config.json"),
        (["{model}"], "would be compared with itself"),
        (["a", "a"], "a would be compared with itself"),
    ],
)
def test_what_cannot_be_compared_is_refused(tiny_model, tmp_path, against, message):
    names = [name.format(empty=tmp_path, model=tiny_model) for name in against]
    with pytest.raises(UserError, match=message):
        load_contenders(tiny_model, names, device="cpu")
