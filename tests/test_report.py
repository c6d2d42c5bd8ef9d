"""The report is an index and a page for every case, opens without a network, and says what the
numbers say."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from volumediff.evaluation.baselines import against_baselines
from volumediff.evaluation.figures import MEASURES
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.summary import group_table, measure_table, verdicts
from volumediff.metrics.bootstrap import Interval
from volumediff.metrics.subgroups import Gap
from volumediff.reporting.case_list import CaseColumn, ListedCase, case_list
from volumediff.reporting.case_page import CasePages
from volumediff.reporting.page_frame import Chapter, framed
from volumediff.reporting.panel import case_panel, figure_of
from volumediff.reporting.report import settings_chapter
from volumediff.reporting.result_tables import legend_chapter, result_chapters
from volumediff.reporting.scene import OutlinedMask, Scene
from volumediff.reporting.thumbnails import thumbnail
from volumediff.reporting.timeline import TimelineEntry
from volumediff.reporting.views import CaseView, picture

NASTY = "</script><script>alert(1)</script>&'\""
NAMES = ["sub-02", NASTY, "حالة", "sub-10", "患者"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def interval(value, width=0.01):
    return Interval(value, value - width, value + width, 0.95, 100)


def result(name, overall, **groups):
    measures = {m: interval(float("nan")) for m in MEASURES}
    measures["voxel_ap"] = measures["voxel_ap_by_group"] = interval(overall)
    measures["false_positives"] = interval(10 * overall)
    measures["seconds"] = interval(2.5)
    inner = {g: {"voxel_ap": interval(v)} for g, v in groups.items()}
    return MethodResult(name, Path(name), measures, inner, [], {})


def compared(methods, width):
    """Results with the paired differences of voxel AP, all intervals of one half width."""
    found = [result(name, value) for name, value in methods.items()]
    return [
        replace(
            r,
            differences={
                other: {("voxel_ap",): interval(methods[r.method] - value, width)}
                for other, value in methods.items()
                if other != r.method
            },
        )
        for r in found
    ]


def view(title="case"):
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 100, (6, 8, 10)).astype(np.float32)
    truth = np.zeros(image.shape, bool)
    truth[1:4, 2:5, 3:8] = True
    maps = {"scan": rng.normal(size=image.shape).astype(np.float32), "atlas": image / 7}
    return CaseView(title, "a note", image, maps, truth, image[::-1].copy(), (3.0, 2.0, 1.0))


def told(case="case"):
    """A view with everything that a method can leave."""
    plain = view(case)
    found = np.zeros(plain.image.shape, bool)
    found[2:4, 2:4, 2:4] = True
    affine = np.diag([3.0, 2.0, 1.0, 1.0])
    affine[:3, 3] = (-9, 4, 7)
    finding = {
        "id": f"001{NASTY}",
        "volume_ml": 0.048,
        "mean_score": 2.5,
        "severity": 0.12,
        "probability": 0.25,
        "relative_uncertainty": None,
        "place": {
            "peak_mm": [-3.0, 10.0, 9.0],  # voxel 2, 3, 2
            "laterality": "left",
            "front_back": "middle",
            "up_down": "superior",
        },
        "intensities": [{"direction": "darker", "relative": -0.125}],
        "urgency": {"level": "soon", "reason": f"because {NASTY}"},
    }
    return replace(
        plain,
        uncertainty=plain.image / 3,
        found=found,
        steps=(TimelineEntry("shrink/00/mask", np.ones((6, 8), np.float32)),),
        findings=[finding] * 14,
        statement=f"14 findings {NASTY}",
        affine=affine,
    )


def listed(names):
    """Rows whose voxel AP is 0.9, 0.5, none, 0.10, 0.95 and on, with pictures."""
    scene = view().scene()
    values = [(0.9, "0.900"), (0.5, "0.500"), (float("nan"), ""), (0.1, "0.100"), (0.95, "0.950")]
    return [
        ListedCase(
            name,
            page=f"report_cases/{n}.html",
            thumbnail=thumbnail(scene),
            kind="healthy" if n % 2 else NASTY,
            values=[values[n % 5], NASTY],
            flags=[NASTY] if n == 1 else (),
        )
        for n, name in enumerate(names)
    ]


def index(names=NAMES, methods=6):
    """An index with everything that an evaluation can give."""
    many = {f"method_{n}": 0.2 + n / 20 for n in range(methods - 2)} | {"atlas": 0.2, NASTY: 0.1}
    results = compared(many, 0.02)
    results[0] = replace(
        results[0], gaps={"voxel_ap": Gap(interval(0.1), NASTY, 0.2, 0.15)}, left_out=[NASTY]
    )
    columns = [CaseColumn("voxel AP", "What it is."), CaseColumn(NASTY, NASTY)]
    image = figure_of(picture(view()), NASTY, kind="plot")
    return framed(
        f"Title {NASTY}",
        [
            Chapter("summary", "Summary", ["<p>Six methods.</p>"]),
            *result_chapters(results, [], [], groups=f"kind {NASTY}"),
            Chapter("cases", "Cases", case_list(listed(names), columns, kinds="kind")),
            Chapter("curves", "Curves", ['<div class="plots">', image, "</div>"]),
            legend_chapter(results, [], []),
            settings_chapter({"settings": {NASTY: float("nan")}}),
        ],
        lead=[f"A paragraph {NASTY}."],
    )


@pytest.fixture(scope="module")
def page():
    return index()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    with CasePages(folder / "report.html") as pages:
        shown = told(f"case {NASTY}")
        pages.write(shown.scene(), body=case_panel(shown))
    return next((folder / "report_cases").glob("*.html")).read_text(encoding="utf-8")


def test_words_of_the_list_start_at_the_left_and_numbers_end_at_the_right():
    rows = [
        ListedCase(f"c{i}", kind="site", values=[value, "", "A sentence."])
        for i, value in enumerate([(0.5, "0.500"), ""])
    ]
    columns = [CaseColumn(title) for title in ("score", "missing", "in a sentence")]
    text = "".join(case_list(rows, columns))
    heads = re.findall(r'<th scope="col"( class="text")?>', text)
    assert heads == ["", ' class="text"', "", "", ' class="text"']
    assert text.count('<td class="text">A sentence.</td>') == 2
    assert text.count('<td class="text">site</td>') == 2
    # numbers that are missing stay among the numbers
    assert '<td data-order="0.5">0.500</td>' in text
    assert text.count("<td>–</td>") == 3


class Structure(html.parser.HTMLParser):
    """What a page is made of: identifiers, targets of links, headings, and attributes."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.headings, self.attributes = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found.get("href", ""))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))


@pytest.mark.parametrize("name", ["page", "case"])
def test_a_page_is_well_formed_and_loads_nothing(name, request):
    text = request.getfixturevalue(name)
    found = Structure(text)
    assert [n for n, times in Counter(found.ids).items() if times > 1] == []
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    steps = zip(found.headings, found.headings[1:], strict=False)
    assert all(deeper <= level + 1 for level, deeper in steps), "headings skip no level"
    inside = [link[1:] for link in found.links if link.startswith("#")]
    assert "content" in inside
    assert set(inside) <= set(found.ids)
    assert not [link for link in found.links if re.match(r"[a-z]+:|//", link)]
    for tag, attribute, value in found.attributes:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not attribute.startswith("on")
        assert attribute != "style"  # the policy would refuse both
        if attribute == "src":
            assert re.match(r"data:image/(png|jpeg);base64,", value)
    assert '<html lang="en">' in text
    assert text.count("not for diagnosis") >= 2  # above and below


@pytest.mark.parametrize("name", ["page", "case"])
def test_the_policy_allows_the_page_and_nothing_else(name, request):
    text = request.getfixturevalue(name)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for kind, tag in (("script-src", "script"), ("style-src", "style")):
        for written in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(written.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in rules[kind]
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", ["page", "case"])
def test_hostile_names_stay_text(name, request):
    text = request.getfixturevalue(name)
    assert "<script>alert" not in text
    assert NASTY not in text
    if name == "page":
        assert "<bdi>حالة</bdi>" in text  # its direction does not turn the row
    else:
        described = re.search(r'id="scene">(.*?)</script>', text, re.DOTALL)[1]
        assert json.loads(described)["title"] == f"case {NASTY}"


def test_every_metric_of_a_table_is_explained(page):
    headings = re.findall(r'<th scope="row"><a[^>]*href="#(metric-[^"]*)" title="([^"]*)"', page)
    assert len(headings) > 3
    entries = re.findall(r'<dt id="(metric-[^"]*)">', page)
    assert {name for name, _ in headings} == set(entries)
    assert all(len(tip) > 40 for _, tip in headings)
    assert "voxel AP, mean over groups" not in page  # without groups it is the row above


def test_findings_steps_and_uncertainty_are_in_the_page(case):
    assert case.count("<tr data-place=") == 12
    assert "2 more are in the file" in case
    assert "left · middle · superior" in case
    assert "darker (-12%)" in case
    assert case.count("<figure") == 2  # slices and steps
    described = json.loads(re.search(r'id="scene">(.*?)</script>', case, re.DOTALL)[1])
    assert [m["name"] for m in described["maps"]] == ["scan", "atlas", "uncertainty"]


def test_pictures_are_repeatable_and_show_what_there_is():
    assert picture(view()) != picture(told())
    assert picture(told()) == picture(told())
    assert picture(replace(view(), healthy=None)).startswith(b"\x89PNG")


def test_thumbnails_are_in_radiological_convention_with_true_proportions(tmp_path):
    """A mark in the patient's right front: on the left above, where a radiologist looks for it."""
    image = np.full((10, 20, 4), 10.0, np.float32)
    image[8:, 16:] = 200  # right is the end of the first axis, front that of the second
    image[0, 0, 0] = 0
    mask = np.zeros(image.shape, bool)
    mask[2:5, 3:8] = True
    scene = Scene(
        "case", {"image": image}, outlines={"lesion": OutlinedMask(mask, "#2fe0ff", "inside")},
        spacing_mm=(2.0, 2.0, 5.0), start=(0, 0, 1),
    )  # fmt: skip
    (tmp_path / "t.jpg").write_bytes(thumbnail(scene))
    shown = np.asarray(Image.open(tmp_path / "t.jpg").convert("RGB")).astype(int)
    height, width, _ = shown.shape
    assert (height, width) == (144, 72)  # 40 mm by 20 mm
    assert shown[5, 3].min() > 200
    assert shown[-5, -3].max() < 40
    red, _, blue = shown[int(height * (1 - 3.5 / 20)), int(width * (1 - 2.5 / 10))]
    assert blue > red + 80  # the edge of the lesion: left of the patient, at the back
    assert len(thumbnail(scene)) < 6000


def test_it_says_where_a_baseline_is_better():
    results = [
        result("scan", 0.3, hyper=0.5, hypo=0.1),
        result("atlas", 0.2, hyper=0.2, hypo=0.2),
        result("intensity", 0.1, hyper=0.4, hypo=float("nan")),
    ]
    assert verdicts(results) == [
        "mean over groups: scan 0.300, best other atlas 0.200, 1.50 times.",
        "hyper: scan 0.500, best other intensity 0.400, 1.25 times.",
        "hypo: atlas is better than scan, 0.200 against 0.100.",
    ]
    assert [line.heading for line in group_table(results)] == ["mean over groups", "hyper", "hypo"]


def test_differences_that_may_be_chance_are_not_called_better():
    def named(width):
        found = compared({"scan": 0.3, "ddpm": 0.28, "atlas": 0.25}, width)
        both = [
            replace(r, differences={o: {**d, ("voxel_ap_by_group",): d["voxel_ap",]}
                                    for o, d in r.differences.items()})
            for r in found
        ]  # fmt: skip
        marked = {line.heading: line.best for line in measure_table(found)}
        return verdicts(both), against_baselines(found), marked

    certain, against, marked = named(0.01)
    assert certain == [
        "scan 0.300, best other ddpm 0.280, 1.07 times (95 % interval of the difference: +0.010 "
        "to +0.030)."
    ]
    assert against == [
        "Better than the baseline atlas in voxel AP beyond doubt: scan (+0.050, +0.040 to "
        "+0.060), ddpm (+0.030, +0.020 to +0.040)."
    ]
    assert marked["voxel AP"] == 0
    assert marked["false positives"] is marked["time per volume in seconds"] is None
    doubtful, against, marked = named(0.1)
    assert doubtful == [
        "scan 0.300 and the best other, ddpm 0.280, cannot be told apart (95 % interval of the "
        "difference: -0.080 to +0.120)."
    ]
    assert against == ["No method is better than the baseline atlas in voxel AP beyond doubt."]
    assert marked["voxel AP"] is None
    assert (
        "whether scan is better than one is not known"
        in against_baselines([result("scan", 0.3)])[0]
    )
    few = [result("scan", 0.3), result("atlas", 0.2)]
    assert "too few patients" in against_baselines(few)[0]


@pytest.fixture(scope="module")
def browser():
    """One Chromium for the file."""
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


def opened(browser, path, *, width=1300, scheme="light"):
    """A page without a network, and what it complained of or asked for."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    shown, said = context.new_page(), []
    shown.on("console", lambda m: said.append(m.text))
    shown.on("pageerror", lambda e: said.append(str(e)))
    shown.on("request", lambda r: said.append(r.url) if r.url[:5] != "data:" else None)
    shown.goto(path.as_uri())
    assert said.pop(0) == path.as_uri()
    return shown, said


# Every frame that scrolls says so, and no other.
HINTED = """[...document.querySelectorAll(".scroll")].every(
  (f) => (f.scrollWidth > f.clientWidth + 1) === f.classList.contains("wide"))"""
# Elements that stick out of the page or of their own frame without a way to scroll there, and
# text whose contrast with what is behind it is below 4.5.
CLIPPED = """() => [...document.querySelectorAll("body *")].filter((e) => {
  const frame = e.closest(".scroll");
  const box = e.getBoundingClientRect();
  if (!frame) return box.width && box.right > innerWidth + 1 && !e.classList.contains("skip");
  return frame.scrollWidth > frame.clientWidth + 1 && (
    getComputedStyle(frame).overflowX !== "auto" || !frame.classList.contains("wide"));
}).map((e) => e.outerHTML.slice(0, 80))"""
FAINT = """() => {
  const light = (c) => {
    const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(c)) return c;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("body *")].filter((e) =>
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) &&
    e.getClientRects().length && !["SCRIPT", "STYLE", "OPTION"].includes(e.tagName)
  ).filter((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((e) => e.outerHTML.slice(0, 80));
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 700])
def test_nothing_is_clipped_or_faint(browser, page, tmp_path, width, scheme):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    shown, said = opened(browser, path, width=width, scheme=scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    shown.wait_for_function(HINTED)
    assert shown.evaluate(CLIPPED) == []
    assert shown.evaluate(FAINT) == []
    dark = (
        shown.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    )
    assert dark == (scheme == "dark")
    # the first column stays where it is when a wide table is scrolled
    frame = shown.locator(".scroll").first
    frame.evaluate("(f) => { f.scrollLeft = 1e6 }")
    head = frame.locator("tbody th").first
    assert head.bounding_box()["x"] == pytest.approx(frame.bounding_box()["x"], abs=2)
    assert said == []


@pytest.mark.slow
def test_the_list_sorts_and_filters(browser, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    shown, said = opened(browser, path)
    rows = shown.locator(".case-list tbody tr")

    def order():
        return shown.evaluate(
            "[...document.querySelectorAll('.case-list tbody tr')].filter((r) => !r.hidden)"
            ".map((r) => r.querySelector('bdi').textContent)"
        )

    assert order() == NAMES
    head = shown.locator(".case-list thead button")
    head.nth(2).click()  # voxel AP: .9, .5, none, .1, .95
    assert order() == ["sub-10", NASTY, "sub-02", "患者", "حالة"]
    head.nth(2).press("Enter")  # what is missing stays last
    assert order() == ["患者", "sub-02", NASTY, "sub-10", "حالة"]
    assert shown.locator("th[aria-sort=descending]").count() == 1
    head.nth(0).click()  # numbers in names by size
    assert order().index("sub-02") < order().index("sub-10")
    shown.get_by_label("Find a case").fill("SUB-")
    assert set(order()) == {"sub-02", "sub-10"}
    assert shown.locator("[data-shown]").inner_text() == "2 of 5 cases"
    shown.get_by_label("kind").select_option("healthy")
    assert order() == ["sub-10"]
    shown.get_by_label("Find a case").fill("")
    assert set(order()) == {NASTY, "sub-10"}
    assert rows.count() == 5
    assert said == []


@pytest.mark.slow
def test_print_opens_everything_and_leaves_controls_out(browser, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    shown, said = opened(browser, path, scheme="dark")
    assert shown.locator("details pre").is_visible() is False
    assert len(shown.pdf()) > 20_000
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    shown.emulate_media(media="print", color_scheme="light")
    assert shown.locator("details pre").is_visible()
    assert shown.locator(".filters").is_visible() is False
    assert shown.locator("nav.contents").is_visible() is False
    shown.evaluate("dispatchEvent(new Event('afterprint'))")
    assert shown.locator("details pre").is_visible() is False
    assert said == []


@pytest.mark.slow
def test_an_index_of_500_cases_is_small_and_opens_at_once(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(index([f"sub-{n:04d}" for n in range(500)]), encoding="utf-8")
    assert path.stat().st_size < 30e6
    shown, said = opened(browser, path)
    timing = "performance.getEntriesByType('navigation')[0]"
    assert shown.evaluate(f"{timing}.domContentLoadedEventEnd - {timing}.startTime") < 3000
    assert shown.locator("[data-shown]").inner_text() == "500 of 500 cases"
    assert said == []
