"""OneNet's feature maps in the place of a backbone of the library transformers.

Importing this needs transformers and registers the stand-in there, under a model type that no
architecture takes for a ResNet: some freeze what they find in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput


class MapsConfig(BackboneConfigMixin, PreTrainedConfig):
    """The channels of the maps, finest first."""

    model_type = "onenet_maps"

    def __init__(self, channels: Sequence[int] = (), **options: Any) -> None:
        super().__init__(**options)
        self.channels = list(channels)
        self.stage_names = [f"map{index}" for index in range(len(self.channels))]
        self.set_output_features_output_indices(self.stage_names, None)


class Maps(BackboneMixin, PreTrainedModel):
    """Gives the maps that it was given last, instead of computing them from the pixels."""

    config_class = MapsConfig

    def __init__(self, config: MapsConfig) -> None:
        super().__init__(config)
        self.num_features = config.channels
        self.maps: Sequence[Tensor] = ()
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BackboneOutput:
        """The maps, which are handed out once."""
        maps, self.maps = self.maps, ()
        return BackboneOutput(feature_maps=tuple(maps))


AutoConfig.register(MapsConfig.model_type, MapsConfig)
AutoBackbone.register(MapsConfig, Maps)
