"""Every fragment of an mm config in README and the guides loads, and what it names builds."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import Block, all_blocks

pytest.importorskip("mmseg")
pytest.importorskip("mmpose")

from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS, init_default_scope
from resq_mmengine.settings import read_settings
from resq_mmengine.zoo import build_model, load_config

from resq_plugin import convert
from resq_plugin.method import residual_layers

pytestmark = pytest.mark.filterwarnings("ignore:The metainfo config file:UserWarning")
SEGMENTATION = "mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py"
POSE = "mmpose::body_2d_keypoint/topdown_heatmap/jhmdb/td-hm_res50_8xb64-20e_jhmdb-sub1-256x256.py"
FRAGMENTS = [block for block in all_blocks() if block.is_config]


def load(block: Block, folder: Path) -> Config:
    """The config that a reader has: the fragment behind its base, with nothing where ``...`` says "yours"."""
    text = re.sub(r"\s+#.*", "", block.text)
    text = re.sub(r",\s*\.\.\.\)", ")", text).replace("(...)", "()").replace("=...", "=None")
    assert "..." not in text
    if "_base_ =" not in text:
        text = f'_base_ = ["{POSE if "mmpose" in block.page else SEGMENTATION}"]\n{text}'
    file = folder / "fragment.py"
    file.write_text(text)
    return load_config(file)


def ours(node: Any) -> Iterator[dict[str, Any]]:
    """Every ``dict(type="resq_...")`` below a node."""
    if isinstance(node, dict):
        if str(node.get("type", "")).startswith("resq_"):
            yield dict(node)
        node = list(node.values())
    if isinstance(node, list | tuple):
        for part in node:
            yield from ours(part)


def build(node: dict[str, Any]) -> None:
    """Build a data set without its files, a network with its weights unread; match the arguments of all others."""
    kind = node.pop("type")
    node.pop("_delete_", None)
    if kind.startswith(("resq_mmseg.", "resq_mmpose.")):
        DATASETS.build(dict(node, type=kind, lazy_init=True))
    elif kind == "resq_mmengine.ResQModel":
        assert list(residual_layers(MODELS.build(dict(node, type=kind))))
    else:
        node.pop("priority", None)
        found = HOOKS.get(kind) or DATA_SAMPLERS.get(kind)
        assert found, kind
        inspect.signature(found).bind_partial(**node)


def check(block: Block, folder: Path) -> int:
    """Build all that a fragment names, and return how much that was."""
    config = load(block, folder)
    init_default_scope(config.default_scope)
    nodes = list(ours(config.to_dict()))
    for node in nodes:
        build(node)
    settings = read_settings(config.get("resq"))
    if settings is not None:
        model = convert(build_model(config), settings.config)
        assert list(residual_layers(model))
        for pattern in settings.config.exclude:
            assert fnmatch.filter([name for name, _ in model.named_modules()], pattern), f"no layer is {pattern}"
    return len(nodes)


@pytest.mark.parametrize("block", FRAGMENTS, ids=str)
def test_a_fragment_builds(block: Block, tmp_path: Path) -> None:
    assert check(block, tmp_path)


def test_there_are_fragments_in_every_guide_of_a_toolkit() -> None:
    pages = {block.page for block in FRAGMENTS}
    assert {"README.md", "docs/mmseg.md", "docs/mmpose.md", "docs/training.md"} <= pages


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("W8A8->W4A4", "W8A8->W4A99", "99 bits"),
        ("interval=3", "intervall=3", "intervall"),
        ("resq_mmseg.CityscapesSnippets", "resq_mmseg.CityscapesSnipets", "CityscapesSnipets"),
        ("resq_mmengine.ClipSampler", "resq_mmengine.ClipSamplr", "ClipSamplr"),
        ('data_root="data/cityscapes"', 'data_rot="data/cityscapes"', "data_rot"),
        ('exclude=("decode_head.conv_seg",)', 'exclude=("decode_head.no_such",)', "no_such"),
    ],
)
def test_a_wrong_fragment_is_found(right: str, wrong: str, named: str, tmp_path: Path) -> None:
    block = next(block for block in FRAGMENTS if block.page == "docs/mmseg.md")
    assert right in block.text
    changed = Block(block.page, block.line, block.language, block.text.replace(right, wrong))
    with pytest.raises(Exception, match=named):
        check(changed, tmp_path)
