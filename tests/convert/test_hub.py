"""Hub names: what is downloaded, what is not, and one sentence for whatever goes wrong. Nothing here uses the network."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from mlx_visalign.models.hub import find_model
from mlx_visalign.utils.errors import UserError

REPOSITORY = (
    "config.json",
    "modeling_llava.py",
    "tokenizer.json",
    "tokenizer.model",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pkl",
    "images/cat.png",
    "checkpoint-100/model.safetensors",
    "pytorch_model.bin",
    "tf_model.h5",
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one model, whose files are given; returns the calls that are made."""

    def serve(*files: str) -> list[dict]:
        calls = []

        def snapshot_download(name, **arguments):
            calls.append({"name": name, **arguments})
            for file in filter_repo_objects(files, allow_patterns=arguments["allow_patterns"]):
                (tmp_path / file).parent.mkdir(exist_ok=True)
                (tmp_path / file).touch()
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return serve


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_bin_files_come_only_where_there_are_no_safetensors(hub):
    hub(*REPOSITORY)
    assert files(find_model("owner/name")) == {"config.json", "tokenizer.json", "tokenizer.model", "pytorch_model.bin"}


def test_safetensors_come_alone(hub):
    calls = hub(*REPOSITORY, "model-00001-of-00001.safetensors", "model.safetensors.index.json", "consolidated.00.pth")
    expected = {"config.json", "tokenizer.json", "tokenizer.model"}
    expected |= {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert files(find_model("owner/name", "v1.5")) == expected
    assert [(call["name"], call["revision"]) for call in calls] == [("owner/name", "v1.5")]


def test_a_lora_folder_comes_with_its_projector(hub):
    weights = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")
    hub(*weights)
    assert files(find_model("owner/name")) == set(weights) - {"adapter_model.bin"}


@pytest.mark.parametrize("name", ["here", "a/b/c", "/owner/name", "./owner/name", "../name", "owner/../name", "owner/", "tiny"])
def test_what_cannot_be_a_name_is_a_path(hub, name):
    calls = hub()
    assert find_model(name) == Path(name) and not calls


def test_a_folder_that_is_there_goes_first(hub, tmp_path, monkeypatch):
    calls = hub()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model("owner/name") == Path("owner/name") and not calls


class _Response:
    headers: dict = {}  # noqa: RUF012
    request = None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            errors.GatedRepoError("Access denied", response=_Response()),
            "owner/name is gated: ask for access at https://hugging",
        ),
        (errors.RepositoryNotFoundError("401", response=_Response()), "neither a local folder nor a model on the hub"),
        (errors.RevisionNotFoundError("404", response=_Response()), "owner/name has no revision 'v9'"),
        (errors.LocalEntryNotFoundError("offline"), "the hub cannot be reached, and the model is not in its cache"),
        (
            errors.HfHubHTTPError("500 Server Error\nbusy", response=_Response()),
            "(500 Server Error): run the same command again",
        ),
        (errors.HTTPError("Connection reset"), "(Connection reset): run the same command again"),
        (OSError(28, "No space left on device"), "No space left on device): run the same command again"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_goes_wrong_is_one_sentence(monkeypatch, error, sentence):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError) as refusal:
        find_model("owner/name", "v9")
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value) and str(refusal.value).count(". ") == 0


def test_offline_and_not_in_the_cache(tmp_path, monkeypatch):
    """The real library, which the tests keep offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the hub cannot be reached"):
        find_model("nobody-here/nothing-there")


def test_the_policy_loads_hub_names(monkeypatch):
    """A converted model, and an adapter on it, by their names."""
    from mlx_visalign.inference.policy import TINY, load

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(TINY))
    assert load("owner/tiny-llava").base == load("tiny").base
