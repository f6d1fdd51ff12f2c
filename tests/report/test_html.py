"""The report: one file that needs nothing else, with every row and figure in it."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")

from rich.console import Console

from resq_plugin.report import MissingExtraError, ReportError, ReportFigure, describe_machine, rich_table, write_report
from resq_plugin.report.rows import table_of

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def row(scheme: str, precision: str, **extra: Any) -> dict[str, Any]:
    values = {"interval": 3, "accuracy": 81.25, "metric": "mIoU", "agreement": 98.76}
    return {
        "scheme": scheme,
        "precision": precision,
        **values,
        "gbops_per_frame": 4.725,
        "relative_bops": 0.5,
        **extra,
    }


ROWS = [
    row("float", "float", interval=1, gbops_per_frame=151.04, relative_bops=16.0),
    row("frame", "W8A8", interval=1, relative_bops=1.0),
    row("resq", "W8A8->W4A4"),
    row("dynamic", "W8A8->W4A{0,4,8}", threshold=0.15, relative_bops=0.391),
]


class Page(HTMLParser):
    """Collects tags with their attributes, table rows and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        for_phones = ("class", "narrow") in attrs
        self.in_cell = tag in ("td", "th") or (self.in_cell and tag in ("span", "wbr") and not for_phones)
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def figure(tmp_path: Path) -> ReportFigure:
    path = tmp_path / "figure.png"
    path.write_bytes(PNG)
    return ReportFigure(path, "A figure", "What it shows.")


def report(tmp_path: Path, figure: ReportFigure, **changes: Any) -> str:
    values = {
        "title": "Title",
        "rows": ROWS,
        "figures": [figure],
        "details": {"Machine": describe_machine()},
        **changes,
    }
    return write_report(tmp_path / "new" / "report.html", **values).read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path, figure: ReportFigure) -> None:
    html = report(tmp_path, figure)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "background"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html


def test_figures_are_inside_byte_for_byte(tmp_path: Path, figure: ReportFigure) -> None:
    page = Page(report(tmp_path, figure, figures=[figure, figure]))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2
    assert base64.b64decode((images[0]["src"] or "").removeprefix("data:image/png;base64,")) == PNG
    assert images[0]["alt"] == "A figure"
    assert "What it shows." in page.text


def test_every_row_is_in_the_table(tmp_path: Path, figure: ReportFigure) -> None:
    headings, *lines = Page(report(tmp_path, figure)).rows
    assert headings == ["Scheme", "Precision", "τ", "T", "mIoU", "Agreement", "GBOPs", "Saved %"]
    assert lines == [
        ["Float", "float", "", "1", "81.2", "98.8", "151", "–"],
        ["Frame", "W8A8", "", "1", "81.2", "98.8", "4.72", "0.0"],
        ["ResQ", "W8A8→W4A4", "", "3", "81.2", "98.8", "4.72", "50.0"],
        ["Dynamic-ResQ", "W8A8→W4A{0,4,8}", "0.15", "3", "81.2", "98.8", "4.72", "60.9"],
    ]


def test_without_labels_agreement_is_shown_once(tmp_path: Path, figure: ReportFigure) -> None:
    rows = [{**values, "metric": "agreement"} for values in ROWS[:3]]
    headings, *_ = Page(report(tmp_path, figure, rows=rows)).rows
    assert headings == ["Scheme", "Precision", "T", "Agreement", "GBOPs", "Saved %"]


def test_values_are_escaped(tmp_path: Path, figure: ReportFigure) -> None:
    nasty = "<b>&\"'</b><script>alert(1)</script>"
    html = report(
        tmp_path,
        ReportFigure(figure.path, nasty, nasty),
        title=nasty,
        summary=nasty,
        details={nasty: {nasty: nasty}},
        rows=[row("resq", nasty, metric=nasty)],
    )
    page = Page(html)
    assert '<b>&"' not in html
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(nasty) >= 8
    assert next(attributes for tag, attributes in page.tags if tag == "img")["alt"] == nasty


def test_settings_machine_and_summary_are_there(tmp_path: Path, figure: ReportFigure) -> None:
    details = {"Run": {"Videos": "seven"}, "Machine": describe_machine()}
    text = Page(report(tmp_path, figure, summary="What was found.", details=details)).text
    for expected in ("What was found.", "Videos", "seven", "PyTorch", "resq-plugin", "threads used"):
        assert expected in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "no rows"),
        ({"rows": [{"scheme": "resq"}]}, "row 0 has no precision"),
        ({"rows": [row("rescue", "W8A8")]}, "scheme='rescue'"),
        ({"figures": [ReportFigure(Path("nowhere.png"), "x")]}, "cannot read the figure nowhere.png"),
    ],
    ids=["empty", "key", "scheme", "figure"],
)
def test_what_cannot_be_reported_says_why(
    tmp_path: Path, figure: ReportFigure, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ReportError, match=message):
        report(tmp_path, figure, **changes)


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"cannot write .*report.html"):
        write_report(tmp_path / "file" / "report.html", "Title", ROWS, [], {})


def test_missing_jinja_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(
        MissingExtraError, match=r"jinja2 is not installed; write: pip install 'resq-plugin\[report\]'"
    ):
        write_report(tmp_path / "report.html", "Title", ROWS, [], {})


def test_terminal_table_fits_eighty_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(ROWS, title="Results"))
    text = console.export_text()
    assert "…" not in text
    for expected in ("W8A8→W4A{0,4,8}", "0.15", "60.9", "–", "Agreement", "Dynamic-ResQ"):
        assert expected in text


def test_weights_and_references_are_told_where_they_differ() -> None:
    variants = [("", ""), ("tensor", "float"), ("channel", "float"), ("tensor", "quantized")]
    rows = [{**row, "weights": w, "reference": r} for row, (w, r) in zip(ROWS, variants, strict=True)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(rows))
    text = console.export_text()
    assert "…" not in text
    headings, lines = table_of(rows)
    assert headings[2:4] == ("Weights", "Reference")
    assert [line[2:4] for line in lines] == variants
    assert "Reference" not in table_of(rows[:3])[0]
    assert not {"Weights", "Reference"} & set(table_of(rows[:2])[0])


def test_importing_the_report_needs_nothing_of_the_extra() -> None:
    code = (
        "import sys; import resq_plugin.report, resq_plugin.demo.command; "
        "print([m for m in ('matplotlib', 'jinja2', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    # torch may import jinja2 on its own.
    assert done.stdout.strip() in ("[]", "['jinja2']")
