"""The config of a CLIP that is small enough for exact tests."""

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {
    "model_type": "clip",
    "projection_dim": 12,
    "text_config": {**TOWER, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19},
    "vision_config": {**TOWER, "image_size": 8, "patch_size": 4, "unknown_key": "ignored"},
}
