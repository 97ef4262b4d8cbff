"""Uploads: a card from config and report, only the files that belong, and the Hub's refusals in one sentence. No network."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import make_peft
import pytest
from fake_hub import Hub
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from made_evaluations import report
from markdown_it import MarkdownIt
from random_llava import trained_llava

from mlx_visalign.cli.main import main
from mlx_visalign.inference.policy import TINY
from mlx_visalign.models.lora import save_adapter
from mlx_visalign.reporting import upload as uploading
from mlx_visalign.reporting.upload import upload
from mlx_visalign.utils.errors import UserError


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr(uploading, "HfApi", lambda: made)
    return made


@pytest.fixture
def run(tmp_path):
    """A run's folder with what may not leave the machine in it."""
    folder = tmp_path / "run"
    save_adapter(trained_llava(1), folder / "adapter", {"method": "seva", "round": 1, "template": "vicuna_v1"})
    settings = {"method": "seva", "model": "/Users/me/llava", "images": "/Users/me/photos", "settings": {"view": "crop"}}
    (folder / "report.json").write_text(json.dumps(report() | {"settings": settings}))
    for name in (
        "pairs.jsonl",
        "config.yaml",
        "adapter/pairs.jsonl",
        "adapter/state.json",
        "adapter/.unfinished-x.safetensors",
    ):
        (folder / name).write_text("mine")
    return folder


def test_an_adapter_goes_with_its_card_and_nothing_else(hub, run):
    told = upload(run / "adapter", "me/llava-seva", run, "llava-hf/llava-1.5-7b-hf", private=True)
    assert hub.sent == [("me/llava-seva", ["README.md", "adapter_config.json", "adapters.safetensors"])]
    assert hub.repos == {"me/llava-seva": {"private": True, "exist_ok": True}}
    assert told["uploaded"] == "https://huggingface.co/me/llava-seva/commit/1" and told["kind"] == "adapter"


def test_the_card_says_method_base_and_figures_but_no_paths(hub, run):
    upload(run / "adapter", "me/llava-seva", run, "llava-hf/llava-1.5-7b-hf")
    card = ModelCard.load(run / "adapter/README.md")
    assert card.data.base_model == "llava-hf/llava-1.5-7b-hf" and card.data.to_dict()["library_name"] == "mlx"
    assert card.data.pipeline_tag == "image-text-to-text" and {"visalign", "lora", "seva"} <= set(card.data.tags)
    assert "| Descriptions: CHAIR_i (false mentions) | 50.0 | 0.0 | -50.0 [" in card.text
    assert "not trained on" in card.text and "view: crop" in card.text and "mlx 1" in card.text
    assert "- template: `vicuna_v1`" in card.text and "- round: `1`" in card.text
    assert "/Users" not in card.content


EVIL = "a`b``\n---\nlicense: mit\n---\n# Mine\n```\n[x](http://evil) <script>alert(1)</script> | a |"


def test_what_configs_and_reports_say_is_never_markdown(hub, run):
    save_adapter(trained_llava(1), run / "adapter", {"method": EVIL, "template": EVIL})
    report = json.loads((run / "report.json").read_text())
    report |= {"benchmark": report["benchmark"] | {"name": EVIL}, "limits": [EVIL], "versions": {"mlx": EVIL}}
    report["settings"]["settings"] = {"view": EVIL}
    (run / "report.json").write_text(json.dumps(report))
    upload(run / "adapter", "me/llava-seva", run)
    card = ModelCard.load(run / "adapter/README.md")
    assert card.data.license is None and card.data.tags == ["llava", "visalign", "lora", EVIL]
    html = MarkdownIt("commonmark").enable("table").render(card.text)  # rich brings it along
    assert "<script" not in html and "href=" not in html and "Mine" in html
    assert html.count("<h1>") == 1 and html.count("<h2>") == 4 and html.count("<table>") == 1


def test_without_a_report_nothing_is_claimed(hub, run):
    told = upload(run / "adapter", "me/llava-seva")
    card = ModelCard.load(run / "adapter/README.md")
    assert card.data.base_model is None and "base model: not stated" in card.text
    assert "## Results" not in card.text and told["README.md"] == "written from its config"


def test_a_card_of_the_users_own_stays(hub, run):
    (run / "adapter/README.md").write_text("# Mine\n")
    assert upload(run / "adapter", "me/llava-seva", run)["README.md"] == "as it was"
    assert (run / "adapter/README.md").read_text() == "# Mine\n"


def test_a_model_goes_with_tokenizer_and_processor(hub, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "modeling_llava.py").write_text("evil")
    told = upload(folder, "me/tiny")
    assert told["kind"] == "model" and hub.sent[0][1] == sorted(["README.md", *(path.name for path in TINY.iterdir())])
    assert "visalign generate --model model" in (folder / "README.md").read_text()


def test_an_adapter_of_pefts_says_so(hub, tmp_path):
    folder = shutil.copytree(make_peft.FOLDER, tmp_path / "peft")
    upload(folder, "me/llava-lora")
    assert hub.sent[0][1] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert ModelCard.load(folder / "README.md").data.to_dict()["library_name"] == "peft"


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_shows_card_and_files_and_does_nothing(hub, run, capsys):
    before = content(run)
    command = f"upload --path {run / 'adapter'} --upload-repo me/llava-seva --run {run} --dry-run"
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    size = (run / "adapter/adapters.safetensors").stat().st_size
    assert f"{size:,}  adapters.safetensors" in said and "3 files" in said and "pairs.jsonl" not in said
    upload(run / "adapter", "me/llava-seva", run)
    written = (run / "adapter/README.md").read_text()
    assert written.strip() in said and hub.sent[0][1] == ["README.md", "adapter_config.json", "adapters.safetensors"]
    (run / "adapter/README.md").unlink()
    hub.sent.clear()
    hub.repos.clear()
    assert main([*command.split(), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == {name: told["files"][name] for name in ("adapter_config.json", "adapters.safetensors", "README.md")}
    assert (
        told["card"] == written
        and told["files"]["README.md"] == len(written.encode())
        and told["bytes"] == sum(told["files"].values())
    )
    assert content(run) == before and hub.sent == [] and hub.repos == {}


def test_a_dry_run_needs_no_network_and_shows_a_card_that_is_there(run, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(uploading, "HfApi", lambda: pytest.fail("asked the Hub"))
    (run / "adapter/README.md").write_text("# Mine\n")
    assert main(f"upload --path {run / 'adapter'} --upload-repo me/it --dry-run".split()) == 0
    assert "# Mine" in capsys.readouterr().out


def test_a_dry_run_refuses_what_an_upload_would(run, capsys):
    for words in (f"--path {run} --upload-repo me/it", f"--path {run / 'adapter'} --upload-repo a//b"):
        assert main(f"upload {words} --dry-run".split()) == 2
    said = capsys.readouterr().err
    assert "neither an adapter" in said and "not a repository name" in said


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "tokenizer.json", "model.safetensors"])
def test_nothing_that_a_link_brings_in_goes_up(hub, tmp_path, name):
    """A stranger's folder may call a private key its licence."""
    folder, secret = shutil.copytree(TINY, tmp_path / "model"), tmp_path / "secret"
    secret.write_text("mine alone")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    for act in (upload, uploading.preview):
        with pytest.raises(UserError, match=rf"links? leads? out of it: {name}"):
            act(folder, "me/it")
    assert hub.sent == [] and secret.read_text() == "mine alone"


def test_a_folder_of_the_hubs_cache_goes_up(hub, tmp_path):
    """It consists of links to the cache's own files."""
    blobs, folder = tmp_path / "models--me--it/blobs", tmp_path / "models--me--it/snapshots/abc"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    for file in TINY.iterdir():
        shutil.copyfile(file, blobs / file.name)
        (folder / file.name).symlink_to(Path("../../blobs", file.name))
    upload(folder, "me/it")
    assert "model.safetensors" in hub.sent[0][1]


def test_unfinished_files_and_names_like_patterns_bring_no_others(hub, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / ".unfinished-model.safetensors").write_text("half")
    (folder / "[a-z]*.safetensors").write_text("odd")
    upload(folder, "me/it")
    assert ".unfinished-model.safetensors" not in hub.sent[0][1] and "[[]a-z][*].safetensors" in hub.sent[0][1]


def test_other_folders_are_refused(hub, tmp_path, run):
    for folder in (tmp_path / "nowhere", tmp_path, run):
        with pytest.raises(UserError, match="neither an adapter"):
            upload(folder, "me/nothing")
    (run / "report.json").write_text("{}")
    with pytest.raises(UserError, match="expected the report of"):
        upload(run / "adapter", "me/llava-seva", run)
    assert hub.sent == [] and not (run / "adapter/README.md").exists()


def refused(status):
    return HfHubHTTPError("Forbidden\nRequest ID: 1", response=SimpleNamespace(headers={}, request=None, status_code=status))


ERRORS = {
    "offline": (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
    "not logged in": (refused(401), "hf auth login"),
    "not allowed": (refused(403), "hf auth login"),
    "server": (refused(500), "refused the upload to me/llava-seva: Forbidden"),
    "name": (HFValidationError("two slashes"), "not a repository name"),
    "network": (HTTPError("no route"), "cannot be reached"),
    "socket": (ConnectionResetError("reset"), "cannot be reached"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_the_hub_refuses_is_one_sentence(hub, run, capsys, name):
    hub.error, message = ERRORS[name]
    code = main(["upload", "--path", str(run / "adapter"), "--upload-repo", "me/llava-seva"])
    said = capsys.readouterr().err
    assert code == 2 and message in said and "Traceback" not in said and "Request ID" not in said


def test_the_command_says_where_it_is(hub, run, capsys):
    command = ["upload", "--path", str(run / "adapter"), "--upload-repo", "me/llava-seva", "--run", str(run), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["uploaded"] == "https://huggingface.co/me/llava-seva/commit/1"
