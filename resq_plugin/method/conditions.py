"""What must stay as it is within an interval, because z_k was computed with it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import nn

from resq_plugin.errors import StreamError
from resq_plugin.method.layers import ResidualLayer
from resq_plugin.method.numbers import Numbers

__all__ = ["Conditions"]


class Conditions:
    """Weights and ranges, modes of the model and autocast, as they were at the keyframe."""

    def __init__(self, model: nn.Module, layers: Mapping[str, ResidualLayer]) -> None:
        self.model, self.layers = model, layers
        self.numbers = Numbers(layers.values())
        self._settings = {name: layer.settings for name, layer in layers.items()}
        self._version: Hashable = None
        self._modes: Hashable = None

    def require_same_model(self) -> None:
        """Check that the model is the one that the stream was opened on.

        Raises:
            StreamError: it was reverted or converted anew.
        """
        for name, settings in self._settings.items():
            if getattr(self.layers[name], "settings", None) is not settings:
                msg = (
                    f"layer {name} was reverted or converted anew after this stream was opened; open a new one with "
                    "`with stream(model) as video:`."
                )
                raise StreamError(msg)

    def remember(self, device: torch.device) -> None:
        """Take things as they are after a keyframe."""
        self.numbers.find()
        self._version, self._modes = self.numbers.version(), self._find_modes(device)

    def change(self, device: torch.device) -> str:
        """Say what is different from what was remembered; empty if nothing is."""
        if self.numbers.version() != self._version:
            return "weights or ranges were changed"
        return "" if self._find_modes(device) == self._modes else "train(), eval() or autocast was switched"

    def _find_modes(self, device: torch.device) -> Hashable:
        try:
            autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        except RuntimeError:  # a device that knows no autocast
            autocast = None
        return self.model.training, tuple([layer.training for layer in self.layers.values()]), autocast
