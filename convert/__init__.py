"""Converters: weights in from every LLaVA layout, out to MLX and back. Installed as `mlx_visalign.convert`."""
