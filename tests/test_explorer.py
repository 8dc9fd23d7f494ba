"""The page of linked surfaces: what it holds, what it refuses, and what it does in a browser."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bayesmerge as bm
from bayesmerge.previews import explorer
from bayesmerge.previews.explorer import explore

pytest.importorskip("plotly")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome")
NASTY = "</script><b>'\"&é😀\\\n\u2028<!--"


def surface(weights, tasks, shift=0.0, metrics=("first", "second")):
    """A smooth peak for each metric, moved by `shift`."""
    values = {}
    for m, name in enumerate(metrics):
        peak = np.full(weights.shape[1], (0.6 - 0.3 * m) / weights.shape[1])
        peak[m % len(peak)] += 0.4 + shift
        values[name] = 0.95 - 0.3 * ((weights - peak) ** 2).sum(1)
    return bm.Preview(values, weights, tasks)


def two_surfaces(num_tasks=3, spacing=0.1, weights=None):
    tasks = tuple("abcdefg"[:num_tasks])
    weights = bm.simplex_grid(num_tasks, spacing) if weights is None else weights
    return {
        "isotropic": surface(weights, tasks, 0.2),
        "joint": surface(weights, tasks),
    }


def data_of(page):
    text = page.read_text("utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(data)


def test_the_page_holds_the_surfaces(tmp_path):
    surfaces = two_surfaces()
    page = explore(
        surfaces, tmp_path / "page.html", reference="joint", metric="second", title="Digits"
    )
    data, first = data_of(page), surfaces["isotropic"]
    assert page == tmp_path / "page.html"
    assert data["title"] == "Digits"
    assert data["tasks"] == ["a", "b", "c"]
    assert data["kind"] == "triangle"
    assert data["metrics"] == ["first", "second"]
    assert data["first"] == 1
    assert data["higherIsBetter"] is True
    assert data["reference"] == 1
    assert data["spacing"] == pytest.approx(0.1)
    np.testing.assert_array_equal(data["weights"], first.weights)
    for (name, expected), found in zip(surfaces.items(), data["surfaces"], strict=True):
        assert found["name"] == name
        np.testing.assert_array_equal(found["values"], list(expected.metrics.values()))
    corners = [data["points"][row] for row in first.weights.argmax(0)]
    np.testing.assert_allclose(corners, [[0, 0], [1, 0], [0.5, 3**0.5 / 2]], atol=1e-15)


def test_metrics_are_matched_by_name(tmp_path):
    alpha = bm.simplex_grid(2, 0.5)
    values = {"x": np.array([1.0, 2.0, 3.0]), "y": np.array([4.0, 5.0, 6.0])}
    turned = dict(reversed(values.items()))
    surfaces = {
        name: bm.Preview(m, alpha, ("a", "b")) for name, m in (("p", values), ("q", turned))
    }
    p, q = data_of(explore(surfaces, tmp_path / "page.html"))["surfaces"]
    assert p["values"] == q["values"] == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        (bm.simplex_grid(1, 1.0), "weights"),
        (bm.simplex_grid(2, 0.25), "curve"),
        (bm.simplex_grid(3, 0.25), "triangle"),
        (bm.simplex_grid(4, 0.25), "weights"),
        (2 * bm.simplex_grid(3, 0.25), "weights"),
        (np.array([[0.2, 0.4, 0.4], [0.6, 0.2, 0.2]]), "weights"),
    ],
    ids=["1", "2", "3", "4", "off-the-simplex", "on-a-line"],
)
def test_the_picture_suits_the_weights(weights, kind, tmp_path):
    surfaces = two_surfaces(weights.shape[1], weights=weights)
    assert data_of(explore(surfaces, tmp_path / "page.html"))["kind"] == kind


def test_what_is_not_a_number_is_empty(tmp_path):
    values = np.array([np.nan, 0.5, np.inf])
    with pytest.warns(UserWarning, match="NaN at 1 of 3"):
        seen = bm.Preview({"x": values}, bm.simplex_grid(2, 0.5), ("a", "b"))
    data = data_of(explore({"p": seen}, tmp_path / "page.html"))
    assert data["surfaces"][0]["values"] == [[None, 0.5, None]]


def test_names_cannot_end_the_script(tmp_path):
    tasks = (NASTY, "@DATA@@PLOTLY@", "c")
    alpha = bm.simplex_grid(3, 0.5)
    seen = surface(alpha, tasks, metrics=(NASTY, "__proto__"))
    plain = explore(two_surfaces(spacing=0.5), tmp_path / "plain.html").read_text("utf-8")
    page = explore({NASTY: seen}, tmp_path / "page.html", reference=NASTY, title=NASTY)
    text = page.read_text("utf-8")
    for tag in ("<script", "</script", "<!--", "<b>"):
        assert text.lower().count(tag) == plain.lower().count(tag)
    data = data_of(page)
    assert data["tasks"] == list(tasks)
    assert data["metrics"] == [NASTY, "__proto__"]
    assert data["title"] == data["surfaces"][0]["name"] == NASTY


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    text = explore(two_surfaces(), tmp_path / "page.html").read_text("utf-8")
    assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=", text[:20_000])
    assert "default-src 'none'" in text
    template = Path(explorer.__file__).with_suffix(".html").read_text("utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'`]+", template))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert 4e6 < len(text) < 7e6


def other(change):
    """Two surfaces of which the second differs as told."""
    surfaces = two_surfaces()
    first, alpha, tasks = surfaces["joint"], surfaces["joint"].weights, surfaces["joint"].tasks
    changed = {
        "tasks": lambda: bm.Preview(first.metrics, alpha, ("a", "b", "d")),
        "number": lambda: surface(bm.simplex_grid(3, 0.25), tasks),
        "weights": lambda: bm.Preview(first.metrics, alpha[::-1], tasks),
        "better": lambda: bm.Preview(first.metrics, alpha, tasks, higher_is_better=False),
        "metrics": lambda: surface(alpha, tasks, metrics=("first", "third")),
    }[change]()
    return surfaces | {"joint": changed}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tasks", r"different tasks, \('a', 'b', 'c'\) and \('a', 'b', 'd'\)"),
        ("number", "different weights, 66 and 15 of them"),
        ("weights", r"different weights, \[0.0, 0.0, 1.0\] and \[1.0, 0.0, 0.0\]"),
        ("better", "different higher_is_better, True and False"),
        ("metrics", r"different metrics, \('first', 'second'\) and \('first', 'third'\)"),
    ],
)
def test_surfaces_that_do_not_compare(change, message, tmp_path):
    with pytest.raises(ValueError, match="surfaces 'isotropic' and 'joint' have " + message):
        explore(other(change), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_arguments_that_cannot_be(tmp_path):
    surfaces = two_surfaces()
    with pytest.raises(ValueError, match="surfaces is empty: give at least one"):
        explore({}, tmp_path / "page.html")
    with pytest.raises(ValueError, match="reference is 'full', which is none of the surfaces"):
        explore(surfaces, tmp_path / "page.html", reference="full")
    with pytest.raises(ValueError, match="metric is 'worst', which is none of the metrics"):
        explore(surfaces, tmp_path / "page.html", metric="worst")
    with pytest.raises(ValueError, match=r"page.pdf', and .* let it end in .html, as .*page.html'"):
        explore(surfaces, tmp_path / "page.pdf")
    with pytest.raises(ValueError, match=r"there is no folder '.*nowhere': make it first"):
        explore(surfaces, tmp_path / "nowhere" / "page.html")
    assert not list(tmp_path.iterdir())


def test_without_plotly(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match=r"pip install 'bayesmerge\[explorer\]'"):
        explore(two_surfaces(), tmp_path / "page.html")


def test_the_page_is_whole_or_as_it_was(tmp_path, monkeypatch):
    page = explore(two_surfaces(2), tmp_path / "page.html")
    before = page.read_bytes()

    def interrupted(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            explore(two_surfaces(3), page)
    assert page.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    explore(two_surfaces(3), str(page))
    assert data_of(page)["kind"] == "triangle"


PLAY = """
<pre id="result"></pre>
<script>
const seen = { errors: [], copied: [] };
addEventListener("error", (event) => seen.errors.push(event.message));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.errors.push(event.blockedURI));
const boxes = [...document.querySelectorAll(".plot-box")];
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const texts = (selector) => [...document.querySelectorAll(selector)].map((n) => n.textContent);
const cells = (id) => [...document.querySelectorAll(`${id} tr`)].map(
  (line) => [...line.cells].map((cell) => cell.textContent));
const look = () => ({
  weights: document.getElementById("python").value,
  here: cells("#here"),
  rings: [...document.querySelectorAll(".ring")].map((ring) => {
    const { x, y, width } = ring.getBoundingClientRect();
    const box = ring.parentNode.getBoundingClientRect();
    return [(x + width / 2 - box.x) / box.width, (y + width / 2 - box.y) / box.height];
  }),
  sliders: texts(".slider output"),
});
function point(type, panel, x, y, buttons = 0) {
  const box = boxes[panel].getBoundingClientRect();
  const at = [box.x + x * box.width, box.y + y * box.height];
  const target = type === "pointerleave" ? boxes[panel] : document.elementFromPoint(...at);
  target.dispatchEvent(new PointerEvent(type, {
    clientX: at[0], clientY: at[1], buttons, bubbles: type !== "pointerleave", pointerId: 1 }));
}
async function play() {
  boxes.forEach((box) => { box.setPointerCapture = undefined; });
  await pause(100);
  seen.bold = document.querySelectorAll("b").length;
  seen.options = texts("#metric option");
  seen.start = look();
  seen.best = cells("#best");
  seen.drawn = boxes.map((box) => box.firstChild.data.map(
    ({ x, y, marker }) => ({ x, y, color: marker?.color, size: marker?.size })));
  boxes[0].scrollIntoView({ block: "center" });
  point("pointermove", 0, X, Y);
  seen.pointed = look();
  point("pointerleave", 0, X, Y);
  seen.left = look();
  const last = boxes.length - 1;
  boxes[last].scrollIntoView({ block: "center" });
  point("pointerdown", last, 0.5, 0.5, 1);
  point("pointermove", last, X, Y, 1);
  point("pointerup", last, X, Y);
  point("pointerleave", last, X, Y);
  seen.dragged = look();
  const sliders = [...document.querySelectorAll(".slider input")];
  const slide = (t, value) => {
    sliders[t].value = value;
    sliders[t].dispatchEvent(new Event("input", { bubbles: true }));
  };
  slide(0, sliders[0].max);
  seen.slid = look();
  slide(0, 4);
  seen.back = look();
  const button = document.getElementById("copy");
  Object.defineProperty(navigator, "clipboard", { configurable: true,
    value: { writeText: async (text) => { seen.copied.push(text); } } });
  button.click();
  await pause(20);
  navigator.clipboard.writeText = async () => { throw new Error("not allowed"); };
  document.execCommand = (command) => {
    seen.copied.push([command, getSelection().toString()]);
    return true;
  };
  button.click();
  await pause(20);
  seen.status = document.getElementById("copied").textContent;
  const metric = document.getElementById("metric");
  metric.value = metric.options.length - 1;
  metric.dispatchEvent(new Event("change"));
  seen.bestOfLast = cells("#best");
  document.querySelector("#best button").click();
  seen.shown = look();
}
play().catch((error) => seen.errors.push(error.stack)).finally(() => {
  document.getElementById("result").textContent = JSON.stringify(seen);
});
</script>
</body>
"""


def played(page, x, y):
    """What a browser shows after pointing, dragging, sliding and copying."""
    copy = page.with_name("played.html")
    errors = "<script>addEventListener('error', (e) => (window.early ??= []).push(e.message));"
    text = page.read_text("utf-8").replace("<head>", f"<head>{errors}</script>", 1)
    script = PLAY.replace("X, Y", f"{x}, {y}").replace("errors: []", "errors: window.early ?? []")
    copy.write_text("".join((*text.rpartition("</body>")[:1], script, "</html>")), "utf-8")
    done = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            f"--user-data-dir={page.parent / 'profile'}",
            "--window-size=1400,1000",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=8000",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (found,) = re.findall(r'<pre id="result">(\{.*?\})</pre>', done.stdout, re.S)
    return json.loads(html.unescape(found))


def weights_in(seen):
    """The Python text, run."""
    space = {}
    exec(seen["weights"], space)
    return space["weights"]


def assert_shows(seen, surfaces, expected):
    """The expected weighting, its sliders and its metrics are what is on the page."""
    first = next(iter(surfaces.values()))
    assert weights_in(seen) == dict(zip(first.tasks, expected, strict=True))
    assert [float(x) for x in seen["sliders"]] == list(expected)
    (row,) = np.flatnonzero(np.abs(first.weights - expected).max(1) < 1e-9)
    worst = np.min if first.higher_is_better else np.max
    lines = {
        "mean of all": lambda s: s.values(),
        "worst": lambda s: worst(list(s.metrics.values()), axis=0),
        "first": lambda s: s.values("first"),
        "second": lambda s: s.values("second"),
    }
    for (name, *found), (line, values) in zip(seen["here"][1:], lines.items(), strict=True):
        assert name == line
        numbers = [float(x.replace("–", "nan")) for x in found]
        np.testing.assert_allclose(numbers, [values(s)[row] for s in surfaces.values()], atol=6e-4)


def assert_best(table, surfaces, metric):
    """Each surface's best weighting and value, the reference's there, and the regret."""
    joint = surfaces["joint"]
    for (_, *cells), surface in zip(table[1:], surfaces.values(), strict=True):
        *weights, value, there, regret = map(float, cells[:-1])
        best = surface.best(metric)
        assert weights == list(best.weights.values())
        expected = best.value, joint.values(metric)[best.row], surface.compare(joint, metric).regret
        np.testing.assert_allclose([value, there, regret], expected, atol=6e-4)


def assert_copied_and_shown(seen, surfaces, metric=None):
    """Both ways to copy, the tables of the best, and the button that goes there."""
    isotropic = surfaces["isotropic"]
    assert seen["errors"] == []
    assert seen["options"] == ["mean of all", "worst", "first", "second"]
    start = tuple(isotropic.best(metric).weights.values())
    assert_shows(seen["start"], surfaces, start)
    assert_shows(seen["left"], surfaces, start)
    assert seen["copied"] == [seen["back"]["weights"], ["copy", seen["back"]["weights"]]]
    assert seen["status"] == "Copied."
    assert_best(seen["best"], surfaces, metric)
    assert_best(seen["bestOfLast"], surfaces, "second")
    assert_shows(seen["shown"], surfaces, tuple(isotropic.best("second").weights.values()))


@needs_browser
def test_triangles_in_a_browser(tmp_path):
    tasks, missing = (NASTY, "b", "c"), (1.0, 0.0, 0.0)
    alpha = bm.simplex_grid(3, 0.1)
    joint = surface(alpha, tasks)
    found = dict(surface(alpha, tasks, 0.2).metrics)
    found["second"] = np.where((alpha == missing).all(1), np.nan, found["second"])
    with pytest.warns(UserWarning, match="NaN at 1 of 66"):
        isotropic = bm.Preview(found, alpha, tasks)
    surfaces = {"isotropic": isotropic, "joint": joint}
    page = explore(surfaces, tmp_path / "page.html", reference="joint", title=NASTY)
    pad, floor, height = 0.126, 0.068, 3**0.5 / 2
    x, y = (0.5 + 0.01 + pad) / (1 + 2 * pad), (height * 0.6 + pad) / (height + pad + floor)
    seen = played(page, x, y)
    assert_copied_and_shown(seen, surfaces)
    assert seen["bold"] == 0
    assert_shows(seen["pointed"], surfaces, (0.3, 0.3, 0.4))
    assert_shows(seen["dragged"], surfaces, (0.3, 0.3, 0.4))
    assert_shows(seen["slid"], surfaces, missing)
    assert_shows(seen["back"], surfaces, (0.4, 0.3, 0.3))
    for (_, cells, empty, star), each in zip(seen["drawn"], surfaces.values(), strict=True):
        known = np.isfinite(each.values())
        assert cells["color"] == pytest.approx(each.values()[known].tolist(), rel=1e-14)
        assert len(empty["x"]) == (~known).sum()
        best = each.weights[each.best().row]
        assert star["x"] == pytest.approx([best[1] + best[2] / 2])
        assert star["y"] == pytest.approx([best[2] * height])
    for moment in ("start", "pointed", "dragged", "slid"):
        one, other = seen[moment]["rings"]
        assert one == pytest.approx(other, abs=2e-3)
    assert seen["pointed"]["rings"][0] == pytest.approx([x, y], abs=0.02)


@needs_browser
def test_curves_of_losses_in_a_browser(tmp_path):
    surfaces = {
        name: bm.Preview({m: 1 - x for m, x in s.metrics.items()}, s.weights, s.tasks, False)
        for name, s in two_surfaces(2).items()
    }
    page = explore(surfaces, tmp_path / "page.html", reference="joint")
    seen = played(page, 0.55, 0.4)
    assert_copied_and_shown(seen, surfaces)
    assert_shows(seen["pointed"], surfaces, (0.5, 0.5))
    assert_shows(seen["dragged"], surfaces, (0.5, 0.5))
    assert_shows(seen["slid"], surfaces, (1.0, 0.0))
    assert_shows(seen["back"], surfaces, (0.4, 0.6))
    for drawn, each in zip(seen["drawn"][0], surfaces.values(), strict=False):
        assert drawn["x"] == each.weights[:, 0].tolist()
        assert drawn["y"] == pytest.approx(each.values().tolist(), rel=1e-14)


@needs_browser
def test_four_tasks_in_a_browser(tmp_path):
    surfaces = two_surfaces(4)
    x, y = 0.5, 0.3
    page = explore(surfaces, tmp_path / "page.html", reference="joint", metric="second")
    seen = played(page, x, y)
    assert_copied_and_shown(seen, surfaces, "second")
    for moment, panel in (("pointed", 0), ("dragged", 3)):
        shown = seen[moment]
        assert_shows(shown, surfaces, tuple(weights_in(shown).values()))
        rings = np.array(shown["rings"]).reshape(4, 2, 2)
        assert np.abs(rings[panel] - [x, y]).max(1).min() < 0.06
        assert shown["weights"] != seen["start"]["weights"]
    assert_shows(seen["slid"], surfaces, (1.0, 0.0, 0.0, 0.0))
    assert weights_in(seen["back"])["a"] == 0.4
