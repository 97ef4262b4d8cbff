"""Silences the libraries' warnings, logs and progress bars.

For the command line only, whose users can do nothing about them. `python -W ...`, PYTHONWARNINGS and VISALIGN_DEBUG=1 bring
them back.
"""

import logging
import os
import sys
import warnings

LIBRARIES = ("transformers", "huggingface_hub", "matplotlib", "PIL", "mlx_vlm", "mlx_lm", "tokenizers", "filelock", "urllib3")
SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",  # or tokenizers warn at every fork
}


def quiet_libraries() -> None:
    """Silence libraries; call before anything heavy is imported.

    For the command line only: `import mlx_visalign` must not change its user's settings.
    """
    if os.environ.get("VISALIGN_DEBUG") or sys.warnoptions:
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if sys.stderr is None or not sys.stderr.isatty():  # download bars are of use only on a terminal
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
