"""The viewer of one case shows what the files hold, drawn by WebGL and by the canvas."""

import io
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from volumediff.data.volume import read
from volumediff.reporting.case_page import CasePages
from volumediff.reporting.scene import NamedPlace, OutlinedMask, Scene, ScoreMap
from volumediff.reporting.viewer import nifti_bytes

NASTY = "</script><script>alert(1)</script>&'\""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def scene(shape=(9, 8, 7), **more):
    rng = np.random.default_rng(0)
    image = rng.uniform(-3, 1000, shape).astype(np.float32)
    return Scene("case", {"T1w": image}, spacing_mm=(1.5, 1.0, 2.0), **more)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.linspace(-3.7, 812.3, 504), 816 / 131070),  # half a step of 65535
        (np.arange(504) - 100.0, 0.0),  # whole numbers are exact
        (np.full(504, 7.25), 0.0),
        (np.arange(504) % 2 == 0, 0.0),
        ((np.arange(504) % 256).astype(np.uint8), 0.0),
    ],
)
def test_volumes_of_the_page_are_nifti_files_with_the_values(values, error):
    array = values.reshape(9, 8, 7)
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    image = nib.Nifti1Image.from_bytes(nifti_bytes(array, scene()))
    got = np.asarray(image.dataobj, dtype=np.float64)
    # single precision of the slope adds a little
    np.testing.assert_allclose(got, array, rtol=1e-6, atol=error * 1.01)
    np.testing.assert_allclose(image.affine @ [4, 3.5, 3, 1], [0, 0, 0, 1], atol=1e-6)
    assert image.header.get_zooms() == (1.5, 1.0, 2.0)


def test_pages_have_safe_names_and_know_their_neighbours(tmp_path):
    cases = ["sub-01", "sub-01_T1w", "a/b", "a b", "SUB-01", NASTY, "患者", ".."]
    with CasePages(tmp_path / "report.html") as pages:
        for case in cases:
            outputs = {"map": tmp_path / "out" / "m 1.nii.gz"} if case == NASTY else None
            pages.write(Scene(case, scene((3, 3, 3)).images), outputs=outputs)
    names = [pages.address(case).removeprefix("report_cases/") for case in cases]
    assert len({n.lower() for n in names}) == len(cases)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.html", n) for n in names)
    assert names[0] == "sub-01.html"
    there = {p.name for p in (tmp_path / "report_cases").iterdir()}
    assert there == {*names, "niivue.js", "pages.json"}
    first, last = ((tmp_path / "report_cases" / names[i]).read_text("utf-8") for i in (0, -1))
    assert 'rel="prev"' not in first
    assert 'rel="next"' not in last
    html = (tmp_path / "report_cases" / names[5]).read_text(encoding="utf-8")
    assert "<script>alert" not in html
    for rel, address in (("up", "../report.html"), ("prev", names[4]), ("next", names[6])):
        assert f'<a rel="{rel}" href="{address}">' in html
    assert 'href="../out/m%201.nii.gz"' in html
    assert not re.findall(r"\son\w+=|style=", html)  # the policy would refuse both
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_pages_of_an_earlier_report_are_removed_and_nothing_else(tmp_path):
    index, folder = tmp_path / "report.html", tmp_path / "report_cases"

    def write(*cases):
        with CasePages(index) as pages:
            for case in cases:
                pages.write(Scene(case, scene((3, 3, 3)).images))

    write("a", "b", "c")
    (folder / "mine.html").write_text("of somebody else")
    (tmp_path / "outside.html").write_text("not of the folder")
    write("b", "d")
    assert {p.name for p in folder.glob("*.html")} == {"b.html", "d.html", "mine.html"}
    record = json.loads((folder / "pages.json").read_bytes())
    record["pages"] += ["../outside.html", "niivue.js", 7]
    (folder / "pages.json").write_text(json.dumps(record))
    write("e")
    assert {p.name for p in folder.glob("*.html")} == {"e.html", "mine.html"}
    assert (tmp_path / "outside.html").is_file()
    assert (folder / "niivue.js").is_file()
    with pytest.raises(FileNotFoundError), CasePages(index):
        (tmp_path / "no volume").read_bytes()
    assert (folder / "e.html").is_file()  # a report that was not finished removes nothing
    (folder / "pages.json").write_text("{")
    write("g")
    assert {p.name for p in folder.glob("*.html")} == {"e.html", "g.html", "mine.html"}


# ---- in a browser: one for the file, whose pages may have no WebGL


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        words = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield started
        started.close()


NO_WEBGL = """
const before = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
  return kind.startsWith("webgl") ? null : before.call(this, kind, ...more);
};
"""
TEXTS = """
window.texts = [];
const write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  window.texts.push([text, x, y]);
  write.call(this, text, x, y);
};
"""


class Shown:
    """A page in the browser; everything it asks for and complains about is kept."""

    def __init__(self, browser, path, *, webgl, width=700):
        self.page = browser.new_page(viewport={"width": width, "height": 1300})
        self.page.add_init_script(TEXTS if webgl else TEXTS + NO_WEBGL)
        self.requests, self.complaints = [], []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on(
            "console",
            lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None,
        )
        self.address, self.webgl = path.as_uri(), webgl
        self.page.goto(self.address)
        self.settle()
        if webgl:  # without a graphics card it has to be asked for
            self.page.get_by_role("button", name="Start 3D").click()
            self.page.wait_for_selector('#case-viewer[data-slices="webgl"]', timeout=60_000)
            self.settle(timeout=60_000)
        assert self.data["slices"] == ("webgl" if webgl else "canvas"), self.data

    def settle(self, timeout=20_000):
        self.page.wait_for_selector('#case-viewer[aria-busy="false"]', timeout=timeout)

    @property
    def data(self):
        return self.page.evaluate("({...document.getElementById('case-viewer').dataset})")

    @property
    def at(self):
        return [int(v) for v in self.data["at"].split()]

    @property
    def read(self):
        return self.page.inner_text("#viewer-read")

    def key(self, name):
        self.page.keyboard.press(name)
        self.settle()

    def tile(self, plane):
        return next(t for t in json.loads(self.data["tiles"]) if t["plane"] == plane)

    def pixel(self, plane, u, v):
        """Where a voxel is drawn, in pixels of the window."""
        box, t = self.page.locator(".stage").bounding_box(), self.tile(plane)
        x = t["left"] + (u - t["u0"]) / t["du"]
        y = t["top"] + (v - t["v0"]) / t["dv"]
        return box["x"] + x, box["y"] + y

    def click(self, plane, u, v, **more):
        self.page.mouse.click(*self.pixel(plane, u, v), **more)
        self.settle()

    def picture(self):
        """The slices as they stand on the screen."""
        png = self.page.locator(".stage").screenshot()
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def colours(self, spots):
        """What is drawn at the centres of voxels: plane, to the right, upwards."""
        picture, box = self.picture(), self.page.locator(".stage").bounding_box()
        places = [self.pixel(*spot) for spot in spots]
        return [picture[round(y - box["y"]), round(x - box["x"])] for x, y in places]

    def quiet(self):
        """It asked for itself and for the library beside it, and complained of nothing."""
        library = [self.address.rpartition("/")[0] + "/niivue.js"] if self.webgl else []
        assert self.requests == [self.address, *library]
        assert self.complaints == []
        self.page.close()


def full_scene(shape=(20, 18, 16)):
    """A case with everything that a localization can leave."""
    rng = np.random.default_rng(1)
    image = rng.uniform(0, 900, shape).astype(np.float32)
    truth, found = np.zeros(shape, bool), np.zeros(shape, bool)
    truth[12:15, 5:8, 6:9] = True
    found[12:16, 5:9, 6:10] = True
    scores = np.where(found, 4.0, rng.uniform(0, 0.5, shape)).astype(np.float32)
    affine = np.diag([1.5, 1.0, 2.0, 1.0])
    affine[:3, 3] = (-15, -9, -16)
    places = [
        NamedPlace("001", tuple((affine @ [13, 6, 7, 1])[:3]), "soon, left"),
        NamedPlace("002", tuple((affine @ [2, 3, 4, 1])[:3]), "later"),
    ]
    return Scene(
        f"case {NASTY}",
        {"T1w": image, "pseudo-healthy": image[::-1].copy()},
        {"thor": ScoreMap(scores, "z"), "uncertainty": ScoreMap(scores / 3, colours="uncertain")},
        {
            "lesion": OutlinedMask(truth, "#2fe0ff", "inside the lesion"),
            "findings": OutlinedMask(found, "#8cff66", "inside a finding"),
        },
        spacing_mm=(1.5, 1.0, 2.0),
        affine=affine,
        start=(13, 6, 7),
        places=places,
    )


def written(tmp_path, shown):
    with CasePages(tmp_path / "report.html") as pages:
        pages.write(shown)
    return tmp_path / pages.address(shown.title)


@pytest.mark.slow
@pytest.mark.parametrize("webgl", [True, False], ids=["webgl", "canvas"])
def test_the_mouse_picks_the_voxel_under_it_and_pages(browser, tmp_path, webgl):
    shown = Shown(browser, written(tmp_path, full_scene()), webgl=webgl)
    assert shown.at == [13, 6, 7]
    assert "inside the lesion · inside a finding" in shown.read
    for plane, (u, v) in enumerate([(4, 11), (8, 3), (15, 12)]):
        before = shown.at
        shown.click(plane, u, v)
        after = {0: [u, v, before[2]], 1: [u, before[1], v], 2: [before[0], u, v]}[plane]
        assert shown.at == after
        shown.page.mouse.wheel(0, -100)
        shown.settle()
        after[2 - plane] += 1
        assert shown.at == after
    # zoom keeps the crosshair on the screen, and what is clicked is still what is under it
    shown.key("1")
    for _ in range(3):
        shown.key("+")
    assert float(shown.data["zoom"]) == pytest.approx(1.25**3, rel=1e-3)
    i, j, _ = shown.at
    shown.click(0, i + 1, j - 1)
    assert shown.at[:2] == [i + 1, j - 1]
    if webgl:  # the card stops: the canvas goes on where it was
        before = shown.data
        shown.page.evaluate(
            "document.querySelector('.stage canvas').getContext('webgl2')"
            ".getExtension('WEBGL_lose_context').loseContext()"
        )
        shown.page.wait_for_selector('#case-viewer[data-slices="canvas"]')
        shown.settle()
        kept = ("at", "zoom", "window")
        assert [shown.data[k] for k in kept] == [before[k] for k in kept]
        shown.complaints = [c for c in shown.complaints if "CONTEXT_LOST" not in c]
        shown.click(0, i, j)
        assert shown.at[:2] == [i, j]
    shown.quiet()


@pytest.mark.slow
def test_everything_can_be_done_with_keys(browser, tmp_path):
    case = full_scene()
    shown = Shown(browser, written(tmp_path, case), webgl=False)
    shown.key("n")
    shown.key("n")
    assert shown.at == [2, 3, 4]
    assert shown.page.inner_text("#viewer-place") == "002: later"
    shown.key("p")
    assert shown.at == [13, 6, 7]
    # keys belong to the plane that was used last
    shown.click(2, 9, 9)
    shown.key("PageDown")
    assert shown.at == [12, 9, 9]
    shown.click(0, 5, 5)
    shown.key("ArrowUp")
    shown.key("ArrowRight")  # towards the patient's left in the radiological convention
    assert shown.at[:2] == [4, 6]
    shown.key("r")
    shown.key("Shift+ArrowRight")
    assert shown.at[:2] == [14, 6]
    shown.page.get_by_label("coronal slice").fill("9")
    shown.settle()
    assert shown.at[1] == 9
    # window by the right button, back by a key
    before = shown.data["window"]
    x, y = shown.pixel(0, 10, 10)
    shown.page.mouse.move(x, y)
    shown.page.mouse.down(button="right")
    shown.page.mouse.move(x + 40, y)
    shown.page.mouse.up(button="right")
    shown.settle()
    low, high = (float(v) for v in before.split())
    wide = [float(v) for v in shown.data["window"].split()]
    assert wide[1] - wide[0] == pytest.approx((high - low) * np.exp(40 / 150), rel=1e-6)
    shown.key("w")
    assert shown.data["window"] == before
    # one plane, then the help and its way out
    shown.key("2")
    assert [t["plane"] for t in json.loads(shown.data["tiles"])] == [1]
    shown.page.keyboard.press("?")
    assert shown.page.locator("dialog").is_visible()
    shown.page.keyboard.press("Escape")
    assert not shown.page.locator("dialog").is_visible()
    # outlines of lesion and findings, on and off
    shown.key("0")
    shown.key("n")
    shown.key("n")
    assert shown.at == [13, 6, 7]
    edges = {"lesion": [(14.5, 5), (12, 7.5)], "findings": [(15.5, 7), (14, 8.5)]}
    for there in (True, False):
        picture, box = shown.picture(), shown.page.locator(".stage").bounding_box()
        for name, spots in edges.items():
            colour = [int(case.outlines[name].colour[i : i + 2], 16) for i in (1, 3, 5)]
            for u, v in spots:
                x, y = shown.pixel(0, u, v)
                x, y = round(x - box["x"]), round(y - box["y"])
                near = np.abs(picture[y - 2 : y + 3, x - 2 : x + 3] - colour).max(axis=-1)
                assert (near.min() < 60) == there
        # the boxes follow the key
        assert [shown.page.get_by_role("checkbox", name=name).is_checked() for name in edges] == [
            there,
            there,
        ]
        shown.key("o")
    # a box takes its own outline away, and no other
    shown.page.get_by_role("checkbox", name="lesion").uncheck()
    shown.settle()
    (u, v), (x0, y0) = edges["findings"][0], edges["lesion"][1]
    drawn = []
    for name, spot in (("findings", (u, v)), ("lesion", (x0, y0))):
        x, y = shown.pixel(0, *spot)
        x, y = round(x - box["x"]), round(y - box["y"])
        colour = [int(case.outlines[name].colour[i : i + 2], 16) for i in (1, 3, 5)]
        near = np.abs(shown.picture()[y - 2 : y + 3, x - 2 : x + 3] - colour).max(axis=-1)
        drawn.append(near.min() < 60)
    assert drawn == [True, False]
    shown.page.get_by_role("checkbox", name="lesion").check()
    shown.settle()
    # other images and maps
    at = tuple(shown.at)
    for name in ("pseudo-healthy", "T1w"):
        shown.key("h")
        value = float(re.search(rf"{name} (\S+)", shown.read)[1])
        assert value == pytest.approx(case.images[name][at], abs=0.06)
    shown.page.select_option("#viewer-map", label="uncertainty")
    shown.settle()
    assert re.search(r"uncertainty \d", shown.read)
    shown.key("m")
    assert "uncertainty" not in shown.read
    shown.quiet()


@pytest.mark.slow
def test_two_fingers_zoom(browser, tmp_path):
    shown = Shown(browser, written(tmp_path, full_scene()), webgl=False)
    x, y = shown.pixel(0, 10, 9)
    session = shown.page.context.new_cdp_session(shown.page)
    for kind, apart in (("touchStart", 20), ("touchMove", 30), ("touchMove", 60)):
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    shown.settle()
    # measured from the first move of both, with the second finger's move after the first's
    assert 1.9 < float(shown.data["zoom"]) < 3.1
    shown.quiet()


def rotated(degrees):
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])


AFFINES = {
    "ras": np.diag([1.0, 1.0, 1.0]),
    "lps": np.diag([-1.0, -1.0, 1.0]),
    "anisotropic, lai": np.diag([-0.8, 1.3, -4.0]),
    "oblique": rotated(20) @ np.diag([1.0, -1.1, 2.0]),
    "axes exchanged": np.array([[0, 0, -2.0], [1.2, 0, 0], [0, 1.0, 0]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AFFINES)
def test_values_and_sides_are_those_of_the_file(browser, tmp_path, name):
    """Oracle: nibabel at the millimetres that the page gives."""
    shape = (140, 10, 12) if name == "lps" else (14, 12, 10)  # the long one is thinned out
    affine = np.eye(4)
    affine[:3, :3] = AFFINES[name]
    affine[:3, 3] = (-7.5, 3.25, 11.0)
    rng = np.random.default_rng(3)
    values = rng.uniform(100, 200, shape).astype(np.float32)
    # bright on the patient's left: R is positive, so the lower half of the first coordinate
    corners = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    millimetres = corners @ affine[:3, :3].T + affine[:3, 3]
    left = millimetres[..., 0] < np.median(millimetres[..., 0])
    values[left] += 600
    nib.Nifti1Image(values, affine).to_filename(tmp_path / "x.nii.gz")
    volume = read(tmp_path / "x.nii.gz")
    x = volume.array[0]
    case = Scene("case", {"T1w": x}, spacing_mm=volume.spacing_mm, affine=volume.affine)
    shown = Shown(browser, written(tmp_path, case), webgl=False)
    file = nib.load(tmp_path / "x.nii.gz")
    data, inverse = file.get_fdata(), np.linalg.inv(file.affine)
    small, _ = case.thinned()
    for u, v in ((1, 2), (5, 7), (8, 4)):
        shown.click(0, u * small.shape[0] // 14, v)
        mm, value = re.fullmatch(r"(.+) mm · T1w (\S+)", shown.read).groups()
        at = (inverse @ [*(float(p) for p in mm.split(", ")), 1])[:3]
        np.testing.assert_allclose(at, np.rint(at), atol=0.12)  # the page rounds to 0.1 mm
        true = data[tuple(np.rint(at).astype(int))]
        rounded = 0.5 * 10.0 ** -len(value.partition(".")[2])  # of the digits that are written
        assert float(value) == pytest.approx(true, abs=rounded + np.ptp(data) / 131070)
    for convention, side in (("radiological", 1), ("neurological", -1)):
        if convention == "neurological":
            shown.page.evaluate("window.texts = []")
            shown.key("r")
        for plane in (0, 1):
            tile, picture = shown.tile(plane), shown.picture().mean(axis=-1)
            rows = slice(round(tile["top"]), round(tile["top"] + tile["height"]))
            middle = round(tile["left"] + tile["width"] / 2)
            ends = [round(tile["left"]), round(tile["left"] + tile["width"])]
            one, other = picture[rows, ends[0] : middle], picture[rows, middle : ends[1]]
            assert side * (other.mean() - one.mean()) > 30  # the patient's left is on the right
            texts = {t: x for t, x, _ in shown.page.evaluate("window.texts.slice(-12)")}
            assert side * (texts["L"] - texts["R"]) > 0
    shown.quiet()


@pytest.mark.slow
def test_both_kinds_of_slices_draw_the_same(browser, tmp_path):
    shape = (24, 20, 16)
    image = np.zeros(shape, np.float32)
    image[4:9, 3:17, :] = 500.0
    image[15:20, 3:9, :] = 1000.0
    labels = np.zeros(shape, np.uint8)
    labels[4:9, 11:17, 4:12], labels[15:20, 3:9, 4:12] = 1, 2
    scores = np.zeros(shape, np.float32)
    scores[10:14, 3:17, :] = 3.0
    scores[10:14, 3:9, :] = 1.0
    case = Scene(
        "case",
        {"T1w": image},
        {"score": ScoreMap(scores)},
        labels={"method": labels, "truth": labels[::-1].copy()},
        label_names={1: "oedema"},
        spacing_mm=(1.0, 1.4, 2.0),
        start=(13, 12, 9),
    )
    path = written(tmp_path, case)
    pages = [Shown(browser, path, webgl=webgl) for webgl in (True, False)]
    spots = [(0, 6, 5), (0, 6, 14), (0, 17, 6), (0, 12, 14), (0, 12, 5), (0, 1, 1)]
    spots += [(1, 6, 2), (1, 6, 8), (2, 5, 14), (2, 15, 14)]
    for shown in pages:
        shown.key("m")  # over labels a map has to be asked for
        shown.page.fill("#viewer-floor", "0.5")
        shown.page.fill("#viewer-top", "3")
        shown.settle()
    for step in ("as it opens", "r", "without label 1", "zoomed"):
        for shown in pages:
            if step == "r":
                shown.key("r")
            if step == "without label 1":
                shown.page.get_by_label("oedema").uncheck()
                shown.settle()
            if step == "zoomed":
                shown.key("1")
                shown.key("+")
                shown.key("+")
        tiles = [{t["plane"]: t for t in json.loads(s.data["tiles"])} for s in pages]
        for plane in tiles[1]:
            for place in ("u0", "v0"):
                assert tiles[0][plane][place] == pytest.approx(tiles[1][plane][place], abs=0.1)
            for size, side in (("du", "width"), ("dv", "height")):
                extent = [t[plane][size] * t[plane][side] for t in tiles]
                assert extent[0] == pytest.approx(extent[1], rel=0.01)
        seen = [s for s in spots if step != "zoomed" or (s[0] == 0 and 8 < s[1] < 16)]
        np.testing.assert_allclose(*[p.colours(seen) for p in pages], atol=12, err_msg=step)
    assert "oedema" in pages[1].page.inner_text(".viewer")
    for shown in pages:
        shown.quiet()


@pytest.mark.slow
def test_controls_without_use_are_absent_and_nothing_is_clipped(browser, tmp_path):
    bare = written(tmp_path / "bare", scene())
    shown = Shown(browser, bare, webgl=False, width=700)
    for name in ("image", "map", "labels", "cut", "place"):
        assert shown.page.locator(f"#viewer-{name}").count() == 0
    assert shown.page.get_by_text("3D").count() == 0
    assert shown.page.get_by_text("Full screen").count() == 1
    shown.key("m")  # keys of what is not there do nothing
    shown.key("4")
    shown.key("n")
    assert "voxel 0, 0, 0" in shown.read
    shown.page.keyboard.press("?")
    named = shown.page.locator("dialog dt").all_inner_texts()
    assert {"R", "F"} <= set(named)
    assert not {"N, P", "M", "O", "H", "C", "4"} & set(named)
    shown.quiet()
    full = written(tmp_path / "full", full_scene())
    for width in (700, 1300):
        shown = Shown(browser, full, webgl=False, width=width)
        clipped = shown.page.evaluate(
            "[document.documentElement, ...document.querySelectorAll('body *')]"
            ".filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)"
            ".map((e) => e.outerHTML.slice(0, 80))"
        )
        assert clipped == []
        unnamed = shown.page.evaluate(
            "[...document.querySelectorAll('.viewer :is(input, select, button)')]"
            ".filter((e) => !(e.labels && e.labels.length) && !e.getAttribute('aria-label'))"
            ".map((e) => e.outerHTML)"
        )
        assert unnamed == []
        shown.quiet()


@pytest.mark.slow
def test_two_maps_stand_side_by_side_at_one_place(browser, tmp_path):
    """Each side has its own map and its own range of colours; the crosshair is one."""
    path = written(tmp_path, full_scene())
    shown = Shown(browser, path, webgl=True)
    shown.page.select_option("#viewer-beside", label="uncertainty")
    # 3D steps back, and comes again
    shown.page.wait_for_selector('#case-viewer[data-slices="canvas"]', timeout=60_000)
    shown.settle(timeout=60_000)
    shown.key("1")
    left, right = json.loads(shown.data["tiles"])
    assert (left["side"], right["side"]) == (0, 1)
    assert right["left"] >= left["left"] + left["width"]
    assert (left["width"], left["du"], left["v0"]) == (right["width"], right["du"], right["v0"])
    inside, outside = (13, 6), (3, 15)
    box = shown.page.locator(".stage").bounding_box()

    def colour(tile, spot):
        x = tile["left"] + (spot[0] + 0.4 - tile["u0"]) / tile["du"]
        y = tile["top"] + (spot[1] + 0.4 - tile["v0"]) / tile["dv"]
        return shown.picture()[round(y), round(x)]

    assert box
    for spot, same in ((outside, True), (inside, False)):  # a finding is in the colours of a side
        assert np.allclose(colour(left, spot), colour(right, spot), atol=3) is same
    texts = {text for text, *_ in shown.page.evaluate("window.texts")}
    assert any(re.fullmatch(r"thor, colours [\d.]+ to 4 z", text) for text in texts)
    assert any(re.fullmatch(r"uncertainty, colours [\d.]+ to 1.33 score", text) for text in texts)
    # a click on the right side moves both
    x = right["left"] + (5 - right["u0"]) / right["du"]
    y = right["top"] + (11 - right["v0"]) / right["dv"]
    shown.page.mouse.click(box["x"] + x, box["y"] + y)
    shown.settle()
    assert shown.at == [5, 11, 7]
    assert "beside, uncertainty " in shown.read
    shown.key("b")  # the last one of the list: nothing is beside any more
    shown.page.wait_for_selector('#case-viewer[data-slices="webgl"]', timeout=60_000)
    shown.settle(timeout=60_000)
    assert {tile.get("side", 0) for tile in json.loads(shown.data["tiles"])} == {0}
    shown.quiet()


@pytest.mark.slow
def test_rows_of_findings_are_reached_by_keyboard(browser, tmp_path):
    rows = '<table><tr data-place="1"><td>002</td></tr></table>'
    with CasePages(tmp_path / "report.html") as pages:
        pages.write(full_scene(), body=[rows])
    shown = Shown(browser, next((tmp_path / "report_cases").glob("*.html")), webgl=False)
    row = shown.page.locator("tr[data-place]")
    row.focus()
    assert row.evaluate("(row) => row === document.activeElement")
    shown.key("Enter")
    assert shown.at == [2, 3, 4]
    shown.quiet()


@pytest.mark.slow
def test_a_page_that_lies_alone_has_slices_and_says_why_not_more(browser, tmp_path):
    path = written(tmp_path, full_scene())
    (path.parent / "niivue.js").unlink()
    shown = Shown(browser, path, webgl=False)
    shown.page.close()
    page = browser.new_page(viewport={"width": 700, "height": 1300})
    page.goto(path.as_uri())
    page.get_by_role("button", name="Start 3D").click()
    page.wait_for_selector("#viewer-failed")
    assert "needs the file niivue.js" in page.inner_text("#viewer-failed")
    assert page.locator('#case-viewer[data-slices="canvas"]').count() == 1
    page.close()
