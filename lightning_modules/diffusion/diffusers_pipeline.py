"""From noise to images with `diffusers`: the file `pipeline.py` of an exported folder, which needs no other of ours."""

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class EDMPipeline(DiffusionPipeline):
    """Images by an EDM network F(x; c_noise, cluster) and one of the EDM schedulers, which precondition it.

    Args:
        unet: the network.
        scheduler: `EDMDPMSolverMultistepScheduler` or `EDMEulerScheduler`.
        cluster_ids: the cluster that each label of the network stands for; none: unconditional.
        cluster_frequencies: their shares of the training images.
        num_inference_steps: how many the pipeline takes where its call does not say.
    """

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        cluster_ids: list[int] | None = None,
        cluster_frequencies: list[float] | None = None,
        num_inference_steps: int = 35,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            cluster_ids=cluster_ids or [],
            cluster_frequencies=cluster_frequencies or [],
            num_inference_steps=num_inference_steps,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list | Tensor]:
        """Generate images.

        Args:
            batch_size: how many; with class_labels or latents, as many as they are.
            class_labels: the cluster of each image, from `config.cluster_ids`; None: drawn by their frequencies.
            num_inference_steps: evaluations of the network; None: `config.num_inference_steps`.
            generator: of all that is random; a list has one for each image.
            latents: standard normal `[B, C, H, W]`, to start from; None: drawn.
            output_type: `pil`, `np` (`[B, H, W, C]`) or `pt` (`[B, C, H, W]`), which have values from 0 to 1.
            return_dict: False: a tuple.
        """
        given = class_labels if class_labels is not None else latents
        batch_size = batch_size if given is None else len(given)
        device, size = self._execution_device, self.unet.config.sample_size
        labels = self.labels(batch_size, class_labels, generator, device)
        if latents is None:
            shape = (batch_size, self.unet.config.in_channels, size, size)
            latents = randn_tensor(shape, generator=generator, device=device)
        self.scheduler.set_timesteps(num_inference_steps or self.config.num_inference_steps, device=device)
        x = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
        for c_noise in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(x, c_noise).to(self.unet.dtype)
            output = self.unet(scaled, c_noise, labels).sample.float()
            x = self.scheduler.step(output, c_noise, x, generator=generator).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def labels(
        self,
        batch_size: int,
        clusters: Sequence[int] | None,
        generator: torch.Generator | list[torch.Generator] | None,
        device: torch.device,
    ) -> Tensor | None:
        """Index of each image's cluster, int64 `[B]`; None for an unconditional network."""
        ids = list(self.config.cluster_ids)
        if clusters is not None:
            if unknown := sorted({*clusters} - {*ids}):
                raise ValueError(f"class_labels={unknown}: not among this model's {len(ids)} config.cluster_ids")
            return torch.tensor([ids.index(cluster) for cluster in clusters], device=device)
        if not ids:
            return None
        uniforms = torch.special.ndtr(randn_tensor((batch_size,), generator=generator, device=device))
        ends = torch.tensor(self.config.cluster_frequencies, device=device).cumsum(0)
        return torch.bucketize(uniforms * ends[-1], ends[:-1], right=True)
