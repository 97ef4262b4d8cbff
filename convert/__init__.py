"""Model converters between LLaVA layouts and MLX.

Installed as `mlx_visalign.convert`.
"""
