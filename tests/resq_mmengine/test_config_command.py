"""``resq configs``: what ships can be read where it lies and where it is copied to."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("mmseg")

from resq_mmengine.config_command import shipped_configs
from resq_mmengine.zoo import load_config

from resq_plugin import ResQConfig
from resq_plugin.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")


def test_fragments_hold_new_keys_only() -> None:
    """Two bases of one config may not share a key."""
    fragments = [path for name, path in shipped_configs().items() if "_base_" in name]
    notations = set()
    for path in fragments:
        cfg = load_config(path)
        assert list(cfg) == ["resq"]
        notations.add(ResQConfig.from_dict(cfg.resq.to_dict()).notation)
    assert notations == {"W8A8->W4A4", "W4A4->W3A3", "W8A8->W8A{0,4,8}"}


def test_a_copy_reads_as_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "--copy", str(tmp_path)]) == 0
    assert main(["configs", "--copy", str(tmp_path)]) == 2
    assert "exists already; give --copy another folder" in capsys.readouterr().err
    name = next(name for name in shipped_configs() if "camvid" in name)
    copied, original = load_config(tmp_path / name), load_config(shipped_configs()[name])
    assert copied._cfg_dict == original._cfg_dict
    assert copied.resq.precision == "W8A8->W4A4"


def test_the_list_names_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    assert capsys.readouterr().out.split() == [str(path) for path in shipped_configs().values()]
