"""argparse as every command uses it: what is not understood is answered with that command's usage and the nearest name."""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from mlx_visalign.utils.schema import nearest

NEAR = 0.7  # of 1: flags all begin alike
OTHERS = "Any other setting is given by --set NAME=VALUE; --set help names them."


class Parser(argparse.ArgumentParser):
    """A command's parser. Its subparsers are of the same kind, and each refuses what it does not know by itself."""

    given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = args or ()
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """A flag that is spelt wrong may be why another one is missing, so its hint is given with whatever is wrong."""
        known = list(self._option_string_actions)
        strangers = [flag for text in self.given if (flag := text.partition("=")[0]).startswith("--") and flag not in known]
        found = [difflib.get_close_matches(flag.replace("_", "-").lower(), known, n=1, cutoff=NEAR) for flag in strangers]
        hints = [f"Did you mean {near[0]}?" for near in found if near]
        if strangers and not hints and "--set" in known:
            hints = [OTHERS]
        super().error(". ".join([message, " ".join(hints)]) if hints else message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"there is no '{value}'. {nearest(value, map(str, action.choices))}")
