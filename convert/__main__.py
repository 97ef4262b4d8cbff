"""`python -m convert NAME ...` in a checkout without installation.

There this folder is not yet importable as `mlx_visalign.convert`.
"""

import sys
from pathlib import Path

import mlx_visalign

mlx_visalign.__path__.append(str(Path(__file__).parents[1]))

from mlx_visalign.cli.entry import convert  # noqa: E402

sys.exit(convert())
