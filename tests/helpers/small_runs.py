"""Recipes of whole runs on the tiny model that take seconds, with every stage that their method has."""

import json
from pathlib import Path

from mlx_visalign import methods

WORLD = {"model": "tiny", "images": "tiny-world", "max_images": 12, "questions_per_image": 1, "eval_images": 2}
TRAIN = {
    "batch_size": 2,
    "grad_accumulation_steps": 1,
    "iters": 12,
    "learning_rate": 1e-3,
    "save_every": 3,
    "lora": {"rank": 4},
}
SHORT = {"max_tokens": 64, "batch": 4, "train": TRAIN}  # fits any method
JUDGE = {"samples": 2, "check_images": 8, "gate": "warn"}  # too few images for a verdict
OWN = {
    "seva": {"view": "crop"},
    "csr": {"num_beam_groups": 3, "sentence_tokens": 14, "judge": JUDGE, "max_length_gap": None, "rounds": 2}
    | {"train": TRAIN | {"iters": 6, "save_every": 2}},
    "fisao": {"judge": JUDGE, "labels": "tiny-world", "min_mentions": 2}
    | {"train": TRAIN | {"rollout_batch_size": 4, "grad_accumulation_steps": 1, "num_ppo_epochs": 2}},
}
TRUE_REWARD = Path(__file__).parents[1] / "assets/true_reward.py"
RECIPE = {"own_reward": {"reward_function": str(TRUE_REWARD)}}  # besides settings
SETTINGS = {method: SHORT | OWN.get(method, {}) for method in methods.names()}


def write_recipe(method, folder):
    path = folder / f"{method}.yaml"
    recipe = WORLD | RECIPE.get(method, {}) | {"method": method, "settings": SETTINGS[method]}
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path
