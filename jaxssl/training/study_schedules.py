"""The study's own calendars and levels ("Is Smaller Always Faster?", arXiv 2211.09949, and its public configurations).

Event i goes to level i. Updates are of batches of 4 with Adam at 1e-5; the models are MelHuBERT's 12 layers.
"""

from jaxssl.training.calendar import Calendar, Gate, periodic

# Weight pruning: share of the prunable entries that are zero, over the whole model.
PAPER_SPARSITIES = (
    *(0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.675, 0.7),
    *(percent / 100 for percent in range(71, 92)),
    *(0.915, 0.92, 0.925, 0.93, 0.935, 0.94, 0.945, 0.95),
)
PAPER_WEIGHTS = Calendar(periodic(25_000, 25_000, 38), last=1_000_000, gate=Gate(), delay=25_000)

# Head pruning: heads kept in each layer; 12 times as many over the whole model where layers may differ.
PAPER_HEADS_KEPT = tuple(range(11, 0, -1))
PAPER_HEADS = Calendar(
    (1_000, 26_000, 51_000, 76_000, 101_000, 126_000, 166_000, 206_000, 246_000, 286_000, 326_000), last=366_000
)

# Row pruning: feed-forward units kept in each layer.
PAPER_ROWS_KEPT = tuple(range(2944, 511, -128))
PAPER_ROWS = Calendar(periodic(1_000, 25_000, 20), last=510_000)
