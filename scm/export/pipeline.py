"""Models in diffusers: a pipeline that samples with its SCMScheduler, loaded from a folder.

Imported by whoever has diffusers; nothing else here imports it, and no code of the folder runs.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SCMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from scm.export.prediction import Prediction
from scm.storage import model as models
from scm.storage import store
from scm.storage.model import Model


class Network(ModelMixin):
    """A network of this project as a component of diffusers: it gives the prediction."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.prediction = Prediction(model.net, model.sigma_data)

    @classmethod
    def from_pretrained(
        cls, folder: str, torch_dtype: torch.dtype | None = None, **unused: Any
    ) -> "Network":
        """Out of a folder; `torch_dtype` is what its inner layers compute in, float32 for None."""
        dtype = torch_dtype or torch.float32
        return cls(models.load(folder, torch.device("cpu"), dtype))

    def save_pretrained(self, save_directory: str, **unused: Any) -> None:
        """Into a folder that `from_pretrained` reads."""
        weights = dict(self.model.net.state_dict())
        store.save_hub_folder(Path(save_directory), weights, self.model.config)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """x_t (B, C, H, W), t one time in radians, label (B,) -> sigma_data F (B, C, H, W)."""
        return self.prediction(x_t, t.to(x_t).expand(len(x_t)), label=label)


class Pipeline(DiffusionPipeline):
    """Images in a few network calls, the same as `Model.sample` makes of the same noise."""

    def __init__(self, network: Network, scheduler: SCMScheduler) -> None:
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 1,
        label: int | None = None,  # of a conditional model; None: all in turn
        generator: torch.Generator | None = None,
        output_type: str = "pil",  # or np, pt
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images by so many network calls, at the times of `Model.sampler_with`; values in [0, 1].

        Raises UserError where there is no sampler of so many, or the label is none of the model's.
        """
        model, device = self.network.model, self._execution_device
        labels = model.labels(batch_size, label)
        labels = labels if labels is None else labels.to(device)
        times = [*model.sampler_with(num_inference_steps).times, 0.0]
        self.scheduler.set_timesteps(
            num_inference_steps,
            timesteps=times,
            device=device,
            max_timesteps=None,
            intermediate_timesteps=None,
        )
        # the scheduler expects noise of its own init_noise_sigma, 1, and its sigma_data later
        shape = (batch_size, *model.image_shape)
        x = model.sigma_data * randn_tensor(shape, generator=generator, device=device)
        for t in self.progress_bar(self.scheduler.timesteps[:-1]):
            prediction = self.network(x, t, labels)
            x = self.scheduler.step(prediction, t, x, generator=generator).prev_sample
        images = (x + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
