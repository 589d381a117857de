"""The evaluation: its last line is the score; no run sees this file, no patch reaches it."""

import json
import os

left_by_the_run = os.path.join(os.environ["COPY"], "model.json")  # data: nothing of the copy is imported
with open(left_by_the_run) as file:
    model = json.load(file)
unseen = [(x / 10 + 0.05, 3 * (x / 10 + 0.05) + 1) for x in range(20)]
error = sum((model["slope"] * x + model["height"] - y) ** 2 for x, y in unseen) / len(unseen)
print(json.dumps({"score": error}))
