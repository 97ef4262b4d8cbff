"""Models of the Hugging Face hub by their names, wherever a folder is expected.

Downloads lie in the hub's own cache and go on where they were stopped. Only weights, words, pixels and configs are taken:
no Python, and torch's .bin files only where there are no safetensors.
"""

import argparse
import os
import re
from pathlib import Path

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.links import check_links

# A model's words and pixels. There is no Python and no pickle on this list, and nothing off it is copied.
CARRIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)  # owner/name
SAFE = ("model*.safetensors", "model.safetensors.index.json", "adapter*.safetensors", "vocabulary_rows.safetensors")
TORCH = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
# The two .bin files are the authors' projectors, of which there are no others.
ALWAYS = (*CARRIED, "config.json", "adapter_config.json", "non_lora_trainables.bin", "mm_projector.bin", *SAFE)


def add_revision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", metavar="NAME", help="of a model on the hub: branch, tag or commit; main")


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """The folder or file `name`; if there is none and it reads owner/name, that model of the hub, downloaded if need be.

    Raises `UserError`, in one sentence, if links lead out of the folder, if the hub has no such model or revision, wants to
    be asked for it first, or cannot be reached while the cache does not have it either.
    """
    path = Path(name).expanduser()
    if os.path.exists(path):  # Path.exists raises for a name that is too long
        return check_links(path)
    if not is_on_hub(name):
        return path
    folder = _download(str(name), revision, ALWAYS)
    if any(folder.glob("*.safetensors")):
        return folder
    return _download(str(name), revision, (*ALWAYS, *TORCH))


def find_config(name: str | Path) -> Path:
    """As `find_model`, but of a model of the hub only config.json is downloaded: enough for a plan."""
    return _download(str(name), None, ("config.json",)) if is_on_hub(name) else find_model(name)


def is_on_hub(name: str | Path) -> bool:
    """Whether a name is one of the hub: it reads owner/name, and nothing here is called so."""
    return NAME.fullmatch(str(name)) is not None and not Path(name).expanduser().exists()


def _download(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    page = f"https://huggingface.co/{name}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except errors.GatedRepoError:
        reason = f"{name} is gated: ask for access at {page}, log in with `hf auth login`, and try again."
    except errors.RevisionNotFoundError:
        reason = f"{name} has no revision {revision!r}: see {page}/tree/main for those it has."
    except errors.RepositoryNotFoundError:
        reason = f"{name} is neither a folder here nor a model on the hub that you may see: check the name, or log in."
    except errors.LocalEntryNotFoundError:
        reason = (
            f"{name} is no folder here, the hub cannot be reached, and its cache does not have it: go online, or name a folder."
        )
    except (errors.HTTPError, OSError) as error:
        first = str(error).partition("\n")[0]
        reason = f"{name} could not be downloaded ({first}): run the same command again, and it goes on from there."
    raise UserError(reason)
