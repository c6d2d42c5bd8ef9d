"""How large the index of a report of many cases is, and how long it takes to open in Chromium.

    python benchmarks/report.py --cases 500

Cases are smooth noise in a ball with a bright lesion and a map of it, listed with thumbnails and
ten numbers each; a few of them get their pages, too. Opening is the time from the start of the
navigation to the end of DOMContentLoaded, when the list can be used, the median of five.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from playwright.sync_api import sync_playwright
from scipy import ndimage

from volumediff.reporting.case_list import CaseColumn, ListedCase, case_list
from volumediff.reporting.case_page import CasePages
from volumediff.reporting.page_frame import Chapter, framed
from volumediff.reporting.scene import OutlinedMask, Scene, ScoreMap
from volumediff.reporting.thumbnails import thumbnail

SIDE = 48  # voxels of 4 mm
NUMBERS = 10  # of a case in the list
PAGES = 3
READY = """() => {
  const t = performance.getEntriesByType("navigation")[0];
  return t.domContentLoadedEventEnd - t.startTime;
}"""


def scene(number: int) -> Scene:
    """A case; no two are alike."""
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 3, indexing="ij"))
    noise = ndimage.zoom(rng.normal(size=(SIDE // 4,) * 3), 4, order=1)
    head = (grid**2).sum(0) < 0.8
    lesion = ((grid - rng.uniform(-0.4, 0.4, (3, 1, 1, 1))) ** 2).sum(0) < 0.03
    image = ((500 + 80 * noise + 300 * lesion) * head).astype(np.float32)
    at = [int(n) for n in np.argwhere(lesion).mean(axis=0)]
    return Scene(
        f"sub-{number:04d}",
        {"image": image},
        maps={"map": ScoreMap(((noise + 4 * lesion) * head).astype(np.float32))},
        outlines={"lesion": OutlinedMask(lesion, "#2fe0ff", "inside the lesion")},
        spacing_mm=(4.0, 4.0, 4.0),
        affine=np.diag([4.0, 4.0, 4.0, 1.0]),
        start=(at[0], at[1], at[2]),
    )


def write_index(index: Path, cases: int) -> float:
    """Writes the index and a few pages; MB of a page."""
    rows = []
    with CasePages(index) as pages:
        for number in range(cases):
            shown = scene(number)
            if number < PAGES:
                pages.write(shown)
            values = [(number + k / 10, f"{number + k / 10:.3f}") for k in range(NUMBERS)]
            address = f"{pages.folder.name}/{shown.title}.html"
            kind = ("healthy", "with lesions")[number % 2]
            rows.append(ListedCase(shown.title, address, thumbnail(shown), kind, values))
    columns = [CaseColumn(f"metric {k}", "What it is.") for k in range(NUMBERS)]
    text = framed("Report", [Chapter("cases", "Cases", case_list(rows, columns))])
    index.write_text(text, encoding="utf-8")
    return statistics.mean(p.stat().st_size for p in pages.folder.glob("*.html")) / 1e6


def opening(index: Path, chromium: str) -> float:
    """Seconds to a usable list."""
    found = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(5):
            shown = browser.new_context(offline=True).new_page()
            shown.goto(index.as_uri())
            found.append(shown.evaluate(READY) / 1e3)
        browser.close()
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    words = parser.parse_args()
    with TemporaryDirectory() as folder:
        index, start = Path(folder) / "report.html", time.process_time()
        page = write_index(index, words.cases)
        written = time.process_time() - start
        print(
            f"{words.cases} cases: index {index.stat().st_size / 1e6:.2f} MB, usable after "
            f"{opening(index, words.chromium):.2f} s; a page of {SIDE}³ voxels {page:.1f} MB; "
            f"{written:.0f} s of CPU to write"
        )


if __name__ == "__main__":
    main()
