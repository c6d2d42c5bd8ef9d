"""The report is one file, opens without a network, and says what the numbers say."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from volumediff.inference.evaluation import MethodResult
from volumediff.inference.report import Page, write_report
from volumediff.inference.statistics import MEASURES
from volumediff.inference.summary import group_table, measure_table, verdicts
from volumediff.inference.views import View, limits, packed, picture, scaled, thinned
from volumediff.metrics.bootstrap import Interval

NASTY = "</script><script>alert(1)</script>&'\""


def interval(value):
    return Interval(value, value - 0.01, value + 0.01, 0.95, 100)


def result(name, overall, **groups):
    measures = {m: interval(float("nan")) for m in MEASURES}
    measures["voxel_ap"] = measures["voxel_ap_by_group"] = interval(overall)
    measures["false_positives"] = interval(10 * overall)
    inner = {g: {"voxel_ap": interval(v)} for g, v in groups.items()}
    return MethodResult(name, Path(name), measures, inner, [], {})


def view(title="case"):
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 100, (6, 8, 10)).astype(np.float32)
    truth = np.zeros(image.shape, bool)
    truth[1:4, 2:5, 3:8] = True
    maps = {"scan": rng.normal(size=image.shape).astype(np.float32), "atlas": image / 7}
    return View(title, "a note", image, maps, truth, image[::-1].copy(), (3.0, 2.0, 1.0))


@pytest.fixture
def html(tmp_path):
    path = tmp_path / "report.html"
    page = Page(
        title=f"Title {NASTY}",
        lead=["A paragraph."],
        results=[
            result("scan", 0.3, hyper=0.5, hypo=0.1),
            result("atlas", 0.2, hyper=0.2, hypo=0.2),
        ],
        views=[view(f"case {NASTY}"), view("other")],
        manifest={"settings": {NASTY: float("nan")}},
    )
    write_report(path, page)
    return path.read_text(encoding="utf-8")


def blocks(html, kind):
    return re.findall(rf'<script type="{kind}" id="([^"]*)">(.*?)</script>', html, re.DOTALL)


def test_the_page_loads_nothing(html):
    assert not re.findall(
        r"https?://|//[a-z]+\.[a-z]|@import|url\(|\bfetch\b|XMLHttp|WebSocket", html
    )
    assert not re.findall(r"<(?:link|iframe|object|embed|base|form)\b", html)
    assert all(s.startswith("data:image/png;base64,") for s in re.findall(r'src="([^"]*)"', html))
    assert not re.findall(r"\son\w+=|style=", html)  # the policy would refuse both


def test_the_policy_allows_the_page_and_nothing_else(html):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(script) == len(style) == 1
    for name, text in (("script-src", script[0]), ("style-src", style[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert "unsafe" not in policy


def test_hostile_names_stay_text(html):
    assert "<script>alert" not in html
    ((_, described),) = blocks(html, "application/json")
    assert json.loads(described)[0]["title"] == f"case {NASTY}"


def test_layers_are_the_volumes(html):
    original = view()
    ((_, described),) = blocks(html, "application/json")
    first = json.loads(described)[0]
    layers = dict(blocks(html, "text/plain"))
    volume = {
        name: np.frombuffer(gzip.decompress(base64.b64decode(layers[id_])), np.uint8).reshape(
            first["shape"]
        )
        for name, id_ in first["layers"].items()
    }
    np.testing.assert_array_equal(volume["truth"], original.truth)
    low, high = first["low"]["scan"], first["high"]["scan"]
    shown = low + volume["scan"] / 255 * (high - low)
    np.testing.assert_allclose(
        shown, np.clip(original.maps["scan"], low, high), atol=(high - low) / 509
    )
    assert first["spacing"] == [3, 2, 1]
    assert original.truth[tuple(first["start"])]
    assert first["maps"] == ["scan", "atlas"]


def test_large_volumes_are_thinned_out():
    big = np.zeros((130, 128, 300), np.uint8)
    assert thinned(big).shape == (65, 128, 100)
    assert gzip.decompress(base64.b64decode(packed(big))) == big.tobytes()
    np.testing.assert_array_equal(scaled(np.array([-1.0, 0, 1, 2]), 0.0, 2.0), [0, 0, 128, 255])
    assert limits(np.array([0.0, 0.0, 5.0, 5.0])) == (0.0, 5.0)


def test_pictures_are_png_and_repeatable():
    png = picture(view())
    assert png.startswith(b"\x89PNG")
    assert png == picture(view())


def test_it_says_where_a_baseline_is_better(html):
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
    assert "hypo: atlas is better than scan, 0.200 against 0.100." in html
    assert "not for diagnosis" in html


def test_the_best_figure_is_marked_and_lower_can_be_better():
    results = [result("scan", 0.3, a=0.5), result("atlas", 0.2, a=0.7)]
    rows, best = measure_table(results)
    marked = dict(zip([name for name, _ in rows], best, strict=True))
    assert marked["voxel AP"] == 0.3
    assert marked["false positives per volume"] == 2.0
    columns, _, tops = group_table(results)
    assert dict(zip(columns, tops, strict=True)) == {"a": 0.7, "mean": 0.3}


def test_a_page_without_cases_has_no_script(tmp_path):
    write_report(tmp_path / "r.html", Page("T", [], [result("scan", 0.3)], [], {}))
    assert "<script" not in (tmp_path / "r.html").read_text()


def test_the_wheel_carries_script_and_style():
    root = Path(__file__).parents[1]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = data["package-data"]["volumediff.inference"]
    files = {p.name for pattern in patterns for p in (root / "volumediff/inference").glob(pattern)}
    assert {"report.css", "report.js"} <= files


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_viewer_runs_in_a_browser(html, tmp_path):
    (tmp_path / "page.html").write_text(html)
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", "--enable-logging=stderr"]
    shown = subprocess.run(
        [CHROMIUM, *words, (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert re.search(r'data-id="read">voxel \d+, \d+, \d+ · scan', shown.stdout)
    assert "inside the lesion" in shown.stdout
    assert "Content Security Policy" not in shown.stderr
