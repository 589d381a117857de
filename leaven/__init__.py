"""Leaven raises a small corpus into a large one with published synthetic-data methods.

The whole flow is

    documents -> corpus -> generate -> clean -> measure -> mix -> train -> evaluate -> report

with `search` around it, trying recipes and learning from how they end. Each stage reads folders that the
stages before it wrote and writes one folder of its own. Here today: those up to `evaluate`; the later ones
join `STAGES` as they come.

This file imports nothing, so that ``import leaven`` costs nothing.
"""

__version__ = "0.1.0"

STAGES = ("corpus", "generate", "clean", "measure", "mix", "train", "evaluate")  # in the order of the flow
