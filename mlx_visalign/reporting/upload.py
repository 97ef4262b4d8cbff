"""Upload an adapter or model to the Hugging Face Hub.

Adds a model card. Only the adapter's or model's own files are uploaded, never other files of a run.
"""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from mlx_visalign.convert.layouts import peft_folder
from mlx_visalign.models.adapter_files import CONFIG, WEIGHTS, read_adapter
from mlx_visalign.models.hub import CARRIED
from mlx_visalign.reporting.model_card import Kind, Subject, make_card
from mlx_visalign.reporting.summary import read_report
from mlx_visalign.runs.run_folder import RunFolder
from mlx_visalign.utils.errors import UserError
from mlx_visalign.utils.files import read_json, read_text, write_atomically
from mlx_visalign.utils.lfs_pointers import refuse_pointer
from mlx_visalign.utils.links import check_links, named

CARD = "README.md"
SAID = ("method", "round", "round_ranks", "template", "aspect", "base_fingerprint", "source_fingerprint")


def upload(folder: Path, repo: str, run: Path | None = None, base: str | None = None, private: bool = False) -> dict[str, Any]:
    """Upload a folder to a model repository of the Hub.

    repo  the repository, created if it does not exist
    run   the folder of the run that it comes from, whose report.json is used in the card
    base  the Hub id of the model that it was made from

    An existing README.md is uploaded unchanged; otherwise a card is written there. Raises `UserError` if the folder is neither
    an adapter nor a model, or if the Hub refuses or cannot be reached.
    """
    parcel = pack(folder, repo, run, base)
    if parcel.is_new:
        write_atomically(named(folder) / CARD, parcel.card)
    with _hub_refuses(repo):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in parcel.names],
            commit_message=f"Upload {parcel.kind} with mlx_visalign",
        )
    return {"uploaded": str(done.commit_url), "kind": parcel.kind, "files": parcel.names, CARD: parcel.source}


@dataclass(frozen=True)
class Parcel:
    """The content of an upload.

    names   the files, README.md first
    card    the text of README.md
    is_new  whether README.md still has to be written
    source  where the card's text comes from
    """

    kind: Kind
    names: list[str]
    card: str
    is_new: bool
    source: str


def pack(folder: Path, repo: str, run: Path | None = None, base: str | None = None) -> Parcel:
    """What `upload` would send; writes nothing, asks nobody."""
    kind, names, about = _look(check_links(folder))
    report = None if run is None else _report(check_links(run))
    for name in (*names, CARD):
        refuse_pointer(folder / name)
    is_new = not (folder / CARD).exists()
    card = str(make_card(Subject(repo, kind, base, about), report)) if is_new else read_text(folder / CARD)
    source = "written from its config" + (" and the run's report" if report else "") if is_new else "as it was"
    return Parcel(kind, [CARD, *names], card, is_new, source)


def preview(folder: Path, repo: str, run: Path | None = None, base: str | None = None) -> dict[str, Any]:
    """What `upload` would send, as JSON values for display."""
    with _hub_refuses(repo):
        validate_repo_id(repo)
    parcel = pack(folder, repo, run, base)
    sizes = {name: (folder / name).stat().st_size for name in parcel.names if name != CARD or not parcel.is_new}
    sizes |= {CARD: len(parcel.card.encode())} if parcel.is_new else {}
    return {"repository": repo, "kind": parcel.kind, "files": sizes, "bytes": sum(sizes.values()), "card": parcel.card}


def _look(folder: Path) -> tuple[Kind, list[str], dict[str, Any]]:
    """A folder's kind, the names of its files, and what its config says."""
    there = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    if {WEIGHTS, CONFIG} <= there:
        config, _ = read_adapter(folder)  # refuses a damaged adapter
        return "adapter", [CONFIG, WEIGHTS], {name: config[name] for name in SAID if name in config}
    if peft_folder.is_peft(folder):
        peft = peft_folder.read_peft(folder)
        note = peft_folder.read_note(peft)
        names = [name for name in (CONFIG, *peft_folder.WEIGHTS) if name in there]
        return "PEFT adapter", names, {name: note[name] for name in SAID if name in note}
    ends = (".safetensors", ".safetensors.index.json")
    weights = sorted(name for name in there if name.endswith(ends) and not name.startswith("."))
    if weights and "config.json" in there:
        ours = read_json(folder / "config.json").get("visalign")
        about = {name: ours[name] for name in SAID if name in ours} if isinstance(ours, dict) else {}
        return "model", ["config.json", *weights, *sorted(there.intersection(CARRIED))], about
    raise UserError(f"{folder} is neither an adapter ({WEIGHTS}, {CONFIG}) nor a model (config.json, *.safetensors).")


def _report(run: Path) -> dict[str, Any]:
    file = RunFolder(run).report
    report = read_json(file)
    missing = {"benchmark", "before", "after", "change", "limits", "versions", "settings"} - report.keys()
    if missing:
        raise UserError(f"{file} has no {', '.join(sorted(missing))}: expected the report of `visalign run`.")
    return read_report(file)


@contextmanager
def _hub_refuses(repo: str) -> Iterator[None]:
    """Turn errors of the Hub or the network into one sentence."""
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{repo!r} is not a repository name: expected one like me/llava-seva ({error}).") from None
    except OfflineModeIsEnabled:
        raise UserError("Nothing was uploaded: HF_HUB_OFFLINE is set. Unset it and try again.") from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise UserError(
                f"The Hub does not let you write to {repo}: log in with `hf auth login` and a token with write access."
            ) from None
        raise UserError(f"The Hub refused the upload to {repo}: {str(error).splitlines()[0]}") from None
    except (HTTPError, OSError) as error:
        raise UserError(f"The Hub cannot be reached ({error}). Try again: files already uploaded are kept.") from None
