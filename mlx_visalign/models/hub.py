"""Models from the Hugging Face hub, by name.

A name works wherever a folder is expected. Downloads are kept in the hub's own cache and resume after an interruption. Only
weights, tokenizers, preprocessing and configs are downloaded: no Python, and torch's .bin files only without safetensors.
"""

import argparse
import os
import re
from pathlib import Path

from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.links import check_links

# Tokenizer and preprocessing files. No Python and no pickle is on this list, and nothing else is copied.
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
# The two .bin files are the LLaVA authors' projectors, which exist in no other format.
ALWAYS = (*CARRIED, "config.json", "adapter_config.json", "non_lora_trainables.bin", "mm_projector.bin", *SAFE)


def add_revision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the hub; default: main")


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """Local folder or file, else a model from the hub.

    A `name` of the form owner/name that does not exist locally is downloaded, unless it is cached. Raises `UserError`, in one
    sentence, if links lead out of the folder, if the hub has no such model or revision or restricts access to it, or if the
    hub cannot be reached and the model is not cached.
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
    """As `find_model`, but downloads config.json only.

    That is enough for a dry run.
    """
    return _download(str(name), None, ("config.json",)) if is_on_hub(name) else find_model(name)


def is_on_hub(name: str | Path) -> bool:
    """Whether a name, owner/name, is not local."""
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
        reason = f"{name} is neither a local folder nor a model on the hub that you can access: check the name, or log in."
    except errors.LocalEntryNotFoundError:
        reason = (
            f"{name} is not a local folder, the hub cannot be reached, and the model is not in its cache: go online, or give a "
            "folder."
        )
    except (errors.HTTPError, OSError) as error:
        first = str(error).partition("\n")[0]
        reason = f"{name} could not be downloaded ({first}): run the same command again to resume."
    raise UserError(reason)
