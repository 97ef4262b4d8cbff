"""Bad inputs: what is spoilt, the command that meets it, and what its one message must name."""

import json
import os

import mlx.core as mx
from spoiling import (
    LAUGHS,
    Case,
    cut,
    field,
    first_changed,
    gone,
    line,
    link,
    nested,
    nothing_left,
    picture,
    png,
    put,
    recipe,
    row,
    tensors,
    twice,
)

PHOTOS = "run seva --model tiny --images photos --output out --iters 2"
PROMPTS = "run seva --model tiny --prompts prompts.jsonl --output out --iters 2"
TRAIN = "train --model tiny --data pairs.jsonl --adapter-path out --iters 2"
CHECK = "check --model tiny --data pairs.jsonl"
RECIPE = "run -c bad.yaml --output out"
EVAL = "eval --model tiny --annotations truth.json --max-tokens 4"
JUDGE = "judge --model tiny --images photos --max-tokens 4 --output out"
LABELLED = f"{JUDGE} --annotations truth.json"
ADAPTER = "generate --model tiny --image photos/0.png --adapter-path adapter"
MODEL = "generate --image photos/0.png --model model"
DRY = "run seva --model tiny --images photos --dry-run"
LLAVA = "convert llava --hf-path model --mlx-path out"
SEVA, CSR, FISAO = (f"run -c {method}.yaml --output runs/{method}" for method in ("seva", "csr", "fisao"))
CLIP = "run csr --model tiny --images photos --output out --set clip=clip"


def index(shard):
    """The model as one shard of this name, which an index gives."""
    listed = put("model/model.safetensors.index.json", json.dumps({"weight_map": {"a": shard}}))
    return lambda folder: [gone("model/model.safetensors")(folder), listed(folder)]


IMAGES = [
    Case("a missing image", "generate --model tiny --image photos/9.png", "photos/9.png: no such image"),
    Case("a folder as an image", "generate --model tiny --image photos", ("photos", "cannot be decoded")),
    Case("a truncated image", PHOTOS, ("1 of the images", "photos/1.png", "--skip-bad"), cut("photos/1.png")),
    Case("an empty image", PHOTOS, ("photos/1.png", "expected a JPEG, PNG"), put("photos/1.png", b"")),
    Case("a text as an image", PHOTOS, ("photos/1.png", "expected a JPEG, PNG"), put("photos/1.png", "no image")),
    Case("a BMP as an image", PHOTOS, ("photos/1.png", "expected a JPEG, PNG"), picture("BMP")),
    Case("a TIFF as an image", PHOTOS, ("photos/1.png", "expected a JPEG, PNG"), picture("TIFF")),
    Case(
        "a huge PNG", PHOTOS, ("photos/1.png", "more than 200 megapixels", "shrink it"), put("photos/1.png", png(60000, 60000))
    ),
    Case("a very long PNG", PHOTOS, ("photos/1.png", "65536x1", "shrink it"), put("photos/1.png", png(65_536, 1))),
    Case("a PNG without height", PHOTOS, "photos/1.png", put("photos/1.png", png(9, 0))),
    Case(
        "no image at all",
        PHOTOS,
        "There is no JPEG, PNG",
        lambda f: [gone(f"photos/{i}.png")(f) for i in range(4)],
    ),
    Case(
        "no image as the images",
        "run seva --model tiny --images pairs.jsonl --output out",
        ("pairs.jsonl", "expected a JPEG, PNG"),
    ),
    Case("no folder", "run seva --model tiny --images nowhere --output out", "no file or folder nowhere"),
    Case(
        "a bad image to ask about",
        "generate --model tiny --image photos/0.png photos/1.png",
        "photos/1.png",
        cut("photos/1.png", 0.3),
    ),
    Case("a bad image among pairs", TRAIN, ("pairs.jsonl:2", "photos/1.png"), cut("photos/1.png")),
    Case("a bad image among pairs to check", CHECK, ("pairs.jsonl:2", "photos/1.png"), cut("photos/1.png")),
    Case("a bad image among prompts", PROMPTS, ("prompts.jsonl:2", "photos/1.png"), put("photos/1.png", png(60000, 60000))),
    Case("a bad image to measure on", EVAL, "photos/1.png", cut("photos/1.png")),
    Case("a bad image in a plan", DRY, "photos/1.png", cut("photos/1.png")),
    Case("a pipe as an image", PHOTOS, "photos/1.png", lambda f: (gone("photos/1.png")(f), os.mkfifo(f / "photos/1.png"))),
]

ROWS = [
    Case("no pairs file", "check --model tiny --data nowhere.jsonl", "--data: there is no file or folder nowhere.jsonl"),
    Case(
        "nothing that is named", "check --model tiny --data no.jsonl --images none", ("--data", "no.jsonl", "--images", "none")
    ),
    Case("no two images", "generate --model tiny --image no.png photos/0.png none.png", ("no.png", "none.png")),
    Case("a folder as pairs", "check --model tiny --data photos", "photos cannot be read"),
    Case("no pairs", TRAIN, "pairs.jsonl contains no pairs", put("pairs.jsonl", "")),
    Case("only empty lines", TRAIN, "pairs.jsonl contains no pairs", put("pairs.jsonl", "\n \n\n")),
    Case("a broken row", TRAIN, ("pairs.jsonl:2", "not valid JSON"), line("pairs.jsonl", 2, '{"id": "p1", "ima')),
    Case("a truncated last row", TRAIN, ("pairs.jsonl:4", "not valid JSON"), cut("pairs.jsonl", 0.95)),
    Case("a list that does not end", TRAIN, "pairs.jsonl: not valid JSON", put("pairs.jsonl", '[{"id": 1},')),
    Case("a number as a row", TRAIN, "pairs.jsonl:3", line("pairs.jsonl", 3, "17")),
    Case("null as the first row", TRAIN, "pairs.jsonl:1", line("pairs.jsonl", 1, "null")),
    Case("a row too deep", TRAIN, "pairs.jsonl:2", line("pairs.jsonl", 2, nested(100_000))),
    Case("a list of lists", CHECK, "pairs.jsonl: row 1", put("pairs.jsonl", nested(50))),
    Case("zeros", TRAIN, ("pairs.jsonl:1", "not valid JSON"), put("pairs.jsonl", bytes(100))),
    Case("Latin-1", TRAIN, ("pairs.jsonl", "UTF-8"), put("pairs.jsonl", '{"id": "Käse"}'.encode("latin-1"))),
    Case("torn UTF-16", TRAIN, ("pairs.jsonl", "UTF-16"), put("pairs.jsonl", '{"id": "a"}'.encode("utf-16")[:-1])),
    Case("a missing column", TRAIN, "pairs.jsonl:2", row("pairs.jsonl", 2, "rejected")),
    Case("unknown columns", TRAIN, ("pairs.jsonl:1", "no known preference format"), put("pairs.jsonl", '{"text": "a"}')),
    Case("a number as an answer", CHECK, ("pairs.jsonl:2: chosen", "got 5"), row("pairs.jsonl", 2, chosen=5)),
    Case("a number as images", CHECK, ("pairs.jsonl:2: images", "got 5"), row("pairs.jsonl", 2, images=5)),
    Case("a role that is none", CHECK, "pairs.jsonl:2: prompt", row("pairs.jsonl", 2, prompt=[{"role": "me", "content": "a"}])),
    Case("two turns", CHECK, "pairs.jsonl:2: prompt", row("pairs.jsonl", 2, prompt=[{"role": "user", "content": "a"}] * 2)),
    Case("a number as a method", CHECK, "pairs.jsonl:2: method", row("pairs.jsonl", 2, method=5)),
    Case("a score that is not finite", CHECK, "pairs.jsonl:2: chosen_score", row("pairs.jsonl", 2, chosen_score=float("nan"))),
    Case("a score of 999 digits", CHECK, "pairs.jsonl:2: chosen_score", row("pairs.jsonl", 2, chosen_score=10**999)),
    Case("a score of 9999 digits", CHECK, "pairs.jsonl:2", line("pairs.jsonl", 2, '{"chosen_score": ' + "9" * 9999 + "}")),
    Case("too much smoothing", CHECK, "pairs.jsonl:2: label_smoothing", row("pairs.jsonl", 2, label_smoothing=0.7)),
    Case(
        "half a character", CHECK, "pairs.jsonl:2", row("pairs.jsonl", 2, chosen=[{"role": "assistant", "content": "\ud800"}])
    ),
    Case("no image", CHECK, ("pairs.jsonl:2", "no image"), row("pairs.jsonl", 2, images=[])),
    Case("two images", CHECK, "pairs.jsonl:2", row("pairs.jsonl", 2, images=["photos/0.png", "photos/1.png"])),
    Case("a missing image of a pair", TRAIN, ("pairs.jsonl:2", "photos/9.png"), row("pairs.jsonl", 2, images=["photos/9.png"])),
    Case("an image outside", TRAIN, ("pairs.jsonl:2", "lies outside"), row("pairs.jsonl", 2, images=["../secret.png"])),
    Case(
        "an image by its whole path", TRAIN, ("pairs.jsonl:2", "lies outside"), row("pairs.jsonl", 2, images=["/etc/hostname"])
    ),
    Case("images elsewhere", f"{TRAIN} --images photos", ("pairs.jsonl:1", "no image")),
    Case(
        "a placeholder in an answer",
        CHECK,
        "pairs.jsonl:2",
        row("pairs.jsonl", 2, chosen=[{"role": "assistant", "content": "a <image>"}]),
    ),
    Case("a pair twice", TRAIN, ("pairs.jsonl:5", "'p1'", "pairs.jsonl:2"), twice("pairs.jsonl", 2)),
    Case("no prompts", PROMPTS, "prompts.jsonl contains no prompts", put("prompts.jsonl", "")),
    Case("a broken prompt", PROMPTS, ("prompts.jsonl:3", "not valid JSON"), line("prompts.jsonl", 3, "{")),
    Case("a prompt without a text", PROMPTS, ("prompts.jsonl:3", "'prompt' is missing"), row("prompts.jsonl", 3, "prompt")),
    Case("a prompt of no kind", PROMPTS, "prompts.jsonl:3: kind", row("prompts.jsonl", 3, kind="haiku")),
    Case("a prompt twice", PROMPTS, ("prompts.jsonl:5", "'q1'"), twice("prompts.jsonl", 2)),
    Case("a prompt about nothing", PROMPTS, ("prompts.jsonl:3", "photos/9.png"), row("prompts.jsonl", 3, image="photos/9.png")),
    Case("a prompt about two images", PROMPTS, "prompts.jsonl:3: prompt", row("prompts.jsonl", 3, prompt="<image> <image>?")),
    Case(
        "a prompt of two turns", PROMPTS, ("prompts.jsonl:3", "Vicuna"), row("prompts.jsonl", 3, prompt="USER: a ASSISTANT: b")
    ),
    Case(
        "a prompt about an image outside",
        PROMPTS,
        ("prompts.jsonl:3", "lies outside"),
        row("prompts.jsonl", 3, image="../a.png"),
    ),
    Case("prompts that are not there", "run seva --model tiny --prompts nowhere.jsonl", "no file or folder nowhere.jsonl"),
    Case("a list that is none to judge by", LABELLED, "truth.json must be named values", put("truth.json", "[1]")),
    Case(
        "a list of other images",
        LABELLED,
        ("truth.json has labels of none of the 4 images",),
        put("truth.json", '{"a.png": []}'),
    ),
    Case(
        "a list with an object that is none to judge by",
        LABELLED,
        ("truth.json", "no object called 'zebu'", "--vocabulary"),
        put("truth.json", '{"0.png": ["zebu"]}'),
    ),
    Case("a bad image to judge", JUDGE, "photos/1.png", cut("photos/1.png")),
    Case("a vocabulary that is none to judge by", f"{JUDGE} --vocabulary words.json", "words.json", put("words.json", "[1]")),
    Case("no CLIP to judge by", f"{JUDGE} --clip nowhere", "--clip: there is no file or folder nowhere"),
    Case("a broken CLIP to judge by", f"{JUDGE} --clip clip", "The CLIP in clip cannot be read", cut("clip/config.json")),
    Case("no scorer to judge by", f"{JUDGE} --scorer mine.py:f", "There is no Python file"),
    Case("a list that is none", EVAL, "truth.json must be named values", put("truth.json", "[1]")),
    Case("a list that is broken", EVAL, "truth.json: not valid JSON", cut("truth.json")),
    Case("an empty list", EVAL, "truth.json lists no image", put("truth.json", "{}")),
    Case(
        "objects that are numbers", EVAL, "truth.json: photos/0.png[0] must be text", put("truth.json", '{"photos/0.png": [1]}')
    ),
    Case(
        "an object nobody knows",
        EVAL,
        ("truth.json: photos/0.png", "'gizmo'"),
        put("truth.json", '{"photos/0.png": ["gizmo"]}'),
    ),
    Case("a listed image outside", EVAL, ("truth.json", "lies outside"), put("truth.json", '{"/etc/hostname": ["dog"]}')),
    Case(
        "no such list", "eval --model tiny --annotations nowhere.json", "--annotations: there is no file or folder nowhere.json"
    ),
    Case(
        "a vocabulary that is none", f"{PHOTOS} --vocabulary words.json", "words.json must be a list", put("words.json", "{}")
    ),
    Case(
        "a phrase that is empty",
        f"{EVAL} --vocabulary words.json",
        "words.json",
        put("words.json", '[{"canonical": "a", "phrases": [" "]}]'),
    ),
    Case("labels of other images", f"{FISAO}-2 --set labels=truth.json", ("truth.json", "no labels for")),
]

RECIPES = [
    Case("no recipe", RECIPE, "bad.yaml"),
    Case("an unknown method", "run sevva", "Did you mean 'seva'?"),
    Case("a method by a path", "run -c bad.yaml", "../evil", recipe("method: ../evil\nimages: photos")),
    Case("an unknown setting", RECIPE, ("bad.yaml", "Did you mean 'images'?"), recipe("method: seva\nimagse: photos")),
    Case(
        "an unknown setting of the method",
        RECIPE,
        ("bad.yaml", "settings", "Did you mean 'max_tokens'?"),
        recipe("model: tiny\nmethod: seva\nimages: photos\nsettings: {max_token: 5}"),
    ),
    Case(
        "an unknown setting far inside",
        RECIPE,
        ("bad.yaml", "settings: train: lora", "Did you mean 'rank'?"),
        recipe("model: tiny\nmethod: seva\nimages: photos\nsettings: {train: {lora: {ranks: 5}}}"),
    ),
    Case(
        "a text as a number",
        RECIPE,
        ("bad.yaml", "max_images must be a whole number"),
        recipe("model: tiny\nmethod: seva\nimages: photos\ncount: many"),
    ),
    Case(
        "a number as a section",
        RECIPE,
        "settings: train: expected named values",
        recipe("model: tiny\nmethod: seva\nimages: photos\nsettings: {train: 5}"),
    ),
    Case("a list as the method", RECIPE, "method must be text", recipe("method: [seva]\nimages: photos")),
    Case("a list as a recipe", RECIPE, "bad.yaml: a recipe consists of named values", recipe("- seva\n")),
    Case("an empty recipe", RECIPE, "bad.yaml: a recipe consists of named values", recipe("")),
    Case("no YAML", RECIPE, ("bad.yaml is not a valid YAML file", "line 1"), recipe("method: [seva")),
    Case("tabs", RECIPE, ("bad.yaml is not a valid YAML file", "line 2"), recipe("method: seva\n\timages: photos")),
    Case(
        "a name given twice",
        RECIPE,
        ("'max_images' is given twice", "line 3"),
        recipe("method: seva\nmax_images: 1\nmax_images: 2"),
    ),
    Case("a number as a name", RECIPE, "unknown name '1'", recipe("model: tiny\nmethod: seva\nimages: photos\n1: 2")),
    Case("a list as a name", RECIPE, "bad.yaml is not a valid YAML file", recipe("? [a, b]\n: 2")),
    Case(
        "a Python object",
        RECIPE,
        ("bad.yaml is not a valid YAML file", "python/object"),
        recipe("method: !!python/object/apply:os.system [id]"),
    ),
    Case("a billion laughs", RECIPE, "model must be text", recipe(f"method: seva\nimages: photos\nmodel:{LAUGHS}")),
    Case("a list within itself", RECIPE, "bad.yaml", recipe("model: tiny\nmethod: seva\nimages: &a [*a]")),
    Case("a recipe too deep", RECIPE, "bad.yaml", recipe(f"method: {nested(5000)}")),
    Case("a recipe in Latin-1", RECIPE, "bad.yaml is not UTF-8", put("bad.yaml", "method: Käse".encode("latin-1"))),
    Case(
        "a preset that is not there",
        RECIPE,
        "presets: unknown name 'big'",
        recipe("method: seva\npreset: big\npresets: {small: {}}"),
    ),
    Case(
        "a preset that is a list",
        RECIPE,
        "preset 'big' must consist of named values",
        recipe("preset: big\npresets: {big: [1]}"),
    ),
    Case("no images and no prompts", RECIPE, "--images", recipe("method: seva")),
    Case("a rank of nothing", f"{PHOTOS} --set train.lora.rank=0", "--set train.lora.rank is 0; it must be 1 or more"),
    Case(
        "a loss that nobody knows", f"{PHOTOS} --loss-type kto", "--loss-type must be one of sigmoid, ipo, hinge, robust, mdpo"
    ),
    Case("noise for a loss without", f"{PHOTOS} --set train.noise=0.1", "--set train.noise is 0.1; it must be 0 unless"),
    Case(
        "smoothing for a loss without",
        "train --model tiny --data pairs.jsonl --adapter-path out --loss-type mdpo --set label_smoothing=0.1",
        "label_smoothing is 0.1; it must be 0 unless loss_type is sigmoid",
    ),
    Case("a value inside a value", f"{PHOTOS} --set view.x=1", "--set view.x: view must be text"),
    Case("an unknown view", f"{PHOTOS} --set view=nope", "nope"),
    Case("no update", f"{PHOTOS} --iters 0", "iters"),
    Case("a rate that is no number", f"{PHOTOS} --learning-rate nan", "--learning-rate must be a number"),
    Case("no image to take", f"{PHOTOS} --max-images 0", "--max-images is 0; it must be 1 or more"),
    Case("a seed below nothing", f"{PHOTOS} --seed -1", "--seed is -1; it must be 0 or more"),
    Case("less than no memory", f"{PHOTOS} --cache-gb -1", "--cache-gb is -1.0"),
    Case("no token to answer with", f"{PHOTOS} --max-tokens 0", "--max-tokens is 0"),
    Case(
        "another task's setting",
        "train --model tiny --data pairs.jsonl --adapter-path out --set rounds=2",
        "unknown name 'rounds'",
    ),
    Case(
        "a scorer for a method without one",
        f"{RECIPE}",
        "uses no scorer",
        recipe("model: tiny\nmethod: seva\nimages: photos\nscorer: a:b"),
    ),
    Case(
        "a scorer of no module",
        RECIPE,
        "nowhere:score",
        recipe("model: tiny\nmethod: csr\nimages: photos\nscorer: nowhere:score"),
    ),
    Case(
        "a scorer of no function",
        RECIPE,
        "json has no function 'score'",
        recipe("model: tiny\nmethod: csr\nimages: photos\nscorer: json:score"),
    ),
    Case(
        "a scorer without a module",
        RECIPE,
        "MODULE:FUNCTION",
        recipe("model: tiny\nmethod: csr\nimages: photos\nscorer: ':score'"),
    ),
    Case(
        "a phrase without a place", "run fisao --model tiny --images photos --output out --set judge.phrase=a", "phrase is 'a'"
    ),
    *(
        Case(
            f"a {tag} that is none",
            RECIPE,
            "bad.yaml is not a valid YAML file",
            recipe(f"method: seva\ncount: !!{tag} {value}"),
        )
        for tag, value in {
            "float": "",
            "int": "",
            "bool": "maybe",
            "timestamp": "soon",
            "binary": "ä",
            "set": "a",
            "omap": "a",
        }.items()
    ),
    Case(
        "images of a name too long",
        RECIPE,
        "there is no file or folder",
        recipe("model: tiny\nmethod: seva\nimages: " + "a/" * 3000),
    ),
    Case("a recipe of a name too long", f"run -c {'a' * 3000}", "neither a file"),
    Case(
        "a number of 400 digits",
        RECIPE,
        ("settings: num_beam_groups", "fewer than 19 digits"),
        recipe(f"model: tiny\nmethod: csr\nimages: photos\nsettings: {{num_beam_groups: {'9' * 400}}}"),
    ),
    Case("an unknown benchmark", "eval --benchmark chari", "Did you mean 'chair'?"),
]

RUNS = [
    Case("another method's run", "run -c csr.yaml --output runs/seva", ("runs/seva", "seva")),
    Case(
        "a run that is a file",
        "run -c seva.yaml --output pairs.jsonl",
        "pairs.jsonl could not be written: a file is where a folder has to be",
    ),
    Case("a config that is broken", SEVA, ("runs/seva/config.yaml", "YAML"), put("runs/seva/config.yaml", "method: [")),
    Case("settings that are broken", SEVA, "prompts.settings.json", cut("runs/seva/prompts.settings.json")),
    Case("settings that are none", SEVA, "prompts.settings.json", put("runs/seva/prompts.settings.json", "5")),
    Case("settings that are gone", SEVA, "prompts.settings.json", gone("runs/seva/prompts.settings.json")),
    Case("a broken prompt of a run", SEVA, "prompts.jsonl:2", line("runs/seva/prompts.jsonl", 2, '{"id": ')),
    Case(
        "a prompt of a run without its side",
        SEVA,
        ("prompts.jsonl:2", "held_out"),
        row("runs/seva/prompts.jsonl", 2, "held_out"),
    ),
    Case("a broken response", SEVA, "responses.jsonl:3", line("runs/seva/responses.jsonl", 3, '{"id"')),
    Case("a response twice", SEVA, ("44 then, 45 now", "pairs.settings.json"), twice("runs/seva/responses.jsonl", 3)),
    Case("a broken pair of a run", SEVA, "pairs.jsonl:2", line("runs/seva/pairs.jsonl", 2, "}")),
    Case("a pair without its reference", SEVA, "lacks reference_logps", row("runs/seva/pairs.jsonl", 3, reference_logps=None)),
    Case(
        "a pair without half of its reference",
        SEVA,
        "lacks reference_logps of rejected",
        row("runs/seva/pairs.jsonl", 3, reference_logps={"chosen": -1.0}),
    ),
    Case("a pair with a third reference", SEVA, "pairs.jsonl:3", row("runs/seva/pairs.jsonl", 3, reference_logps=[-1, -2, -3])),
    Case("a broken held-out pair", SEVA, "held_out_pairs.jsonl:1", line("runs/seva/held_out_pairs.jsonl", 1, "{]")),
    Case("versions that are none", SEVA, "versions.json", put("runs/seva/versions.json", '{"mlx": [1]}')),
    Case("metrics that are gone", SEVA, ("metrics.jsonl is damaged", "copy"), put("runs/seva/metrics.jsonl", "{}")),
    Case("checkpoints of another rank", f"{SEVA} --set train.lora.rank=8", ("lora.rank is 8 now", "state.json")),
    Case("a broken tree", CSR, "trees.jsonl:2", line("runs/csr/trees.jsonl", 2, '{"')),
    Case("a tree whose answer is not there", CSR, "trees.jsonl:2", row("runs/csr/trees.jsonl", 2, chosen=999)),
    Case("a broken pair of the second round", CSR, "pairs-2.jsonl:1", row("runs/csr/pairs-2.jsonl", 1, "chosen")),
    Case("a judged answer that is broken", CSR, "judge.jsonl:2", line("runs/csr/judge.jsonl", 2, "(")),
    Case(
        "a judged object without scores", FISAO, "judge.jsonl:1", row("runs/fisao/judge.jsonl", 1, objects=[{"object": "dog"}])
    ),
    Case("sampled answers that are gone", FISAO, "samples.jsonl:3", row("runs/fisao/samples.jsonl", 3, "answers")),
    Case("a rollout that is broken", FISAO, "rollouts/0000002.jsonl:2", line("runs/fisao/rollouts/0000002.jsonl", 2, "!")),
    Case(
        "a rollout with a number too many",
        FISAO,
        "rollouts/0000002.jsonl:2: expected one number for each",
        row("runs/fisao/rollouts/0000002.jsonl", 2, blind_logps=[-0.5]),
    ),
    Case("a rollout that is gone", FISAO, "rollouts/0000002.jsonl", gone("runs/fisao/rollouts/0000002.jsonl")),
    Case("a run to reuse that is not there", f"{PHOTOS} --reuse nowhere", "nowhere is not a folder"),
    Case(
        "a broken run to reuse",
        "run -c seva.yaml --reuse runs/seva --output out",
        "responses.jsonl:3",
        line("runs/seva/responses.jsonl", 3, "{"),
    ),
]

MODELS = [
    Case(
        "no model", "generate --image photos/0.png --model nowhere", "nowhere is neither a local folder nor a name on the hub"
    ),
    Case("a file as a model", "generate --image photos/0.png --model pairs.jsonl", "pairs.jsonl is a file, not a folder"),
    Case("no config", MODEL, "model/config.json is missing", gone("model/config.json")),
    Case("a broken config", MODEL, "model/config.json is not valid JSON", cut("model/config.json")),
    Case("a list as a config", MODEL, "model/config.json should hold a JSON object", put("model/config.json", "[]")),
    Case("a model that is no LLaVA", MODEL, "bert", field("model/config.json", "model_type", "bert")),
    Case("a config without words", MODEL, "config.json", field("model/config.json", "text_config", None)),
    Case("a config with a text for words", MODEL, "config.json", field("model/config.json", "text_config", "llama")),
    Case("a width that is text", MODEL, "config.json", field("model/config.json", "text_config.hidden_size", "wide")),
    Case("a base that is text", MODEL, "text_config.rope_theta", field("model/config.json", "text_config.rope_theta", "a")),
    Case(
        "a rounding that is text",
        MODEL,
        "text_config.rms_norm_eps",
        field("model/config.json", "text_config.rms_norm_eps", "a"),
    ),
    Case(
        "rotations that are a list",
        MODEL,
        "rope_parameters must be named values",
        field("model/config.json", "text_config.rope_parameters", [1]),
    ),
    Case(
        "heads that are a list",
        MODEL,
        "vision_config.num_attention_heads",
        field("model/config.json", "vision_config.num_attention_heads", [4]),
    ),
    Case(
        "merges that are none",
        MODEL,
        "tokenizer.json cannot be read as a tokenizer",
        field("model/tokenizer.json", "model.merges", [1, 2]),
    ),
    Case("a shard of a name too long", LLAVA, "File name too long", index("a" * 3000)),
    Case("a shard of a name that is none", LLAVA, "is missing", index("a\0b")),
    Case(
        "layers without end", MODEL, "num_hidden_layers is", field("model/config.json", "text_config.num_hidden_layers", 10**7)
    ),
    Case(
        "a norm below nothing",
        MODEL,
        "layer_norm_eps -0.5 is not supported",
        field("model/config.json", "vision_config.layer_norm_eps", -0.5),
    ),
    Case("an image token beyond all", MODEL, "image_token_index", field("model/config.json", "image_token_index", 10**12)),
    Case(
        "a longest text that is text",
        MODEL,
        "model has no tokenizer",
        field("model/tokenizer_config.json", "model_max_length", "9"),
    ),
    Case("padding that is a number", MODEL, "got: int", field("model/tokenizer_config.json", "pad_token", 5)),
    Case("a layer that is not there", MODEL, "config.json", field("model/config.json", "vision_feature_layer", 99)),
    Case("no image token", MODEL, "config.json", field("model/config.json", "image_token_index", "x")),
    Case("a template that is none", MODEL, "model", field("model/config.json", "visalign", {"template": "alpaca"})),
    Case("a conversion's template", LLAVA, "visalign.template", field("model/config.json", "visalign", {"template": "alpaca"})),
    Case("a list as a template", LLAVA, "visalign.template", field("model/config.json", "visalign", {"template": ["hf"]})),
    Case("a conversion's aspect", LLAVA, "visalign.aspect", field("model/config.json", "visalign", {"aspect": "wide"})),
    Case(
        "bits that are none",
        MODEL,
        "config.json",
        field("model/config.json", "quantization", {"bits": 4}),
    ),
    Case("no weights", MODEL, "model has no .safetensors weights", gone("model/model.safetensors")),
    Case(
        "truncated weights", MODEL, "model/model.safetensors is not a complete safetensors file", cut("model/model.safetensors")
    ),
    Case("a text as weights", MODEL, "model/model.safetensors", put("model/model.safetensors", "no weights")),
    Case(
        "a header larger than the file", MODEL, "model/model.safetensors", put("model/model.safetensors", b"\xff" * 7 + b"\0{}")
    ),
    Case(
        "weights of something else", MODEL, ("model", "tensors are missing"), tensors("model/model.safetensors", nothing_left)
    ),
    Case(
        "a weight of another shape",
        MODEL,
        ("model", "has shape"),
        tensors("model/model.safetensors", first_changed(lambda x: x[:1])),
    ),
    Case("a broken tokenizer", MODEL, "model: tokenizer.json cannot be read as a tokenizer", cut("model/tokenizer.json")),
    Case(
        "a tokenizer of nothing",
        MODEL,
        "model: tokenizer.json cannot be read as a tokenizer",
        put("model/tokenizer.json", "{}"),
    ),
    Case(
        "a tokenizer's config that is a list",
        MODEL,
        "model: tokenizer_config.json should hold a JSON object",
        put("model/tokenizer_config.json", "[]"),
    ),
    Case("no preprocessor", MODEL, "model/preprocessor_config.json is missing", gone("model/preprocessor_config.json")),
    Case(
        "a mean that is text",
        MODEL,
        "preprocessor_config.json: mean",
        field("model/preprocessor_config.json", "image_mean", "grey"),
    ),
    *(
        Case(f"a std of {std[2]}", MODEL, "which no model has", field("model/preprocessor_config.json", "image_std", std))
        for std in ([0.5, 0.5, 0], [0.5, 0.5, -0.5], [0.5, 0.5, 1e30])
    ),
    Case("images of another size", MODEL, "preprocessor_config.json", field("model/preprocessor_config.json", "crop_size", 12)),
    Case("a broken model for the doctor", "doctor --model model", "model/model.safetensors", cut("model/model.safetensors")),
    Case("a broken model in a plan", f"{DRY} --model model", "model/config.json", cut("model/config.json")),
    Case("a broken model for pairs", f"{CHECK} --model model", "model/config.json", cut("model/config.json")),
    Case(
        "a CLIP that is none",
        "run csr --model tiny --images photos --output out --set clip=photos",
        "photos/config.json is missing",
    ),
    Case("a CLIP with a broken config", CLIP, "clip/config.json", cut("clip/config.json")),
    Case("a CLIP with truncated weights", CLIP, "The CLIP in clip cannot be read", cut("clip/model.safetensors")),
    Case("a CLIP of something else", CLIP, "clip", tensors("clip/model.safetensors", nothing_left)),
    Case("a CLIP without words", CLIP, "clip has no tokenizer", gone("clip/tokenizer.json")),
    Case("a model without words", MODEL, "model has no tokenizer", gone("model/tokenizer.json")),
    Case(
        "a CLIP with a text for vision",
        CLIP,
        "config.json has no vision_config; a CLIP needs one",
        field("clip/config.json", "vision_config", "none"),
    ),
    Case(
        "a model to convert that is broken",
        "convert llava --hf-path model --mlx-path out",
        "model/config.json",
        cut("model/config.json"),
    ),
    Case(
        "a fusion with a broken model",
        "fuse --model model --adapter-path adapter --mlx-path out",
        "model",
        cut("model/model.safetensors"),
    ),
]

WEIGHTS, CONFIG = "adapter/adapters.safetensors", "adapter/adapter_config.json"
ADAPTERS = [
    Case(
        "no adapter",
        "generate --model tiny --image photos/0.png --adapter-path nowhere",
        "nowhere/adapter_config.json is missing",
    ),
    Case(
        "a file as an adapter",
        "generate --model tiny --image photos/0.png --adapter-path pairs.jsonl",
        "pairs.jsonl/adapter_config.json",
    ),
    Case("an adapter without its config", ADAPTER, f"{CONFIG} is missing", gone(CONFIG)),
    Case("an adapter with a broken config", ADAPTER, f"{CONFIG} is not valid JSON", cut(CONFIG)),
    Case("an adapter without parameters", ADAPTER, f"{CONFIG} has no lora_parameters", field(CONFIG, "lora_parameters", None)),
    Case("an adapter with a text as rank", ADAPTER, f"{CONFIG}: rank must be", field(CONFIG, "lora_parameters.rank", "four")),
    Case(
        "an adapter far too strong", ADAPTER, ("logits are not finite", "1e+308"), field(CONFIG, "lora_parameters.scale", 1e308)
    ),
    Case(
        "a matrix of three dimensions",
        "convert peft --adapter-path adapter --output out",
        ("adapter: language_model.model.layers.0", "expected 2 dimensions"),
        tensors(WEIGHTS, first_changed(lambda x: x[None])),
    ),
    Case("an adapter with keys that are numbers", ADAPTER, f"{CONFIG}: keys", field(CONFIG, "lora_parameters.keys", [1])),
    Case(
        "an adapter with other keys", ADAPTER, "adapter: adapter_config.json and", field(CONFIG, "lora_parameters.keys", ["a"])
    ),
    Case("an adapter of another rank", ADAPTER, "adapter", field(CONFIG, "round_ranks", [5])),
    Case(
        "an adapter of other rounds",
        ADAPTER,
        "the config says rank 5",
        lambda f: [field(CONFIG, n, v)(f) for n, v in (("lora_parameters.rank", 5), ("round_ranks", [5]))],
    ),
    Case(
        "an adapter for another base",
        ADAPTER,
        "trained on another model",
        lambda f: [field(CONFIG, n, "0" * 64)(f) for n in ("base_fingerprint", "source_fingerprint")],
    ),
    Case("an adapter for another template", ADAPTER, "trained with template 'hf'", field(CONFIG, "template", "hf")),
    Case("an adapter for another aspect", ADAPTER, "trained with aspect 'crop'", field(CONFIG, "aspect", "crop")),
    Case("an adapter without weights", ADAPTER, f"{WEIGHTS} cannot be read", gone(WEIGHTS)),
    Case("an adapter with truncated weights", ADAPTER, f"{WEIGHTS} cannot be read", cut(WEIGHTS)),
    Case("an adapter with empty weights", ADAPTER, f"{WEIGHTS} cannot be read", put(WEIGHTS, b"")),
    Case(
        "an adapter with whole numbers",
        ADAPTER,
        "float matrices",
        tensors(WEIGHTS, first_changed(lambda x: x.astype(mx.int32))),
    ),
    Case(
        "an adapter that is not finite",
        ADAPTER,
        ("adapters.safetensors", "not finite"),
        tensors(WEIGHTS, first_changed(lambda x: x * mx.nan)),
    ),
    Case("an adapter of other shapes", ADAPTER, "adapter", tensors(WEIGHTS, first_changed(lambda x: x[:3]))),
    Case(
        "an adapter of one matrix less",
        ADAPTER,
        "adapter",
        tensors(WEIGHTS, lambda x: {n: a for n, a in x.items() if n != min(x)}),
    ),
    Case("an adapter of something else", ADAPTER, "adapter", tensors(WEIGHTS, nothing_left)),
    Case("a broken adapter for the doctor", "doctor --model tiny --adapter-path adapter", WEIGHTS, cut(WEIGHTS)),
    Case("a broken adapter to measure", "eval --model tiny --adapter-path adapter --count 2", WEIGHTS, cut(WEIGHTS)),
    Case("a broken adapter to compare", "compare tiny adapter --model tiny --images photos", WEIGHTS, cut(WEIGHTS)),
    Case(
        "a round that is not there",
        "compare tiny adapter@9 --model tiny --images photos",
        "adapter@9: this adapter has 1 round",
    ),
    Case("a broken adapter to fuse", "fuse --model tiny --adapter-path adapter --mlx-path out", WEIGHTS, cut(WEIGHTS)),
    Case("a broken adapter to upload", "upload --path adapter --upload-repo me/it", WEIGHTS, cut(WEIGHTS)),
    Case("a broken adapter to convert", "convert peft --adapter-path adapter --output out", "adapter", cut(WEIGHTS)),
    Case(
        "somebody else's adapter in the way",
        "train --model tiny --data pairs.jsonl --adapter-path adapter",
        "adapter has an adapter",
    ),
    Case(
        "a page that cannot be written",
        "compare tiny tiny --images photos --output pairs.jsonl/x.html",
        "pairs.jsonl could not be written",
    ),
    Case("scenes that cannot be drawn", "world draw --output pairs.jsonl/x.png", "pairs.jsonl"),
    Case("a world that cannot be written", "world train --output pairs.jsonl", "pairs.jsonl"),
]

LINKS = [
    Case(f"{what} that is a link", command, f"{name} was not written to, since it is a link to", link(name))
    for what, name, command in (
        ("a page", "a.html", "compare tiny tiny --images photos --output a.html"),
        ("a picture", "a.png", "world draw --output a.png"),
        ("a run", "out", PHOTOS),
        ("a training", "out", TRAIN),
        ("a new model", "out", "convert llava --hf-path model --mlx-path out"),
        ("a fused model", "out", "fuse --model model --adapter-path adapter --mlx-path out"),
    )
]
LINKS += [
    Case(f"a link in {what}", command, ("links lead out of it", f"{name.rpartition('/')[2]}, to", "--follow-links"), link(name))
    for what, name, command in (
        ("a model", "model/config.json", MODEL),
        ("a CLIP that scores", "clip/tokenizer.json", CLIP),
        ("an adapter", "adapter/adapters.safetensors", ADAPTER),
        ("an adapter to be uploaded", "adapter/README.md", "upload --path adapter --upload-repo me/x"),
        ("a run to go on with", "runs/seva/plots", SEVA),
        ("a run to reuse", "runs/seva/extra", f"{PHOTOS} --reuse runs/seva"),
    )
]
LINKS += [
    Case(
        f"an image behind a link in {file}",
        command,
        (file, "behind a link that leads out of", "--follow-links"),
        link("photos/1.png", __file__),
    )
    for file, command in (("pairs.jsonl:2", TRAIN), ("prompts.jsonl:2", PROMPTS), ("truth.json", EVAL))
]

CASES = [*IMAGES, *ROWS, *RECIPES, *RUNS, *MODELS, *ADAPTERS, *LINKS]
