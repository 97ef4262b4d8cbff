import sys

from mlx_visalign.cli.entry import main

sys.exit(main())
