"""The embedded demo: a procedural labelled video and a small net trained on it."""

from __future__ import annotations

from resq_plugin.demo.command import demo_command
from resq_plugin.demo.net import DemoNet, load_demo_net, mean_iou
from resq_plugin.demo.shapes import CLASSES, PALETTE
from resq_plugin.demo.video import HELD_OUT_SEEDS, SceneConfig, generate_clip, to_rgb

__all__ = [
    "CLASSES",
    "HELD_OUT_SEEDS",
    "PALETTE",
    "DemoNet",
    "SceneConfig",
    "demo_command",
    "generate_clip",
    "load_demo_net",
    "mean_iou",
    "to_rgb",
]
