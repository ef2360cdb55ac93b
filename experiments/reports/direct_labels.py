"""Labels beside the ends of curves instead of a legend: inside the panel, clear of each other, off the curves.

Where a label goes is searched among places around the end of its curve and on a grid over the panel. Labels must not
touch each other or the frame; what they hide of curves, points and intervals, and how far they are from their end, is
what the search makes small. From a label that had to move away a thin line leads to its end.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

LETTERS = 26  # of a line
LINES = 3
GAP = 3.0  # pixels between two labels, and to the frame
NEAR = 14.0  # pixels; from farther a line leads to the end
STEP = 5.0  # pixels between two points of a curve that a label may hide
LEAD = 12  # points of a line that leads to an end
RADII = (5, 9, 14, 22, 32, 46, 64, 88, 120)
ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
HIDES, MOVES, CROSSES, CLASHES = 8.0, 0.5, 200.0, 1e5  # what a hidden point, a pixel's move and others' space cost
PASSES = 3  # each label once more, the others being where they are


@dataclass(frozen=True)
class Label:
    """What stands beside a point of a panel.

    Attributes:
        panel: that it belongs to.
        text: one line; long ones are broken.
        colour: of the curve.
        end: the point, in data.
        leads: whether a line may lead to it from afar.
        others: further points that the label may stand beside instead.
    """

    panel: Any
    text: str
    colour: str
    end: tuple[float, float]
    leads: bool = True
    others: Sequence[tuple[float, float]] = ()


def write(figure: Any, labels: Sequence[Label], *, size: float) -> None:
    """Put all labels into a figure whose panels are complete, in letters of `size` pt."""
    if not labels:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # panels stay where labels were fitted into them
    for panel in dict.fromkeys(label.panel for label in labels):
        _fill(panel, [label for label in labels if label.panel is panel], size)


def broken(text: str) -> str:
    r"""Break a label into lines that fit a panel; of a very long one the middle is left out.

    >>> broken("low rank, activation-aware")
    'low rank, activation-aware'
    >>> broken("combined: 3 layers distilled, heads, rows")
    'combined: 3 layers\ndistilled, heads, rows'
    >>> broken("counting only what is not zero")
    'counting only\nwhat is not zero'
    """
    if len(text) > LETTERS * LINES:
        half = (LETTERS * LINES - 3) // 2
        text = f"{text[:half]} … {text[-half:]}"
    lines = textwrap.wrap(text, LETTERS)
    narrow = (textwrap.wrap(text, width) for width in range(max(map(len, text.split()), default=1), LETTERS))
    return "\n".join(next((found for found in narrow if len(found) == len(lines)), lines))


@dataclass(frozen=True)
class _Places:
    """Where one label may go, in pixels.

    Attributes:
        boxes: left, low, right and high of each place, (places, 4).
        leads: the line from each place to the end, (places, LEAD, 2); nowhere from places that need none.
        costs: what each place costs if there were no other labels, (places,).
    """

    boxes: np.ndarray
    leads: np.ndarray
    costs: np.ndarray

    def best(self, others: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
        """Return the place to take beside others' boxes and lines."""
        costs = self.costs.copy()
        for box, lead in others:
            costs += CLASHES * _overlap(self.boxes, box) + CROSSES * _inside(self.boxes, lead)
            costs += CROSSES * _inside(box[None], self.leads.reshape(-1, 2), of=len(costs))
        return int(np.argmin(costs))


def _fill(panel: Any, labels: Sequence[Label], size: float) -> None:
    texts = [_text(panel, label, size) for label in labels]
    hidden, frame = _drawn(panel), panel.get_window_extent()
    places = [_places(panel, label, text, hidden, frame) for label, text in zip(labels, texts, strict=True)]
    taken: dict[int, int] = {}
    for _ in range(PASSES):
        for i, each in enumerate(places):
            others = [(places[j].boxes[k], places[j].leads[k]) for j, k in taken.items() if j != i]
            taken[i] = each.best(others)
    back = panel.transData.inverted().transform
    for i, (label, text) in enumerate(zip(labels, texts, strict=True)):
        box, lead = places[i].boxes[taken[i]], places[i].leads[taken[i]]
        text.set_position(back((box[:2] + box[2:]) / 2))
        if np.isfinite(lead).all():
            x, y = back(lead[[0, -1]]).T
            panel.plot(x, y, color=label.colour, linewidth=0.6, alpha=0.7, zorder=1, scalex=False, scaley=False)


def _places(panel: Any, label: Label, text: Any, hidden: np.ndarray, frame: Any) -> _Places:
    extent = text.get_window_extent()
    found = []
    for end in panel.transData.transform(np.array([label.end, *label.others])):
        boxes = _choices(end, (extent.width, extent.height), frame)
        near = np.clip(end, boxes[:, :2], boxes[:, 2:])
        far = np.hypot(*(near - end).T)
        lines = near[:, None] + np.linspace(0, 1, LEAD)[:, None] * (end - near)[:, None]
        lines[far <= NEAR if label.leads else slice(None)] = np.inf
        costs = HIDES * _inside(boxes, hidden) + MOVES * (1 if label.leads else 4) * far
        found.append((boxes, lines, costs))
    return _Places(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _text(panel: Any, label: Label, size: float) -> Any:
    style = {"ha": "center", "va": "center", "linespacing": 1.0, "zorder": 6}
    text = panel.text(*label.end, broken(label.text), fontsize=size, color=label.colour, **style)
    text.set_in_layout(False)
    return text


def _drawn(panel: Any) -> np.ndarray:
    """Return pixels that a label would hide: along curves and intervals, and around points, (pixels, 2)."""
    found = [np.zeros((0, 2))]
    for line in panel.lines:
        points = line.get_transform().transform(line.get_xydata())
        points = points[np.isfinite(points).all(1)]
        if line.get_linestyle() not in ("None", "", " "):
            found += [_along(a, b) for a, b in pairwise(points)]
        if line.get_marker() not in ("None", "", " ", None):
            around = np.array([(x, y) for x in (-4, 0, 4) for y in (-4, 0, 4)])
            found += [point + around for point in points]
    for bars in panel.collections:
        found += [_along(*panel.transData.transform(segment))[::2] for segment in bars.get_segments()]
    return np.concatenate(found)


def _along(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    count = int(np.hypot(*(two - one)) / STEP) + 2
    return np.linspace(one, two, min(count, 2000))


def _choices(end: np.ndarray, extent: tuple[float, float], frame: Any) -> np.ndarray:
    """Return places for a label inside the frame: (left, low, right, high) of each."""
    half = np.array(extent) / 2
    around = [end + np.array([np.cos(a), np.sin(a)]) * (radius + half) for radius in RADII for a in ANGLES]
    low, high = (np.array(corner) + sign * (half + GAP) for corner, sign in ((frame.min, 1), (frame.max, -1)))
    across, up = (np.linspace(a, max(a, b), n) for a, b, n in zip(low, high, (14, 18), strict=True))
    centres = np.array([*around, *((x, y) for x in across for y in up)])
    inside = ((centres >= low - 0.5) & (centres <= np.maximum(low, high) + 0.5)).all(1)
    kept = centres[inside]
    return np.concatenate([kept - half, kept + half], axis=1)


def _inside(boxes: np.ndarray, points: np.ndarray, *, of: int = 0) -> np.ndarray:
    """Count the points that each box hides, or of how many each of `of` equal parts of the points one box hides."""
    x, y = points.T
    left, low, right, high = (side[:, None] for side in boxes.T)
    hides = (x > left - 2) & (x < right + 2) & (y > low - 1) & (y < high + 1)
    return hides.reshape(of, -1).sum(1) if of else hides.sum(1)


def _overlap(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return what each box shares with another, in pixels of area, a gap between them counted."""
    wide = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2]) + GAP
    return np.prod(np.maximum(wide, 0), axis=1)
