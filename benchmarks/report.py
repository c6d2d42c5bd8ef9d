"""How large a report of many cases is, and how long its index takes to open in Chromium.

    python benchmarks/report.py --cases 500

Cases are noise in a ball, three of four with a bright lesion, with maps of two methods. Opening is
the time from the start of the navigation to the end of DOMContentLoaded, when the list is usable,
and to the load event, the smallest of three.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
from playwright.sync_api import sync_playwright
from scipy import ndimage

import volumediff

METHODS = {"scan": 2.5, "atlas": 1.0}  # brightness of the lesion in the map
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
TIMES = """() => {
  const t = performance.getEntriesByType("navigation")[0];
  return [t.domContentLoadedEventEnd - t.startTime, t.loadEventEnd - t.startTime];
}"""


def write_cases(root: Path, cases: int, side: int) -> None:
    """Images, masks and maps."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij"))
    head = (grid**2).sum(0) < 0.8
    for number in range(cases):
        rng = np.random.default_rng(number)

        def noise(width: float, rng: np.random.Generator = rng) -> np.ndarray:
            x = ndimage.gaussian_filter(rng.normal(size=head.shape), width)
            return x / x.std() * head

        image, lesion = 500 * head + 80 * noise(2), np.zeros(head.shape, bool)
        if number % 4:
            centre = rng.uniform(-0.4, 0.4, (3, 1, 1, 1))
            lesion = ((grid - centre) ** 2).sum(0) < rng.uniform(0.02, 0.06)
        case = f"sub-{number:04d}"
        save(root / "data" / f"{case}_T1w.nii.gz", (image + 300 * lesion).astype(np.float32))
        save(root / "data" / f"{case}_mask.nii.gz", lesion.astype(np.uint8))
        for method, gain in METHODS.items():
            scores = 0.4 * noise(1.5) + gain * ndimage.gaussian_filter(lesion.astype(float), 1)
            outputs = {
                "desc-anomaly_map": scores.astype(np.float32),
                "desc-anomaly_mask": (scores > 1.4).astype(np.uint8),
                "desc-foreground_mask": head.astype(np.uint8),
            }
            for name, array in outputs.items():
                save(root / method / f"{case}_{name}.nii.gz", array)
            facts = {"method": method, "score": float(scores.max())}
            (root / method / f"{case}_desc-anomaly_map.json").write_text(json.dumps(facts))


def save(path: Path, array: np.ndarray) -> None:
    """NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def opening(page: Path, chromium: str) -> list[float]:
    """Milliseconds to a usable list and to the load event."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found = []
        for _ in range(3):
            shown = browser.new_context(offline=True).new_page()
            shown.goto(page.as_uri())
            shown.wait_for_function("performance.getEntriesByType('navigation')[0].loadEventEnd")
            found.append(shown.evaluate(TIMES))
        browser.close()
    return np.min(found, axis=0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--side", type=int, default=24, help="voxels along each axis")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    words = parser.parse_args()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_cases(root, words.cases, words.side)
        start = time.process_time()
        volumediff.evaluate(
            [root / m for m in METHODS], root / "data", output=root / "out", html=True
        )
        index = root / "out" / "report.html"
        pages = sum(p.stat().st_size for p in (root / "out" / "report_cases").iterdir())
        ready, loaded = opening(index, words.chromium)
        print(
            f"{words.cases} cases: index {index.stat().st_size / 1e6:.2f} MB, pages "
            f"{pages / 1e6:.0f} MB; usable after {ready / 1e3:.2f} s, loaded after "
            f"{loaded / 1e3:.2f} s; {time.process_time() - start:.0f} s of CPU"
        )


if __name__ == "__main__":
    main()
