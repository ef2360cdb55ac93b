"""Plan a model for a budget: how many heads, units and ranks each layer keeps so that it loses least.

    python -m experiments.plan --budget rtf=50%
    python -m experiments.plan --budget rtf=80% rtf=65% rtf=50% rtf=40% rtf=30%
    python -m experiments.plan --budget macs=0.15e9 params=3e6 --model MODEL
    python -m experiments.plan --model MODEL --audio FOLDER --recover distil

MODEL is any model folder or any checkpoint that docs/families.md lists, compressed before or not; --audio FOLDER is
any speech. What models learn of it is told under --audio, and in a note. A fine-tuned model keeps its CTC layer, and
is asked what it writes of held-out speech that has transcripts.

A budget is rtf (real-time factor, measured on this device), macs (per second of speech) or params, as a number or as a
share of the dense model's. Every block of every layer has options: fewer heads, fewer feed-forward units, none at all,
maps of low rank. What an option saves is measured in turns with the dense model, or counted. From the dense model the
search goes down, each step the one that adds least loss on training speech for what it saves; the loss is that of the
whole plan, simulated in the dense shapes, for losses of blocks do not add up (`compress.descent`). Within the budget
exchanges between blocks better the plan as long as they do, it is built, timed, and tightened where the timing says so.
One recovery run follows.

Beside it stand the uniform plans of the same budget, the largest of each kind that fits by the same measure: fewer
layers, fewer heads, fewer units, both, low rank; each recovers as long. The report says by how much the automatic plan
beats the best of them on held-out speech, with a paired bootstrap interval over utterances, or why it does not.

On two CPU cores the first command takes six minutes, three of them the search (some 600 plans heard), the second nine.
Expected of the second on 52 minutes of LibriSpeech: 3.077, 3.087, 3.123, 3.237 and 3.296 nats at 0.75, 0.61, 0.51,
0.39 and 0.33 of the dense time (the dense model trained as long: 3.069); most attention goes first, then feed-forward
blocks become low-rank.
"""

from experiments.curves.planning import Config, run
from jaxssl.runtime.cli import main

if __name__ == "__main__":
    main(run, Config, __doc__)
