"""Subprocess that renders an untrusted chat template.

    echo '{"template": ..., "tokens": {...}, "chats": [[messages, add_generation_prompt], ...]}' | python template_renderer.py

prints a JSON list: the text of each chat, or {"error": ...}. It uses transformers' sandbox under limits of time and memory. A
template may loop forever or use up all memory; then the system kills only this process.
"""

import contextlib
import json
import resource
import sys
from typing import Any

SECONDS, BYTES, CHARACTERS = 2, 2 << 30, 20_000  # CPU seconds; memory; length of each returned text


def main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    asked = json.load(sys.stdin)
    _bound()
    texts: list[str | dict[str, str]] = []
    for messages, prompted in asked["chats"]:
        try:
            rendered: Any = render_jinja_template(
                [messages], chat_template=asked["template"], add_generation_prompt=prompted, **asked["tokens"]
            )
            texts.append(rendered[0][0][:CHARACTERS])
        except Exception as error:
            texts.append({"error": f"{type(error).__name__}: {error}"[:300]})
    json.dump(texts, sys.stdout)


def _bound() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
    for what, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, BYTES), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # macOS does not limit the address space
            resource.setrlimit(what, (limit, limit))


if __name__ == "__main__":
    main()
