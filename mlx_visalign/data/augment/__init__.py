"""SeVa's image augmentations on `mx.array`, with explicit keys.

An image is uint8 [h, w, 3] (`mx.array(np.asarray(pil_image))`), because Pillow and torchvision round to integer levels after
every step. Operations that Pillow also has agree with it, mostly value for value. `parse_view` turns a recipe's label into
a view.
"""

from mlx_visalign.data.augment.diffusion import diffuse, noise_schedule, q_sample
from mlx_visalign.data.augment.resample import resize
from mlx_visalign.data.augment.views import AUGMENTATIONS, View, parse_view

__all__ = ["AUGMENTATIONS", "View", "diffuse", "noise_schedule", "parse_view", "q_sample", "resize"]
