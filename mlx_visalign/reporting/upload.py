"""Upload an adapter or a model to the Hugging Face Hub, with a model card. Only its own files go, never a run's."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from mlx_visalign.convert import peft_folder
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
    """Upload what `folder` holds to the Hub's model repository `repo`, which is made if need be.

    run   the folder of the run that it comes from: its report.json fills the card
    base  the Hub id of the model that it was made from

    A README.md that is there is uploaded as it is; else a card is written there. Raises `UserError` where the folder is
    neither adapter nor model, and where the Hub refuses or cannot be reached.
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
    """What an upload sends: the names of the files, README.md first, and the card's text and where that comes from."""

    kind: Kind
    names: list[str]
    card: str
    is_new: bool
    source: str


def pack(folder: Path, repo: str, run: Path | None = None, base: str | None = None) -> Parcel:
    """What `upload` would send. Nothing is written, and nobody asked."""
    kind, names, about = _look(check_links(folder))
    report = None if run is None else _report(check_links(run))
    for name in (*names, CARD):
        refuse_pointer(folder / name)
    is_new = not (folder / CARD).exists()
    card = str(make_card(Subject(repo, kind, base, about), report)) if is_new else read_text(folder / CARD)
    source = "written from its config" + (" and the run's report" if report else "") if is_new else "as it was"
    return Parcel(kind, [CARD, *names], card, is_new, source)


def preview(folder: Path, repo: str, run: Path | None = None, base: str | None = None) -> dict[str, Any]:
    """What `upload` would send, as figures by name: nothing is written or sent."""
    with _hub_refuses(repo):
        validate_repo_id(repo)
    parcel = pack(folder, repo, run, base)
    sizes = {name: (folder / name).stat().st_size for name in parcel.names if name != CARD or not parcel.is_new}
    sizes |= {CARD: len(parcel.card.encode())} if parcel.is_new else {}
    return {"repository": repo, "kind": parcel.kind, "files": sizes, "bytes": sum(sizes.values()), "card": parcel.card}


def _look(folder: Path) -> tuple[Kind, list[str], dict[str, Any]]:
    """What is there: its kind, the names of the files that belong to it, and what its config says."""
    there = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    if {WEIGHTS, CONFIG} <= there:
        config, _ = read_adapter(folder)  # a damaged one is not for others
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
    raise UserError(f"{folder} holds neither an adapter ({WEIGHTS}, {CONFIG}) nor a model (config.json, *.safetensors).")


def _report(run: Path) -> dict[str, Any]:
    file = RunFolder(run).report
    report = read_json(file)
    missing = {"benchmark", "before", "after", "change", "limits", "versions", "settings"} - report.keys()
    if missing:
        raise UserError(f"{file} has no {', '.join(sorted(missing))}: expected the report of `visalign run`.")
    return read_report(file)


@contextmanager
def _hub_refuses(repo: str) -> Iterator[None]:
    """What the Hub or the way to it says, in one sentence."""
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no name for a repository: expected one like me/llava-seva ({error}).") from None
    except OfflineModeIsEnabled:
        raise UserError("Nothing was uploaded: HF_HUB_OFFLINE is set. Unset it and try again.") from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise UserError(
                f"The Hub does not let you write to {repo}: log in with `hf auth login` and a token that may write there."
            ) from None
        raise UserError(f"The Hub refused the upload to {repo}: {str(error).splitlines()[0]}") from None
    except (HTTPError, OSError) as error:
        raise UserError(f"The Hub cannot be reached ({error}). What was uploaded so far is not lost: try again.") from None
