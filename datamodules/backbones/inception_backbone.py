"""The Inception-v3 of FID."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from datamodules.backbones.backbone_base import Backbone, Preparation, Size, grey_as_rgb
from datamodules.backbones.backbone_files import check_name_against_digest, inception_weights
from datamodules.backbones.backbone_settings import BackboneSettings
from datamodules.plain_files import load_pt
from storage.digests import file_digest
from storage.errors import UserError

FEATURES = "2048"  # torch-fidelity's name of the pooled features that FID is defined on


class InceptionBackbone(Backbone):
    """The Inception-v3 of FID with its 2048 pooled features, as torch-fidelity builds it."""

    takes_bf16 = False  # FID is defined on its float32 features

    def __init__(self, name: str, weights: Path, identity: dict[str, Any]) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__(name, identity)
        load_pt(weights)  # torch-fidelity unpickles without restraint: make sure that it finds nothing but tensors
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception", [FEATURES], feature_extractor_weights_path=str(weights)
            )
        except RuntimeError as error:
            raise UserError(f"{weights}: not the weights of torch-fidelity's Inception-v3 ({error}).") from error

    @classmethod
    def identify(cls, settings: BackboneSettings, size: Size, cache_dir: str | Path | None) -> dict[str, Any]:
        weights = inception_weights(settings)
        digest = file_digest(weights, cache_dir)
        check_name_against_digest(weights, digest)
        return {"kind": settings.kind, "features": FEATURES, "weights": digest}

    @classmethod
    def build(cls, settings: BackboneSettings, identity: dict[str, Any]) -> Self:
        return cls(settings.name, inception_weights(settings), identity)

    @property
    def preparation(self) -> Preparation:
        return grey_as_rgb  # the network resizes for itself

    def _features(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)[0]

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Class logits [B, 1008] of features [B, 2048], without the bias: those that the Inception score is taken of.

        torch-fidelity calls them `logits_unbiased`; with the features at hand, no second pass is needed for them.
        """
        weight = self.network.fc.weight  # [1008, 2048]
        return features.to(weight.device) @ weight.T
