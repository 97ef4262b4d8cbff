"""The one bridge to mlx-vlm: its model classes, with our own loading and our own merge of image features.

Two families: LLaVA-1.5 (CLIP and Llama) and LLaVA-OneVision (SigLIP and Qwen2), the latter with one tile an image.

What we do ourselves, and why (mlx-vlm 0.7.10; each has a test against transformers in tests/test_vlm.py or
tests/test_onevision.py):
- config: it ignores transformers 5's `rope_parameters` and silently uses its own default theta.
- loading: `mlx_vlm.load` runs Python that a model folder brings (`model_file`); its LLaVA processor fails with
  transformers 5. We read JSON and safetensors only.
- merge: its merge assumes one row; with two, every row gets the last row's image.
- mask: its LLaVA uses any given mask instead of the causal one. We never pass a padding mask to the model's own
  forward: the fold (prefix_cache.py) has complete masks.
- blocks: theirs keep much for the backward pass, and each row's attention a copy of the prefix (decoder_block.py).
"""

from mlx_visalign.models.vlm.build import build_model
from mlx_visalign.models.vlm.forward import image_tokens, patches, project, tower_features, tower_states, tower_weights

__all__ = ["build_model", "image_tokens", "patches", "project", "tower_features", "tower_states", "tower_weights"]
