import sys

from mlx_visalign.entry import main

sys.exit(main())
