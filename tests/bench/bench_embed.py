"""Embedding: the network alone against files on disk → shards on disk, decoding and resizing included."""

import tempfile
import time
from pathlib import Path

import torch
import transformers
from PIL import Image
from timing import show
from torch import Tensor
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from datamodules.backbones.backbone_base import Backbone, prepare
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.backbones.backbones import build_backbone
from datamodules.embeddings.shards import embed_shards, shards_of
from datamodules.images.dataset_settings import DatasetSettings
from datamodules.images.images import decode
from datamodules.images.sources import ImageSource, open_source

TINY = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}  # ViT-Ti/16
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}  # ViT-B/16
CIFAR, PHOTO = 32, 256  # pixels


def bench_embed() -> None:
    """ViT-Ti/16 on a CPU; ViT-B/16 in bf16 where there is a GPU. Both see 224 × 224 pixels."""
    if torch.cuda.is_available():
        bench_device("cuda", "ViT-B/16 bf16", BASE, num_images=20_480, batch_size=256, num_workers=15)
    else:
        bench_device("cpu", "ViT-Ti/16", TINY, num_images=64, batch_size=16, num_workers=0)


def bench_device(
    device: str, name: str, size: dict[str, int], num_images: int, batch_size: int, num_workers: int
) -> None:
    for pixels in (CIFAR, PHOTO):
        with tempfile.TemporaryDirectory() as folder:
            source = jpeg_folder(Path(folder) / "images", num_images, pixels)
            backbone = build_backbone(save_vit(Path(folder) / "vit", size), 224, 3).to(device)
            precision = "bf16-mixed" if device == "cuda" else "32-true"
            images = [decode(source, row, None, 3) for row in range(batch_size)]
            batch = [part.to(device) for part in prepare(backbone.preparation, images)]
            network_alone(backbone, batch, 1, precision)  # to warm up

            alone = whole = float("inf")
            for _ in range(2):  # in turns, the best of each: other work on the machine disturbs neither more
                start = time.perf_counter()
                network_alone(backbone, batch, num_images // batch_size, precision)
                alone = min(alone, time.perf_counter() - start)
                start = time.perf_counter()
                embed_shards(source, backbone, Path(folder), shards_of(num_images), batch_size, num_workers, precision)
                whole = min(whole, time.perf_counter() - start)
            what = f"embed {name}, JPEGs of {pixels} px: network | from disk to disk"
            show(what, num_images / alone, num_images / whole, "/s")
            print(f"{'':<58} the network's own rate: {alone / whole:.0%}", flush=True)


def network_alone(backbone: Backbone, batch: list[Tensor], repeats: int, precision: str) -> None:
    """The same batch again and again, until the device has done it."""
    for _ in range(repeats):
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            features = backbone.features_of(batch)
    features.cpu()


def jpeg_folder(folder: Path, count: int, pixels: int) -> ImageSource:
    """Smooth random images, which compress as photographs do."""
    folder.mkdir()
    noise = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    smooth = torch.nn.functional.interpolate(noise, size=(pixels, pixels), mode="bicubic").clamp(0, 255).byte()
    for number in range(count):
        picture = Image.fromarray(smooth[number % 16].permute(1, 2, 0).numpy())
        picture.save(folder / f"{number:06d}.jpg", quality=90)
    return open_source(DatasetSettings(kind="folder", name="bench", path=str(folder)))


def save_vit(folder: Path, size: dict[str, int]) -> BackboneSettings:
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    ViTModel(ViTConfig(**size, image_size=224, patch_size=16), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    return BackboneSettings(name="vit", kind="transformers", path=str(folder), output="cls_token")
