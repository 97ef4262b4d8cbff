"""A model's preprocessing files.

Completed so that our loader, mlx-vlm and transformers each find what they look for.
"""

from pathlib import Path
from typing import Any

from mlx_visalign.convert.io.folder import write_json
from mlx_visalign.data.prompt_template import TEMPLATES
from mlx_visalign.models import families
from mlx_visalign.models.chat_template import as_jinja, end_token, stated_by
from mlx_visalign.models.model_folder import IMAGES, PROCESSOR, TOKENIZER, missing_parts
from mlx_visalign.utils.files import read_json, remove, write_atomically


def state_template(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Write the chat template that the model was trained with.

    That is the one in the config's `visalign` section; the folder may still have another one, copied from a model such as
    Hugging Face's LLaVA-1.5. Returns lines for the summary.
    """
    ours, end = config.get("visalign", {}), end_token(folder)
    template = ours.get("template") if isinstance(ours, dict) else None
    if not isinstance(template, str) or template not in TEMPLATES or end is None:
        return {}
    stated = stated_by(folder, config)
    if stated is not None and stated.exact == template:
        return {}
    remove(folder / "chat_template.json")
    for name in (PROCESSOR, TOKENIZER):
        if (folder / name).is_file() and "chat_template" in (found := read_json(folder / name)):
            write_json(folder / name, {key: value for key, value in found.items() if key != "chat_template"})
    write_atomically(folder / "chat_template.jinja", as_jinja(template, end))
    return {"chat template": f"{template}, which the model was trained with"}


def complete_processor(folder: Path, config: dict[str, Any]) -> list[str]:
    """Fill in what older or newer folders leave out.

    transformers >= 5 keeps the image settings in processor_config.json; all other readers expect them in a file of their
    own. Returns the files that are needed for generation and still missing.
    """
    processor = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    images = processor.get("image_processor")
    if isinstance(images, dict) and not (folder / IMAGES).exists():
        write_json(folder / IMAGES, images)
    needed = families.find(config["model_type"]).processor(config)
    said = {name: value for name, value in processor.items() if value is not None}
    if needed and needed | said != processor:
        write_json(folder / PROCESSOR, needed | said)
    return missing_parts(folder)
