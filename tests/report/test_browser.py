"""The page in a real browser, as wide as a desk and a phone, light and dark: nothing hangs over, nothing fails."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("av")

from resq_plugin import Target, compare, search
from resq_plugin.comparison import Comparison
from resq_plugin.demo import SceneConfig, generate_clip, load_demo_net
from resq_plugin.planning import SearchResult

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]

LONG = "a_very_long_file_name_that_a_camera_made_20261126_021133_4K_HDR_slow_motion.mp4"

PROBE = """
<script>
window.faults = [];
addEventListener('error', event => window.faults.push(String(event.message || event.target.src)), true);
addEventListener('load', () => setTimeout(() => {
  const width = document.documentElement.clientWidth;
  const over = [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && (box.right > width + 1 || box.left < -1) && getComputedStyle(e).position !== 'fixed';
  }).map(e => e.tagName + ' ' + (e.textContent || '').trim().slice(0, 40));
  const broken = [...document.images].filter(i => !i.naturalWidth).map(i => i.alt);
  const film = document.querySelector('video');
  const shown = [...document.querySelectorAll('thead')][0].querySelectorAll('th');
  const seen = [...shown].filter(e => e.getBoundingClientRect().width).map(e => e.textContent);
  document.title = JSON.stringify({
    over, broken, seen, faults: window.faults, width, scroll: document.documentElement.scrollWidth,
    film: film ? [film.videoWidth, film.readyState] : null,
    source: [...document.querySelectorAll('picture img')].map(i => i.currentSrc.length),
  });
}, 1500));
</script>
"""


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    clip = generate_clip(SceneConfig(camera="pan", seed=201), 20)[0]
    with torch.random.fork_rng(devices=[]):
        folder = tmp_path_factory.mktemp("comparison")
        settings = ["W8A8", "W8A8->W4A4", "W8A8->W4A{0,4,8}"]
        return compare(load_demo_net(), clip, settings, folder=folder, progress=False)


def look_at(page: Path, folder: Path, width: int, *, dark: bool) -> dict[str, Any]:
    """Open a page in Chromium and return what the probe finds; in a frame, as windows are 500 wide at least."""
    probed = folder / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</head>", PROBE + "</head>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(
        f"<iframe id=f scrolling=no src=probed.html style='width:{width}px;height:2400px;border:0'></iframe><script>"
        "setInterval(() => { const title = f.contentDocument.title;"
        " if (title.startsWith('{')) document.body.dataset.found = title }, 200)</script>",
        encoding="utf-8",
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    command += ["--window-size=1400,2500", "--virtual-time-budget=15000", "--autoplay-policy=no-user-gesture-required"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [*map(str, command), frame.as_uri()], capture_output=True, text=True, timeout=240, check=True
    )
    text = done.stdout.split('data-found="', 1)[1].split('"', 1)[0].replace("&quot;", '"').replace("&amp;", "&")
    found: dict[str, Any] = json.loads(text)
    return found


def assert_whole(found: dict[str, Any], width: int) -> None:
    assert found["width"] == width
    assert not found["over"]
    assert found["scroll"] <= width
    assert not found["broken"]
    assert not found["faults"]


@pytest.fixture(scope="module")
def searched() -> SearchResult:
    clips = list(generate_clip(SceneConfig(height=48, width=64, seed=7), 9)[0].split(3))
    target = Target(
        weight_bits=(4, 8), activation_bits=(4, 8), thresholds=(0.1,), intervals=(3,), references=("running",)
    )
    small = {"samples": 4, "positions": 256, "candidates": 10, "recheck": 0}
    with torch.random.fork_rng(devices=[]):
        return search(
            *(load_demo_net(), clips), max_drop=10.0, target=target, points=3, progress=False, calibration=small
        )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_of_a_search_hangs_over(searched: SearchResult, tmp_path: Path, width: int, dark: bool) -> None:
    page = searched.report(tmp_path, title=f"The fewest bits for a net on {LONG}")
    found = look_at(page, tmp_path, width, dark=dark)
    assert_whole(found, width)
    assert len(set(found["source"])) == 2  # the front and the plan
    assert "Saved %" in found["seen"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_hangs_over_and_nothing_fails(comparison: Comparison, tmp_path: Path, width: int, dark: bool) -> None:
    page = comparison.report(tmp_path / "report.html", title=f"ResQ on {LONG}")
    found = look_at(page, tmp_path, width, dark=dark)
    assert_whole(found, width)
    assert found["film"][0] > 0
    assert "Agreement" in found["seen"]
    assert "Saved %" in found["seen"]
    assert ("GBOPs" in found["seen"]) == (width > 600)
