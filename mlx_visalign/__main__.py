import sys

from mlx_visalign.cli import main

sys.exit(main())
