"""``resq demo``: run everything, show a table, and leave figures, a report and JSON in a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from resq_plugin.demo.data import DemoData, procedural_data, video_data
from resq_plugin.demo.net import load_demo_net
from resq_plugin.demo.pictures import FIGURES, draw_figures
from resq_plugin.demo.run import run_demo
from resq_plugin.demo.settings import DemoSettings
from resq_plugin.extras import need
from resq_plugin.files import check_folder, written_into
from resq_plugin.logs import only_errors
from resq_plugin.report import (
    MissingExtraError,
    ReportError,
    describe_machine,
    finding,
    is_report,
    rich_table,
    write_report,
)

__all__ = ["demo_command"]

REPORT, RESULT = "report.html", "demo.json"

_MOST_THREADS = 4
"""A net and frames this small keep no more threads busy."""


def demo_command(
    video: Path | None, out: Path, console: Console, settings: DemoSettings | None = None
) -> dict[str, Any]:
    """Run the demo and write figures and report into a folder, all of them when all are complete.

    Without the packages of the extra ``report`` the numbers are still measured and shown.

    Args:
        video: a file to run on; None takes the embedded labelled scenes.
        out: the folder, made when absent.
        console: where table and progress go.
        settings: what to run.

    Returns:
        What ``--json`` writes: ``rows``, and what they were measured with.

    Raises:
        VideoError: the file holds no video of at least two frames.
        ReportError: the folder cannot be written, or holds a file of such a name that is of no earlier demo.
    """
    settings = settings or DemoSettings()
    begin = time.perf_counter()
    _check_out(out)
    data = _data(video, settings)

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    # What calibration finds wrong with net and settings is not the reader's concern: they are ours.
    with _idle_threads(), only_errors("resq_plugin.calibration"):
        settings = settings.fitted(min(map(len, data.videos)))
        say(f"ResQ on {data.name}, {data.shape[3]}×{data.shape[2]} pixels")
        result = run_demo(load_demo_net(), data, settings, progress=console.is_terminal)
        machine = describe_machine()
    seconds = time.perf_counter() - begin
    details = {"Run": _describe(data, settings, seconds), "Machine": machine}
    # The sentence compares what nobody trained: a trained row has no trained frame quantization beside it.
    sentence = finding([row for row in result.rows if not row.get("trained")])
    console.print(rich_table(result.rows))
    try:
        for package in ("matplotlib", "jinja2"):
            need(package)
    except MissingExtraError as error:
        say(f"No figures and no report: {error}", "yellow")
    else:
        with console.status("drawing figures"), written_into(out, ReportError) as part:
            figures = draw_figures(result, part, labelled=data.labels is not None)
            title = f"ResQ on {data.name}"
            write_report(part / REPORT, title, result.rows, figures, details, summary=sentence)
        say(f"Report: {out / REPORT}")
    say(sentence)
    return {
        "rows": result.rows,
        "finding": sentence,
        "seconds": round(seconds, 1),
        "settings": dataclasses.asdict(settings),
        "details": details,
    }


def _check_out(out: Path) -> None:
    """Raise unless the folder can be written and what would be replaced there is of an earlier demo."""
    check_folder(out, ReportError, "--out")
    found = [name for name in (REPORT, *FIGURES, RESULT) if os.path.lexists(out / name)]
    if found and not (_is_result(out / RESULT) or is_report(out / REPORT)):
        msg = f"{out} holds {found[0]}, which is of no earlier demo; give --out another folder, or move that file."
        raise ReportError(msg)


def _is_result(path: Path) -> bool:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and {"rows", "finding", "settings"} <= values.keys()


def _data(video: Path | None, settings: DemoSettings) -> DemoData:
    if video is None:
        return procedural_data(settings.videos, settings.frames, settings.calibration_clips)
    return video_data(video, 3 * settings.frames, 2 * settings.calibration_clips)


@contextmanager
def _idle_threads() -> Iterator[None]:
    """Use no more threads than there are idle cores: threads that wait for each other crawl on a busy machine."""
    before = torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    idle = max(1, (os.cpu_count() or 1) - round(load))
    torch.set_num_threads(min(before, idle, _MOST_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _describe(data: DemoData, settings: DemoSettings, seconds: float) -> dict[str, str]:
    calibration = settings.calibration
    frames = sum(len(clip) for clip in data.calibration)
    return {
        "Videos": data.name,
        "Frame": f"{data.shape[3]}×{data.shape[2]} pixels",
        "Truth": "labels of the scenes"
        if data.labels is not None
        else "predictions of the float model, whatever it makes of this video",
        "Calibration": f"{frames} frames, up to {calibration.samples} samples, {calibration.candidates} candidates",
        "Weight scales": f"one per {settings.weights}",
        "Protocol": "every T-th frame is a keyframe; accuracy is the mean over the positions in the interval",
        "Wall time": f"{seconds:.0f} s",
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
