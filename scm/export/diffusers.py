"""A model as a folder that diffusers reads, with `scm.export.pipeline` as its pipeline.

The folder is also one of the hub's, so `scm.load` reads it too. Writing it needs no diffusers.
"""

from pathlib import Path

from scm.config.parts import Kind
from scm.core.errors import UserError
from scm.core.files import write_atomic, write_json
from scm.storage import store
from scm.storage.model import Model

README = """---
library_name: diffusers
license: mit
tags: [consistency-model, unconditional-image-generation]
---

# {name}

A consistency model of {data} images, {shape}, trained with the objective {objective}.
Where scm and diffusers are installed (`pip install 'scm[diffusers]'`), diffusers' SCMScheduler
samples it in one to four network calls:

```python
import torch
from scm.export.pipeline import Pipeline

pipe = Pipeline.from_pretrained("{name}")
generator = torch.Generator().manual_seed(0)
images = pipe(batch_size=16, num_inference_steps=2, generator=generator).images
```

`scm.load("{name}")` reads the same folder. SHA-256 of the weights: `{sha256}`.
"""


def write(model: Model, folder: Path) -> None:
    """Write `model` into `folder`, which is made.

    Raises UserError where the scheduler does not suit what the network learns.
    """
    learns = model.facts.objective.learns
    if learns is not Kind.consistency:
        raise UserError(
            f"{model.path}: learns {learns.name}, and diffusers' SCMScheduler takes networks that "
            "learn consistency; use --to onnx, which takes all"
        )
    store.save_hub_folder(folder, dict(model.net.state_dict()), model.config)
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = {"_class_name": "SCMScheduler", "sigma_data": model.sigma_data}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    text = README.format(
        name=folder.name,
        data=model.facts.data.name,
        shape=" x ".join(map(str, model.image_shape)),
        objective=model.facts.objective.name,
        sha256=model.sha256,
    )
    write_atomic(folder / "README.md", text.encode())
    index = {
        "_class_name": "Pipeline",
        "network": ["scm.export.pipeline", "Network"],
        "scheduler": ["diffusers", "SCMScheduler"],
    }
    write_json(folder / "model_index.json", index)  # the last: diffusers begins with it
