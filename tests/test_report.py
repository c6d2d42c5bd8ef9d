"""The report is one file, opens without a network, and says what the numbers say."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from volumediff.evaluation.figures import MEASURES
from volumediff.evaluation.localization import MethodResult
from volumediff.evaluation.summary import verdicts
from volumediff.metrics.bootstrap import Interval
from volumediff.reporting.report import Page, write_report
from volumediff.reporting.timeline import TimelineEntry
from volumediff.reporting.views import CaseView, limits, packed, picture, scaled, thinned

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
    assert script
    assert style
    for name, texts in (("script-src", script), ("style-src", style)):
        hashes = [hashlib.sha256(text.encode()).digest() for text in texts]
        allowed = " ".join(f"'sha256-{base64.b64encode(h).decode()}'" for h in hashes)
        assert rules[name] == allowed
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


def test_findings_steps_and_uncertainty_are_in_the_page(tmp_path):
    write_report(tmp_path / "r.html", Page("T", [], [], [view("first"), told("second")], {}))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    ((_, described),) = blocks(page, "application/json")
    first, second = json.loads(described)
    assert first["maps"] == ["scan", "atlas"]
    assert second["maps"] == ["scan", "atlas", "uncertainty"]
    layer = dict(blocks(page, "text/plain"))[second["layers"]["found"]]
    volume = np.frombuffer(gzip.decompress(base64.b64decode(layer)), np.uint8)
    np.testing.assert_array_equal(volume.reshape(6, 8, 10), told().found)
    assert second["affine"] == told().affine.tolist()
    rows = re.findall(r'<tr data-view="1" data-at="([^"]*)"', page)
    assert rows == ["2 3 2"] * 12
    assert "2 more are in the file" in page
    assert "left · middle · superior" in page
    assert "darker (-12%)" in page
    assert page.count("<figure>") == 3  # two cases, one of them with steps
    assert "<script>alert" not in page
    assert not re.findall(r"\son\w+=|style=", page)


def test_a_picture_shows_what_there_is():
    assert picture(view()) != picture(told())
    assert picture(told()) == picture(told())
    less = replace(view(), healthy=None)
    assert picture(less).startswith(b"\x89PNG")


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


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_viewer_runs_in_a_browser(html, tmp_path):
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
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
