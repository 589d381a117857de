"""From a model's text to a validated object: pydantic first, then json-repair, and a plain error after that.

The correction turn that follows an error is `Ask`'s; here nothing is sent. A text that was cut off is
never repaired, since that would pass off half a list as a whole one: callers reject it before.
"""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Schema = TypeVar("Schema", bound=BaseModel)

_FENCE = re.compile(r"\A\s*```\w*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)


class Malformed(Exception):
    """The text is not what the schema asks for; the message can be shown to the model."""


def parse(text: str, schema: type[Schema]) -> Schema:
    """Validate `text` against `schema`, mending JSON that is only slightly broken.

    Raises:
        Malformed: no JSON object in it, or one that violates the schema (fields named).
    """
    fenced = _FENCE.match(text)
    body = fenced.group(1) if fenced else text
    try:
        return schema.model_validate_json(body)
    except ValidationError as first:
        if first.errors()[0]["type"] != "json_invalid":
            raise Malformed(_explain(first)) from first
    import json_repair

    mended = json_repair.loads(body)
    if not isinstance(mended, dict):
        raise Malformed("the answer holds no JSON object")
    try:
        return schema.model_validate(mended)
    except ValidationError as second:
        raise Malformed(_explain(second)) from second


def _explain(error: ValidationError) -> str:
    """Every violated field on one line, without pydantic's links."""
    found = [f"{'.'.join(map(str, item['loc'])) or 'answer'}: {item['msg']}" for item in error.errors()]
    return "; ".join(found[:8])
