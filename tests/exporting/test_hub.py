"""What leaves for the hub, with a stand-in for its API: no network."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from rich.console import Console

from dino_x.cli import main
from dino_x.errors import UserError
from dino_x.exporting import hub
from tests.evaluation.conftest import save_tiny

NAME = "my-lab/chest"


RESPONSE = SimpleNamespace(headers={}, request=None)


class Hub:
    """The calls that were made, and what the hub holds: names and whether they are private."""

    def __init__(self, repos=(), token=True, full=False):
        self.repos, self.token, self.full = dict(repos), token, full
        self.sent, self.calls = [], []

    def whoami(self):
        self.calls.append("whoami")
        if not self.token:
            raise LocalTokenNotFoundError("no token")
        return {"name": "jane"}

    def repo_info(self, name, repo_type):
        self.calls.append("repo_info")
        if name not in self.repos:
            raise RepositoryNotFoundError("404", response=RESPONSE)
        return SimpleNamespace(private=self.repos[name])

    def create_repo(self, name, repo_type, private, exist_ok):
        self.calls.append("create_repo")
        self.repos.setdefault(name, private)

    def upload_folder(self, repo_id, repo_type, folder_path, allow_patterns, commit_message):
        self.calls.append("upload_folder")
        if self.full:
            raise HfHubHTTPError("413: too large", response=RESPONSE)
        self.sent += [file.name for file in folder_path.iterdir() if file.name in allow_patterns]


@pytest.fixture
def model(tmp_path):
    save_tiny(tmp_path / "model")
    return tmp_path / "model"


def push(monkeypatch, api, model, to, *flags):
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    command = ["export", str(model), "--to", str(to), "--format", "transformers", *flags]
    return main(command)


def test_nothing_leaves_unless_it_is_asked_for(model, tmp_path, monkeypatch):
    api = Hub()
    assert push(monkeypatch, api, model, tmp_path / "out") == 0
    assert api.calls == []


def test_the_exported_files_are_pushed_privately_and_no_other(model, tmp_path, monkeypatch, capsys):
    api, out = Hub(), tmp_path / "out"
    assert push(monkeypatch, api, model, out, "--push", NAME) == 0
    assert api.repos == {NAME: True}
    assert sorted(api.sent) == sorted(file.name for file in out.iterdir())
    assert "README.md" in api.sent
    assert (
        f"pushed    https://huggingface.co/{NAME} (private): README.md" in capsys.readouterr().out
    )


def test_public_is_a_word_of_its_own(model, tmp_path, monkeypatch, capsys):
    api = Hub({NAME: False})
    assert push(monkeypatch, api, model, tmp_path / "out", "--push", NAME) == 2
    assert "is there and public: give --public" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # refused before any work
    assert api.sent == []
    assert push(monkeypatch, api, model, tmp_path / "out", "--push", NAME, "--public") == 0
    assert api.sent


@pytest.mark.parametrize(
    ("name", "api", "words"),
    [
        ("chest", Hub(), "a name on the hub is OWNER/NAME"),
        (NAME, Hub(token=False), "needs a token of the hub: run `hf auth login`"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_any_work(name, api, words):
    with pytest.raises(UserError, match=words):
        hub.check_push(name, False, api)
    assert "create_repo" not in api.calls


def test_a_push_that_fails_leaves_the_folder_and_says_so(model):
    with pytest.raises(UserError, match="was not pushed: 413: too large; .* is whole"):
        hub.push(model, NAME, False, Console(quiet=True), Hub(full=True))
    assert (model / "config.json").is_file()
