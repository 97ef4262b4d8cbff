"""What other people's code says on the terminal: nothing, where the command line is used.

Our own sentences say what matters. Everything else (advice to programmers, bars, lines of library code) is kept from people
who can do nothing about it. `python -W ...`, PYTHONWARNINGS and VISALIGN_DEBUG=1 bring it back.
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
    """For the command line alone, before anything heavy is imported: a library must not change its user's settings."""
    if os.environ.get("VISALIGN_DEBUG") or sys.warnoptions:
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if sys.stderr is None or not sys.stderr.isatty():  # a download's bar is worth something to people alone
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
