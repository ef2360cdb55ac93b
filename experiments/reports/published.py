"""What the study that this toolkit follows published, to be looked at beside our own points, never on their axes.

Source: "Is Smaller Always Faster? Tradeoffs in Compressing Self-Supervised Speech Transformers" (arXiv 2211.09949):
models trained on LibriSpeech 960 h, 20 ms frames, phone error rate of SUPERB. Error rates, and the parameters and MACs
of pruned models, are read off its trade-off figure, right to about 0.5 % of their value; parameters and MACs of
unpruned MelHuBERTs are exact. Of pruned weights only those that are not zero count, in parameters and in MACs. Error
rates of the other systems are those that the figure compares with. Nothing is known here of the study's speaker
identification, word error rates or times.
"""

from dataclasses import dataclass

LABEL = "the paper's own, LibriSpeech 960 h, SUPERB PER"
SOURCE = "arXiv 2211.09949, read off its figure to ± 0.5 %; none of it was measured here"


@dataclass(frozen=True)
class Point:
    """A published model.

    Attributes:
        name: of the point on its curve.
        parameters_m: millions of parameters that are not zero.
        macs_g_per_s: billions of MACs by weights not zero, for a second of speech.
        per: phone error rate, in %.
    """

    name: str
    parameters_m: float
    macs_g_per_s: float
    per: float


@dataclass(frozen=True)
class Published:
    """One curve of the figure; a set of systems of their own where the points are not joined."""

    label: str
    points: tuple[Point, ...]
    joined: bool = True


DENSE = Point("12 layers", 90.23, 4.936, 8.14)

MELHUBERT = Published(
    "MelHuBERT, its first layers, no training",
    (DENSE, Point("6 layers", 47.70, 2.587, 11.75), Point("2 layers", 19.35, 1.021, 44.4)),
)
DISTILLED = Published("distillation", (Point("6 layers", 47.70, 2.587, 9.4), Point("2 layers", 19.35, 1.021, 19.4)))
WEIGHTS = Published(
    "weight pruning",
    (
        Point("0.2", 73.2, 4.09, 7.7),
        Point("0.4", 56.2, 3.24, 8.03),
        Point("0.5", 47.7, 2.82, 8.25),
        Point("0.6", 39.2, 2.39, 8.09),
        Point("0.7", 30.7, 1.97, 8.20),
        Point("0.8", 22.2, 1.55, 8.64),
        Point("0.85", 18.0, 1.33, 8.98),
        Point("0.9", 13.7, 1.12, 10.1),
        Point("0.94", 10.3, 0.95, 11.2),
    ),
)
HEADS = Published(
    "head pruning",
    (
        Point("10 heads", 85.5, 4.62, 7.20),
        Point("9 heads", 83.2, 4.47, 7.35),
        Point("7 heads", 78.4, 4.16, 6.91),
        Point("6 heads", 76.1, 4.00, 7.05),
        Point("4 heads", 71.3, 3.69, 7.60),
        Point("3 heads", 69.0, 3.53, 7.87),
        Point("2 heads", 66.6, 3.38, 9.7),
        Point("1 head", 64.3, 3.22, 11.5),
    ),
)
ROWS = Published(
    "low rank (rows of the feed-forward maps)",
    (
        Point("2560", 80.8, 4.47, 8.72),
        Point("2048", 71.3, 3.99, 8.90),
        Point("1536", 61.9, 3.52, 8.78),
        Point("1024", 52.5, 3.05, 9.83),
        Point("512", 43.0, 2.58, 14.05),
    ),
)
COMBINED = Published(
    "6 distilled layers, then heads, then rows",
    (
        Point("9 heads, 3072", 44.2, 2.35, 9.53),
        Point("6 heads, 3072", 40.6, 2.12, 9.66),
        Point("6 heads, 2560", 35.9, 1.88, 10.05),
        Point("6 heads, 2048", 31.2, 1.65, 9.98),
        Point("6 heads, 1536", 26.5, 1.41, 10.64),
        Point("6 heads, 1024", 21.7, 1.18, 11.66),
        Point("6 heads, 512", 17.0, 0.94, 13.64),
    ),
)
OTHERS = Published(
    "other systems",
    (
        Point("DistilHuBERT", 23.5, 3.49, 16.27),
        Point("FitHuBERT", 22.5, 1.41, 13.32),
        Point("LightHuBERT-small", 27.0, 3.83, 6.60),
        Point("ARMHuBERT", 26.45, 2.23, 7.72),
        Point("STaRHuBERT", 22.31, 2.06, 8.16),
    ),
    joined=False,
)
CURVES = (MELHUBERT, DISTILLED, WEIGHTS, HEADS, ROWS, COMBINED, OTHERS)
