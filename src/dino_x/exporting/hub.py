"""``dino-x export --push``: an exported folder on the hub, and no other file."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from rich.console import Console

from dino_x.errors import UserError
from dino_x.model.pretrained import first_line


def check_push(name: str, public: bool, api: Any = None) -> None:
    """Refuse a name that cannot be pushed to, before any work is done. Nothing is sent or made.

    Args:
        name: ``OWNER/NAME`` on the hub.
        public: whether everyone may read it.
        api: an ``HfApi``; by default one with the token that `hf auth login` keeps.

    Raises: UserError.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(
            f"--push {name}: a name on the hub is OWNER/NAME, such as my-lab/chest-vits16"
        )
    api = api or HfApi()
    try:
        api.whoami()
        is_private = api.repo_info(name, repo_type="model").private
    except RepositoryNotFoundError:
        return  # it will be made
    except LocalTokenNotFoundError as error:
        raise UserError("--push needs a token of the hub: run `hf auth login` first") from error
    except (HTTPError, HFValidationError, OSError) as error:
        raise UserError(f"--push {name}: {first_line(error)}") from error
    if not is_private and not public:
        raise UserError(
            f"{name} is there and public: give --public if everyone may have this model, or name"
            " another one"
        )


def push(folder: Path, name: str, public: bool, console: Console, api: Any = None) -> str:
    """Upload an exported folder with its card as a model, private unless ``public``.

    Args:
        folder: what ``export`` wrote. All of its files are uploaded, and no other.
        name: ``OWNER/NAME``; a commit is added where it is there.
        public: whether everyone may read it.
        console: where to say what was uploaded.
        api: an ``HfApi``.

    Returns: its address.

    Raises: UserError; the folder stays, and ``--push`` can be tried again.
    """
    api = api or HfApi()
    files = sorted(path.name for path in folder.iterdir())
    try:
        api.create_repo(name, repo_type="model", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="model",
            folder_path=folder,
            allow_patterns=files,
            commit_message="Exported by DINO-X",
        )
    except (HTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{name} was not pushed: {first_line(error)}; {folder} is whole, and"
            f" `hf upload {name} {folder}` tries again"
        ) from error
    seen = "public" if public else "private"
    address = f"https://huggingface.co/{name}"
    line = f"{'pushed':<10}{address} ({seen}): {', '.join(files)}"
    console.print(line, highlight=False, soft_wrap=True)
    return address
