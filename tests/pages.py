"""The blocks of code in README, CONTRIBUTING and the guides, and what a reader has before a page begins."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
CONFIG_NAMES = ("_base_", "resq", "model", "default_hooks", "train_dataloader", "test_dataloader", "test_evaluator")


@dataclass(frozen=True)
class Block:
    """What stands between two fences; ``str`` of it is where, for the ids of tests."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first(self) -> str:
        """Its first line, by which tests name a block: line numbers change."""
        return self.text.partition("\n")[0]

    @property
    def is_config(self) -> bool:
        """Whether it is a fragment of an mm config: nothing but values of the keys that MMEngine knows."""
        names = re.findall(r"^([^\s#)].*)$", self.text, re.MULTILINE)
        return self.language == "python" and all(re.match(rf"(?:{'|'.join(CONFIG_NAMES)}) = ", name) for name in names)


def blocks_of(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(page, text.count("\n", 0, match.start()) + 1, *match.groups()) for match in found]


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]


_SMALL_NET = """
import torch
torch.manual_seed(0)
conv, norm = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8)
network = torch.nn.Sequential(conv, norm, torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)).eval()
frames = list((torch.randn(9, 1, 3, 16, 24) * 0.1).cumsum(0))
clips = [frames[0:3], frames[3:6]]
"""
READER_HAS = {
    "README.md": _SMALL_NET + "model = network",
    "docs/brevitas.md": _SMALL_NET + "model, frame = network, frames[0]",
    "docs/export.md": _SMALL_NET
    + """
from resq_plugin import ResQConfig, calibrate, convert
model = convert(network, ResQConfig.parse("W8A8->W4A8", weights="channel"), example=frames[0])
calibrate(model, clips)
""",
    "docs/ptq.md": _SMALL_NET + "net = network",
    "docs/training.md": _SMALL_NET
    + """
images, labels = torch.randn(4, 3, 16, 24), torch.randint(0, 4, (4, 16, 24))
loss, accuracy = torch.nn.CrossEntropyLoss(ignore_index=255), lambda model: 0.0
targets = [torch.randint(0, 4, (1, 16, 24)) for _ in frames]
""",
    "docs/vos.md": """
import torch
from resq_vos.stm import SMALL, STM
from vos_helpers import moving_squares
torch.manual_seed(0)
torch.save(STM(SMALL).state_dict(), "stm_small.pth")
squares, labels = moving_squares(6, size=(48, 64))
frames, first_labels = list(squares.unsqueeze(1)), labels[0]
""",
}
"""Page to what its blocks take for granted: the reader's own network, video and weights, small ones here."""
