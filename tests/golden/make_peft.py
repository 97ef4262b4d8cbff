"""LoRA folders as PEFT and as LLaVA's authors write them, and PEFT's logits; writes tests/golden/peft*.

Run from the project's root: python tests/golden/make_peft.py (needs the `reference` extra).
The base is the random LLaVA of tests/helpers/random_llava.py, A and B are those of `make_llava.lora_weights`.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import make_llava

HERE = Path(__file__).parent
FOLDER, AUTHORS, LOGITS = HERE / "peft", HERE / "peft_authors", HERE / "peft.npz"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LANGUAGE = rf".*language_model.*\.({'|'.join(LINEARS)})"


def adapted(weights=make_llava.lora_weights, only: str = "", **settings):
    """PEFT around transformers' model; `weights` fills the layers whose path contains `only`, with A [in, r] and B [r, out]."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE} | settings))
    model = get_peft_model(make_llava.transformers_model(), config).eval()
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and only in name:
            a, b = weights(our_name(name), module.in_features, module.out_features)
            module.lora_A["default"].weight.data = torch.tensor(a.T.copy())
            module.lora_B["default"].weight.data = torch.tensor(b.T.copy())
    return model


def our_name(name: str) -> str:
    return name.replace("base_model.model.model.language_model.", "language_model.model.")


def logits(model) -> np.ndarray:
    """Of every position of make_llava's first row."""
    import torch

    image = torch.tensor(make_llava.pixels(1).transpose(0, 3, 1, 2), dtype=model.dtype)
    with torch.no_grad():
        return model(input_ids=torch.tensor([make_llava.ROWS[0]]), pixel_values=image).logits[0].numpy()


def save_as_authors(folder: Path, model) -> None:
    """The same adapter by the names of the authors' own model, as torch files, with a projector trained in full."""
    import torch

    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder, safe_serialization=False)
    file = folder / "adapter_model.bin"
    state = torch.load(file, weights_only=True)
    torch.save({name.replace("model.model.language_model.", "model.model."): value for name, value in state.items()}, file)
    projector = model.base_model.model.model.multi_modal_projector.state_dict()
    named = {name.replace("linear_1", "0").replace("linear_2", "2"): 1.5 * value.half() for name, value in projector.items()}
    beside = {f"base_model.model.model.mm_projector.{name}": value for name, value in named.items()}
    torch.save(beside, folder / "non_lora_trainables.bin")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = list(LINEARS)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    import peft
    import torch
    import transformers

    versions = f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    model = adapted()
    model.save_pretrained(FOLDER)
    save_as_authors(AUTHORS, model)
    for folder in (FOLDER, AUTHORS):
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    np.savez_compressed(LOGITS, versions=versions, logits=logits(model))
    print(FOLDER, AUTHORS, LOGITS, versions)
