"""The page in a real browser: every plot and table is there, sorts, hovers, and runs nothing that a label brings."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments import tradeoff
from experiments.curves.measures import COSTS, QUALITY, lower_is_better, measured, pareto
from experiments.curves.runs import Curve
from experiments.reports import page, published

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "</script><script>complain('ran')</script><img src=x onerror=complain('ran')>&amp; {{script}}"
MEASURES = ("valid_loss", "phone_accuracy")
VOID = ("meta", "link", "br", "hr", "img", "input")


def row(name, time, loss, **more):
    return {
        "name": name,
        "parameters": 5_000_000 * time,
        "nonzero": 4_000_000 * time,
        "macs_g_per_s": time,
        "nominal_macs_g_per_s": 0.5 * time,
        "bytes": 20_000_000 * time,
        "speedup": 1 / time,
        "speedup_low": 0.9 / time,
        "speedup_high": 1.1 / time,
        "valid_loss": loss,
        "valid_loss_low": loss - 0.1,
        "valid_loss_high": loss + 0.1,
        **more,
    }


ROWS = {
    HOSTILE: (
        row("dense", 1.0, 2.0, phone_accuracy=0.6, phone_low=0.5, phone_high=0.7),
        row("heads-10", 0.9, 2.1, phone_accuracy=0.61, control_loss=1.9),
        row("heads-9", 0.8, 2.5, phone_accuracy=float("nan"), control_loss=1.8),
    ),
    "rows": (row("dense", 1.0, 2.0, memory_bytes=9e6), row("rows-5", 0.7, 2.2, memory_bytes=1e7)),
}


def curve(label, rows):
    machine = {"device": "cpu", "cores": 2}
    return Curve(Path("runs"), "heads", label, "mini", machine, (f"note of {label}",), rows, True, None, f"run {label}")


CURVES = [curve(label, rows) for label, rows in ROWS.items()]


class Element(HTMLParser):
    """A tree of what the browser had when its scripts were done."""

    def __init__(self, tag="", attributes=()):
        super().__init__()
        self.tag, self.attributes, self.children = tag, dict(attributes), []
        self.open = [self]

    def handle_starttag(self, tag, attrs):
        new = Element(tag, attrs)
        self.open[-1].children.append(new)
        if tag not in VOID:
            self.open.append(new)

    def handle_endtag(self, tag):
        if any(each.tag == tag for each in self.open[1:]):
            while self.open.pop().tag != tag:
                pass

    def handle_data(self, data):
        self.open[-1].children.append(data)

    @property
    def text(self):
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def find(self, tag=None, **wanted):
        """All elements within of a tag and attributes; `kind` is one of the classes."""
        kind = wanted.pop("kind", None)
        wanted = {name.replace("_", "-"): value for name, value in wanted.items()}
        found = []
        for child in (c for c in self.children if not isinstance(c, str)):
            a = child.attributes
            right = tag in (None, child.tag) and all(a.get(name) == value for name, value in wanted.items())
            found += [child] if right and (kind is None or kind in (a.get("class") or "").split()) else []
            found += child.find(tag, **({} if kind is None else {"kind": kind}), **wanted)
        return found


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("JAXSSL_REQUIRE_BROWSER"):
        pytest.fail(f"JAXSSL_REQUIRE_BROWSER is set and none of {', '.join(BROWSERS)} is on PATH")
    return found or pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is on PATH")


@pytest.fixture(scope="module")
def text():
    table = [r for key in MEASURES for r in tradeoff.at_equal_time(CURVES, (0.9, 0.75), key)]
    return page.write(CURVES, table, measures=MEASURES, title=HOSTILE, notes=["a note"], command="how")


@pytest.fixture(scope="module")
def look(browser, text, tmp_path_factory):
    """Open the page with a fragment, after further scripts or other changes; return the tree."""
    folder = tmp_path_factory.mktemp("page")

    def look(fragment="", *, script="", change=lambda text: text):
        (folder / "page.html").write_text(change(text).replace("</body>", f"<script>{script}</script></body>"))
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
        words += [f"--user-data-dir={folder}/profile", "--enable-logging=stderr", "--window-size=1200,900"]
        words += ["--no-first-run", "--disable-extensions", "--disable-background-networking"]
        url = f"file://{folder}/page.html{fragment}"
        done = subprocess.run([browser, *words, url], capture_output=True, encoding="utf-8", timeout=120, check=True)
        tree = Element()
        tree.feed(done.stdout)
        tree.console = re.findall(r"CONSOLE.*", done.stderr)
        return tree

    return look


@pytest.fixture(scope="module")
def opened(look):
    return look()


def rows_of(tree, table):
    (found,) = tree.find("table", data_table=table)
    return [[cell.text for cell in line.children] for line in found.find("tbody")[0].find("tr")]


def complaints(tree):
    (errors,) = tree.find("ul", id="errors")
    return [item.text for item in errors.find("li")] + tree.console


def test_every_plot_has_every_point(opened):
    assert complaints(opened) == []
    (grid,) = opened.find(id="all")
    known = [c for c in COSTS if any(c.read(row) for rows in ROWS.values() for row in rows)]
    assert [c.key for c in known] == ["time", "macs", "parameters", "bytes", "memory"]
    assert len(grid.find("svg", kind="plot")) == len(MEASURES) * len(known)
    for key in MEASURES:
        for cost in known:
            (plot,) = grid.find("svg", data_metric=key, data_cost=cost.key)
            spans = {}
            for label, rows in ROWS.items():
                both = [(cost.read(row), measured(key)(row)) for row in rows]
                spans[label] = [(x, y) for x, y in both if x and y]
                if not any(measured(key)(row) and cost.read(row) for rows in ROWS.values() for row in rows):
                    assert plot.text == "nothing to show"
                    continue
                (group,) = plot.find("g", data_run=label)
                assert len(group.find("path", kind="point")) == len(spans[label])
                assert len(group.find("line", kind="bar")) == sum(s[1] != s[2] for two in spans[label] for s in two)
                hollow = sum(y is not None for _, y in both) * (cost.key in ("parameters", "macs"))
                assert len(group.find("path", kind="hollow")) == hollow
            points = [(x[0], y[0]) for each in spans.values() for x, y in each]
            assert len(plot.find("circle", kind="ring")) == sum(pareto(points, lower=lower_is_better(key)))
            assert len(plot.find("path", kind="star")) == (key == "valid_loss" and cost.key != "memory")
    (large,) = opened.find(id="large")
    (plot,) = large.find("svg", data_metric="valid_loss", data_cost="time")
    assert len(plot.find("path", kind="point")) == 5
    names = plot.find("text", kind="name")
    assert {name.text for name in names} == {"rows", f"{HOSTILE[:30]}…"}
    one, two = (float(name.attributes["y"]) for name in names)
    assert abs(one - two) >= 14  # each on a line of its own
    (paper,) = opened.find(id="paper")
    for column in ("parameters", "macs"):
        (plot,) = paper.find("svg", data_cost=column)
        drawn = {g.attributes["data-run"]: len(g.find("path", kind="point")) for g in plot.find("g", kind="grey")}
        assert drawn == {curve.label: len(curve.points) for curve in published.CURVES}
    assert published.LABEL in opened.find(id="paper-source")[0].text


def test_every_table_has_every_row(opened):
    points = rows_of(opened, "points")
    assert [line[:2] for line in points] == [[label, row["name"]] for label, rows in ROWS.items() for row in rows]
    headings = [button.text for button in opened.find("table", data_table="points")[0].find("thead")[0].find("button")]
    first = dict(zip(headings, points[0], strict=True))
    assert (first["held-out loss (nats)"], first["parameters"]) == ("21.9–2.1", "5,000,000")
    assert first["phones by frame, accuracy"] == "0.60.5–0.7"
    assert points[2][headings.index("phones by frame, accuracy")] == "–"  # not a number
    equal = rows_of(opened, "equal")
    assert [line[1] for line in equal] == ["0.9", "0.75"] * 2
    assert equal[1][2:] == ["–", "2.1672.067–2.267", "rows"]  # with its interval
    assert len(rows_of(opened, "runs")) == 2
    assert len(rows_of(opened, "paper")) == sum(len(curve.points) for curve in published.CURVES)
    assert [item.text for item in opened.find(id="commands")[0].find("li")] == ["how", f"run {HOSTILE}", "run rows"]
    assert opened.find(id="notes")[0].text == "a note"
    told = [item.text for item in opened.find(id="told")[0].find("li")]
    assert told == [f"{label}: note of {label}" for label in ROWS]


def test_what_a_label_brings_is_text(opened):
    assert opened.find("img") == []
    assert opened.find("title")[0].text == opened.find("h1")[0].text == HOSTILE
    legend = opened.find(id="legend")[0].find("button")
    assert [button.text for button in legend] == list(ROWS)
    assert len(opened.find("script")) == 4  # what complains, the data, the program, and this test's


def test_the_difference_to_the_dense_model_comes_first_and_its_own_value_is_a_choice(look):
    ends = {"loss_difference_low": 0.05, "loss_difference_high": 0.2}
    zero = {"loss_difference": 0.0, "loss_difference_low": 0.0, "loss_difference_high": 0.0}
    rows = (row("dense", 1.0, 2.0, **zero), row("heads-9", 0.8, 1.9, loss_difference=0.1, **ends, control_loss=1.8))
    curves, measures = [curve("heads", rows)], ("loss_difference", "valid_loss")
    table = [r for key in measures for r in tradeoff.at_equal_time(curves, (0.8,), key)]
    text = page.write(curves, table, measures=measures, title="differences")
    tree = look(change=lambda _: text)
    assert complaints(tree) == []
    options = tree.find("select", id="metric")[0].find("option")
    assert [option.text for option in options] == [QUALITY[key] for key in measures]
    (plot,) = tree.find(id="large")[0].find("svg", data_metric="loss_difference")
    assert len(plot.find("line", kind="guide")) == 2  # the dense model's time, and its loss
    assert len(plot.find("path", kind="star")) == 0
    assert "0" in (ticks := [text.text for text in plot.find("text")])
    assert "-0" not in ticks
    assert [line[2:] for line in rows_of(tree, "equal")] == [["0.10.05–0.2", "heads"], ["1.91.8–2", "heads"]]
    (plot,) = look("#metric=valid_loss", change=lambda _: text).find(id="large")[0].find("svg", kind="plot")
    assert plot.attributes["data-metric"] == "valid_loss"
    assert len(plot.find("line", kind="guide")) == len(plot.find("path", kind="star")) == 1


def test_a_link_gives_a_view(look):
    tree = look("#metric=phone_accuracy&cost=bytes&hide=rows&sort-points=point.descending&sort-paper=per.ascending")
    assert complaints(tree) == []
    assert [line[1] for line in rows_of(tree, "points")] == ["heads-10", "heads-9", "dense"]  # by number, not by letter
    per = [float(line[-1]) for line in rows_of(tree, "paper")]
    assert per == sorted(p.per for c in published.CURVES for p in c.points)
    (large,) = tree.find(id="large")
    (plot,) = large.find("svg", data_metric="phone_accuracy", data_cost="bytes")
    assert len(plot.find("path", kind="point")) == 2
    assert tree.find("g", data_run="rows") == []
    assert [b.attributes["aria-pressed"] for b in tree.find(id="legend")[0].find("button")] == ["true", "false"]
    sorts = [th.attributes["aria-sort"] for th in tree.find("table", data_table="points")[0].find("th", scope="col")]
    assert sorts[1] == "descending"
    assert {*sorts[:1], *sorts[2:]} == {"none"}


def test_a_fragment_of_nonsense_is_passed_over(look):
    tree = look("#metric=x&cost=__proto__&hide=nobody&sort-points=constructor.up&sort-x=1&%%%")
    assert complaints(tree) == []
    assert len(rows_of(tree, "points")) == 5


USE = """{
  const headings = document.querySelectorAll('[data-table="points"] thead button');
  const at = [...headings].findIndex((button) => button.textContent === "parameters");
  for (let i = 0; i < 2; i++) document.querySelectorAll('[data-table="points"] thead button')[at].click();
  const add = (element, id) => document.body.appendChild(Object.assign(element, {id}));
  const note = (id, text) => add(document.createElement("pre"), id).append(text);
  note("focus", document.activeElement.textContent);
  document.querySelectorAll("#legend button")[1].click();
  document.querySelector("#cost").value = "bytes";
  document.querySelector("#cost").dispatchEvent(new Event("change"));
  const plot = document.querySelector("#large svg");
  plot.focus();
  plot.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
  note("typed", document.querySelector("#tip").textContent);
  const box = document.querySelector('#large [data-id="0.2"]').getBoundingClientRect();
  const spot = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};
  plot.dispatchEvent(new PointerEvent("pointermove", spot));
  // At once, for the scrolling that a focus brings closes the tip.
  add(document.querySelector("#tip").cloneNode(true), "seen");
  note("hot", document.querySelectorAll(".point.hot").length);
  plot.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  note("fragment", location.hash);
}"""


def test_it_sorts_hides_and_tells_by_mouse_and_keys(look):
    tree = look(script=USE)
    assert complaints(tree) == []
    assert [line[1] for line in rows_of(tree, "points")] == ["dense", "heads-10", "heads-9"]  # the other run is hidden
    assert tree.find(id="focus")[0].text == "parameters"
    assert f"{HOSTILE}: dense" in tree.find(id="typed")[0].text  # the rightmost
    assert "hidden" in tree.find(id="tip")[0].attributes
    (tip,) = tree.find(id="seen")
    assert "hidden" not in tip.attributes
    assert tip.find("strong")[0].text == f"{HOSTILE}: heads-9"
    told = dict(zip((e.text for e in tip.find("dt")), (e.text for e in tip.find("dd")), strict=True))
    assert told["held-out loss (nats)"] == "2.5 (2.4 to 2.6)"
    assert told["parameters"] == "4,000,000"
    assert "phones by frame, accuracy" not in told
    assert tree.find(id="hot")[0].text == "5"  # of its loss, in the large plot and four small ones
    fragment = tree.find(id="fragment")[0].text
    assert fragment == "#metric=valid_loss&cost=bytes&hide=rows&sort-points=parameters.descending"


def test_what_goes_wrong_is_told_on_the_page(look):
    tree = look(change=lambda text: text.replace('id="data">{', 'id="data">{,'))
    assert "JSON" in " ".join(complaints(tree))
    assert "refused" in " ".join(complaints(look(script="fetch('https://example.org')")))


def test_nothing_is_asked_of_a_network(text):
    assert set(re.findall(r"\w+://[^\s\"'<]*", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text
    assert not re.search(r"<(link|img|iframe|base)\b|@import|url\(", text.replace(HOSTILE, ""))


def test_data_are_json_that_closes_no_script():
    values = {"label": HOSTILE, "none": float("inf"), "line": "\u2028"}
    found = page.embed(values)
    assert not set("<>&") & set(found)
    assert json.loads(found) == {**values, "none": None}
