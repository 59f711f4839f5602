"""The model card of a run's weights, as Markdown."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from scm.report import page
from scm.storage import store
from scm.storage.folder import RunFolder

FRONT = """---
library_name: scm
license: mit
tags: [consistency-model, unconditional-image-generation, model_hub_mixin, pytorch_model_hub_mixin]
---

"""


def card(
    run: RunFolder, weights_file: Path, config: dict[str, Any], judged: list[str], quality: str
) -> str:
    """The card of the weights that were written from `run`.

    `judged` are the arguments that the evaluation was made with, `quality` is its table.
    """
    overrides = yaml.safe_load((run.path / ".hydra" / "overrides.yaml").read_text())
    return page.filled(
        "card.md.j2",
        name=weights_file.stem,
        run=run.metrics(),
        overrides=shlex.join(overrides),
        sha256=store.stored_digest(weights_file),
        judged=shlex.join(judged),
        quality=quality,
        config=config,
        text=yaml.safe_dump(config, sort_keys=False).rstrip(),
    )


def of_the_hub(text: str, weights_file: Path, name: str) -> str:
    """This card as README.md of a folder: named as the folder is, with the hub's tags in front."""
    return FRONT + text.replace(f"# {weights_file.stem}\n", f"# {name}\n", 1)
