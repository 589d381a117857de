"""The ideator is finetuned with execution as its reward (paper 003, appendix C.2), by TRL's GRPO.

    prompt --the model draws a group--> completions --without thoughts--> ideas --patched, run, evaluated--> scores
       ^                                                                                                       |
       '---------------- one GRPO step: what scored more than the group's mean becomes likelier <--------------'

There is one prompt per environment, so a batch is one prompt, and an epoch is one group and one step. A failed idea is
worth 0, any other its score; where lower is better, 1/score, as the paper takes 1/loss. Identical patches are run once.

Every completion is in the archive, and `rewards.jsonl` tells mean and best reward of each epoch apart: in the paper the
mean rises and the best does not, so a rising mean alone is no better idea.

Every epoch ends with a checkpoint, and its draws depend on the weights, the seed and its number alone. A run that was
killed therefore draws the group of the broken epoch again and finds in the archive what of it was run.
"""

from __future__ import annotations

import ast
import asyncio
import json
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import regex
from pydantic import BaseModel, ConfigDict, Field, model_validator
