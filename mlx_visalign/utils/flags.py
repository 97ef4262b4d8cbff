"""argparse parser whose errors suggest the nearest flag."""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from mlx_visalign.utils.schema import nearest

NEAR = 0.7  # minimum similarity, 0 to 1; high, since all flags begin alike
OTHERS = "Use --set NAME=VALUE for any other setting; --set help lists them."


class Parser(argparse.ArgumentParser):
    """Parser that rejects unknown arguments with its own usage.

    Subparsers are of this class too, so that the error shows the usage of the command that was called.
    """

    given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = args or ()
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """Exit with the error and hints for misspelt flags.

        A misspelt flag may be why a required one is missing, so the hints come with any error.
        """
        known = list(self._option_string_actions)
        unknown_flags = [flag for text in self.given if (flag := text.partition("=")[0]).startswith("--") and flag not in known]
        found = [difflib.get_close_matches(flag.replace("_", "-").lower(), known, n=1, cutoff=NEAR) for flag in unknown_flags]
        hints = [f"Did you mean {near[0]}?" for near in found if near]
        if unknown_flags and not hints and "--set" in known:
            hints = [OTHERS]
        super().error(". ".join([message, " ".join(hints)]) if hints else message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"invalid choice '{value}'. {nearest(value, map(str, action.choices))}")
