"""What transformers and peft say about the random LLaVA of tests/helpers/random_llava.py; writes tests/golden/llava.npz.

Run from the project's root: python tests/golden/make_llava.py (needs the `reference` extra).
"""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from random_llava import CONFIG, IMAGE_TOKENS, prompt, random_llava

FILE = Path(__file__).with_name("llava.npz")
# Three rows: one image, two images, one image; of different lengths.
ROWS = [prompt([7, 8], [9, 10, 30, 31]), prompt([12], [13], images=2), prompt([20, 21, 22], [23, 24, 25, 26, 40, 2])]
PAIR = (prompt([7, 8], [9, 10]), [30, 31, 32, 2], [40, 41, 2])
BETA = 0.1


def pixels(count: int) -> np.ndarray:
    """Normalised images [n, 28, 28, 3]."""
    return np.random.default_rng(0).normal(size=(count, 28, 28, 3)).astype(np.float32)


def torch_name(name: str) -> str:
    """The transformers 5 parameter of an mlx-vlm parameter."""
    name = name.replace("vision_tower.vision_model.", "model.vision_tower.")
    name = name.replace("multi_modal_projector.", "model.multi_modal_projector.")
    return name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")


def transformers_model():
    """LlavaForConditionalGeneration with the random model's weights, float32, eager attention."""
    import torch
    from mlx.utils import tree_flatten
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        text_config=LlamaConfig(**CONFIG["text_config"]),
        vision_config=CLIPVisionConfig(**CONFIG["vision_config"], hidden_act="quick_gelu"),
        image_token_index=CONFIG["image_token_index"],
        vision_feature_layer=CONFIG["vision_feature_layer"],
        attn_implementation="eager",
    )
    model = LlavaForConditionalGeneration(config).eval()
    state = {}
    for name, array in tree_flatten(random_llava().parameters()):
        value = np.array(array)
        state[torch_name(name)] = torch.tensor(value.transpose(0, 3, 1, 2) if value.ndim == 4 else value)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all("position_ids" in name or "inv_freq" in name for name in missing), missing
    return model


def logits() -> list[np.ndarray]:
    """Each row of ROWS by itself, its images beside it."""
    import torch

    model, images, found = transformers_model(), pixels(4), []
    at = 0
    for row in ROWS:
        count = row.count(CONFIG["image_token_index"]) // IMAGE_TOKENS
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor([row]),
                pixel_values=torch.tensor(images[at : at + count].transpose(0, 3, 1, 2)),
                attention_mask=torch.ones(1, len(row), dtype=torch.long),
            )
        found.append(out.logits[0].numpy())
        at += count
    return found


def lora_weights(name: str, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """A [in, r] and B [r, out] of one layer, the same here and in the tests."""
    rng = np.random.default_rng(sum(map(ord, name)))
    return rng.normal(size=(inputs, 4)).astype(np.float32) * 0.1, rng.normal(size=(4, outputs)).astype(np.float32) * 0.1


def peft_dpo() -> dict[str, np.ndarray]:
    """One DPO step of torch + peft on PAIR: the loss and the gradient of every A and B, in our shapes and names."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    model = get_peft_model(transformers_model(), LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets))
    layers = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            ours = name.replace("base_model.model.model.language_model.", "language_model.model.")
            a, b = lora_weights(ours, module.in_features, module.out_features)
            module.lora_A["default"].weight.data = torch.tensor(a.T.copy())
            module.lora_B["default"].weight.data = torch.tensor(b.T.copy())
            layers[ours] = module
    image = torch.tensor(pixels(1).transpose(0, 3, 1, 2))

    def logp(answer: list[int]):
        ids = torch.tensor([PAIR[0] + answer])
        out = model(input_ids=ids, pixel_values=image, attention_mask=torch.ones_like(ids)).logits[0, :-1].log_softmax(-1)
        return out.gather(-1, ids[0, 1:, None])[len(PAIR[0]) - 1 :].sum()

    with torch.no_grad(), model.disable_adapter():
        reference = logp(PAIR[1]) - logp(PAIR[2])
    loss = -torch.nn.functional.logsigmoid(BETA * (logp(PAIR[1]) - logp(PAIR[2]) - reference))
    loss.backward()
    found = {"loss": loss.detach().numpy()}
    for name, module in layers.items():
        found[f"{name}.lora_a"] = module.lora_A["default"].weight.grad.T.numpy()
        found[f"{name}.lora_b"] = module.lora_B["default"].weight.grad.T.numpy()
    return found


if __name__ == "__main__":
    import peft
    import torch
    import transformers

    versions = (
        f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}, mlx {mx.__version__}"
    )
    arrays = {f"logits{index}": array for index, array in enumerate(logits())}
    arrays.update({f"dpo.{name}": array for name, array in peft_dpo().items()})
    np.savez_compressed(FILE, versions=versions, **arrays)
    print(FILE, versions)
