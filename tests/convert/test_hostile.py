"""Artefacts made to do harm: nothing in them runs, nothing outside the folder is read, and nobody is called."""

import html.parser
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import hostile_pickles
import pytest
from huggingface_hub import constants
from PIL import Image
from spoiling import LAUGHS, copy_kit, field, png, put, row
from watching import watching

import mlx_visalign
from mlx_visalign.cli.main import main

# {marker} and {secrets} become paths when a case is prepared.
PYTHON = "open('{marker}', 'w').write('ran')\nclass Evil: pass\n"
ESCAPE = "{{ cycler.__init__.__globals__.os.system('touch {marker}') }}"
ENDLESS = "{% for i in range(999999999) %}{% for j in range(999999999) %}x{% endfor %}{% endfor %}"
GENERATE = "generate --image photos/0.png --max-tokens 2 --model model"
ADAPTER = "generate --model tiny --image photos/0.png --max-tokens 2 --adapter-path adapter"
CHECK, PROMPTS = "check --model tiny --data pairs.jsonl", "run seva --model tiny --prompts prompts.jsonl --output out --dry-run"
PHOTOS, RECIPE = "run seva --model tiny --images photos --output out --dry-run", "run -c bad.yaml --output out"
LLAVA, CLIP = "convert llava --hf-path model --mlx-path out", "convert clip --hf-path clip --mlx-path out"


def both(*spoils):
    return lambda folder: [spoil(folder) for spoil in spoils]


def auto_map(name, key, kind):
    """A config that names a class in Python beside it."""
    return both(put(f"{kind}/evil.py", PYTHON), field(f"{kind}/{name}", "auto_map", {key: "evil.Evil"}))


def pickled(name, kind="reduce inside a dict"):
    """Torch's weights alone, as a pickle that would run."""

    def spoil(folder):
        for file in (folder / name).parent.glob("*.safetensors"):
            file.unlink()
        hostile_pickles.write_torch_file(folder / name, hostile_pickles.executing(folder.parent / "secrets/ran")[kind])

    return spoil


def zip_slip(name):
    def spoil(folder):
        pickled(name)(folder)
        with zipfile.ZipFile(folder / name, "a") as archive:
            archive.writestr("../../secrets/ran", "ran")

    return spoil


def link(name, target):
    def spoil(folder):
        (folder / name).unlink(missing_ok=True)
        os.symlink(target, folder / name)

    return spoil


INDEX = json.dumps({"metadata": {}, "weight_map": {"a": "../../secrets/model.safetensors"}})
ELSEWHERE = ("../secrets/secret.png", "photos/../../secrets/secret.png", "{secrets}/secret.png", "file://{secrets}/secret.png")
REMOTE = ("http://127.0.0.1:9/a.png", "\\\\127.0.0.1\\a.png", "data:image/png;base64,AAAA", "~/a.png")

# What is spoilt, the command, and its exit code: what is only ignored does no harm to a command.
ARTEFACTS = {
    "Python named by a model's config": (auto_map("config.json", "AutoModelForVision2Seq", "model"), GENERATE, 0),
    "Python named as a config": (auto_map("config.json", "AutoConfig", "model"), GENERATE, 0),
    "Python named by a tokenizer's config": (auto_map("tokenizer_config.json", "AutoTokenizer", "model"), GENERATE, 0),
    "Python named by a preprocessor's config": (
        auto_map("preprocessor_config.json", "AutoImageProcessor", "model"),
        GENERATE,
        0,
    ),
    "Python named by a processor's config": (auto_map("processor_config.json", "AutoProcessor", "model"), GENERATE, 0),
    "Python as mlx-vlm would take it": (
        both(put("model/evil.py", PYTHON), field("model/config.json", "model_file", "evil.py")),
        GENERATE,
        0,
    ),
    "a tokenizer class in Python": (
        both(put("model/tokenization_evil.py", PYTHON), field("model/tokenizer_config.json", "tokenizer_class", "evil.Evil")),
        GENERATE,
        None,
    ),
    "Python to be converted": (auto_map("config.json", "AutoModel", "model"), LLAVA, 0),
    "Python that an adapter brings": (
        both(put("adapter/evil.py", PYTHON), field("adapter/adapter_config.json", "auto_mapping", {"parent_library": "evil"})),
        ADAPTER,
        0,
    ),
    "modules of our own names": (both(*(put(f"{name}.py", PYTHON) for name in ("safetensors", "numpy", "seva"))), GENERATE, 0),
    "a template that breaks out": (put("model/chat_template.jinja", ESCAPE), GENERATE, 0),
    "a template that never ends": (put("model/chat_template.jinja", ENDLESS), GENERATE, 0),
    "a template within a config": (field("model/tokenizer_config.json", "chat_template", ESCAPE), GENERATE, 0),
    "a template to be converted": (put("model/chat_template.jinja", ESCAPE), LLAVA, 2),
    "weights that are a pickle": (pickled("model/pytorch_model.bin"), GENERATE, 2),
    "a pickle to be converted": (pickled("model/pytorch_model.bin"), LLAVA, 2),
    "a pickled CLIP": (pickled("clip/pytorch_model.bin", "stack global"), CLIP, 2),
    "a pickled adapter": (pickled("adapter/adapter_model.bin"), "convert peft --adapter-path adapter --output out", 2),
    "an archive that leaves its folder": (zip_slip("model/pytorch_model.bin"), LLAVA, 2),
    "an index that leads outside": (
        both(lambda folder: (folder / "model/model.safetensors").unlink(), put("model/model.safetensors.index.json", INDEX)),
        LLAVA,
        2,
    ),
    "a tokenizer's file elsewhere": (
        field("model/tokenizer_config.json", "tokenizer_file", "../../secrets/secret.json"),
        GENERATE,
        0,
    ),
    "an adapter that names a model": (
        field("adapter/adapter_config.json", "base_model_name_or_path", "../../secrets"),
        ADAPTER,
        0,
    ),
    "an adapter that names the hub": (
        both(*(field("adapter/adapter_config.json", name, "evil/model") for name in ("base_model_name_or_path", "revision"))),
        ADAPTER,
        0,
    ),
    "a recipe that calls": (put("bad.yaml", "method: !!python/object/apply:os.system ['touch {marker}']"), RECIPE, 2),
    "a recipe that imports": (
        both(put("evil.py", PYTHON), put("bad.yaml", "method: !!python/object/new:evil.Evil []")),
        RECIPE,
        2,
    ),
    "a recipe that names Python as its method": (
        both(put("evil.py", PYTHON), put("bad.yaml", "method: ../../evil\nimages: photos")),
        RECIPE,
        2,
    ),
    "a recipe of a billion laughs": (put("bad.yaml", "method:" + LAUGHS), RECIPE, 2),
    "a PNG that is a bomb": (put("photos/1.png", png(50_000, 50_000)), PHOTOS, 2),
    "PostScript as an image": (
        put("photos/1.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {marker}) (w) file\n"),
        PHOTOS,
        2,
    ),
    "SVG as an image": (
        put("photos/1.png", '<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/"/></svg>'),
        PHOTOS,
        2,
    ),
    "a folder of photos that leads outside": (link("photos/more", "../../secrets"), PHOTOS, 0),
    **{f"a pair about {name}": (row("pairs.jsonl", 2, images=[name]), CHECK, 2) for name in ELSEWHERE + REMOTE},
    **{f"a prompt about {name}": (row("prompts.jsonl", 2, image=name), PROMPTS, 2) for name in ELSEWHERE + REMOTE[:1]},
    "a list of images outside": (
        put("truth.json", '{"../secrets/secret.png": ["dog"]}'),
        "eval --model tiny --annotations truth.json --max-tokens 2",
        2,
    ),
}


def fill_in(folder, secrets):
    """Write the paths of the secrets, and of the file that shows that something ran, where they are wanted."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix not in (".safetensors", ".bin"):
            wanted = path.read_bytes()
            filled = wanted.replace(b"{marker}", bytes(secrets / "ran")).replace(b"{secrets}", bytes(secrets))
            if filled != wanted:
                path.write_bytes(filled)


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_hostile_artefact_does_nothing(name, kit, tmp_path, monkeypatch, capsys):
    spoil, command, code = ARTEFACTS[name]
    folder, secrets = tmp_path / "folder", tmp_path / "secrets"
    secrets.mkdir()
    Image.new("RGB", (48, 48)).save(secrets / "secret.png")
    (secrets / "secret.json").write_text("{}")
    copy_kit(kit, folder, command)
    spoil(folder)
    fill_in(folder, secrets)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # so that whoever wants to call may try
    with watching(secrets) as seen:
        found = main(command.split())
    said = capsys.readouterr()
    assert found == code or (code is None and found in (0, 2)), said
    assert "Traceback" not in said.err
    assert not (secrets / "ran").exists() and not seen.secrets and not seen.executed and not seen.called
    assert not [module for module in list(sys.modules.values()) if str(folder) in str(vars(module).get("__file__"))]
    assert not [path for path in seen.opened if not is_ours(path, folder)]


def is_ours(path, folder):
    """Whether it belongs to the case, to Python and what is installed, or to the system."""
    places = (
        folder,
        sys.prefix,
        sys.base_prefix,
        Path(mlx_visalign.__file__).parents[1],
        "/proc",
        "/sys",
        "/dev",
        "/etc",
        "/usr",
    )
    return any(path.is_relative_to(os.path.realpath(place)) for place in places)


def test_a_link_is_followed_only_if_that_is_wanted_and_tells_nothing_of_what_is_no_image(kit, tmp_path, monkeypatch, capsys):
    copy_kit(kit, tmp_path / "folder", PHOTOS)
    (tmp_path / "other.txt").write_text("a secret of many words")
    link("photos/1.png", "../../other.txt")(tmp_path / "folder")
    monkeypatch.chdir(tmp_path / "folder")
    assert main(PHOTOS.split()) == 0
    assert "Left out: links that lead out of the folder: 1 (use --follow-links to read them)" in capsys.readouterr().err
    assert main([*PHOTOS.split(), "--follow-links"]) == 2
    said = capsys.readouterr()
    assert "photos/1.png" in said.err and "many words" not in said.err + said.out


# -- what people look at ----------------------------------------------------------------------------------------------

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)><b onclick='a()'>\"'"


class Page(html.parser.HTMLParser):
    """The elements of a page that could run or load something."""

    def __init__(self, text):
        super().__init__()
        self.bad = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        loads = [
            values[name] for name in ("src", "href", "action") if name in values and not values[name].startswith("data:image/")
        ]
        if tag in ("script", "iframe", "object", "link", "form") or any(name.startswith("on") for name in values) or loads:
            self.bad.append((tag, attributes))


def test_names_and_questions_are_text_in_a_page(kit, tmp_path, monkeypatch, capsys):
    copy_kit(kit, tmp_path, "compare")
    (tmp_path / "photos/0.png").rename(tmp_path / "photos/<script>alert(1)<.png")
    (tmp_path / "photos/1.png").rename(tmp_path / "photos/x' onerror='alert(1).png")
    monkeypatch.chdir(tmp_path)
    command = ["compare", "tiny", "tiny", "--images", "photos", "--max-tokens", "2", "--prompt", SCRIPT]
    assert main(command) == 0
    text = (tmp_path / "compare.html").read_text()
    assert Page(text).bad == [] and "&lt;script&gt;" in text


def test_terminal_codes_are_shown_and_not_sent(kit, tmp_path, monkeypatch, capsys):
    copy_kit(kit, tmp_path, "generate")
    names = ["photos/\x1b]0;owned\x07.png", "photos/\x1b[2J.png"]
    (tmp_path / "photos/0.png").rename(tmp_path / names[0])
    (tmp_path / names[1]).write_text("no image")
    monkeypatch.chdir(tmp_path)
    for images, code in (([names[0], "photos/1.png"], 0), (names, 2)):
        assert main(["generate", "--model", "tiny", "--max-tokens", "2", "--image", *images]) == code
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\x07" not in said.out
    assert "\\x1b]0;owned" in said.out and "\\x1b[2J" in said.err
