"""Descriptions of the model's keys: the docstrings below its fields.

They are read from the source when a reference or a schema is made, and not, as pydantic can, when the model is: that
took a tenth of each start.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from inspect import cleandoc, getsource
from itertools import pairwise
from typing import Final

from pydantic import BaseModel

RESTART: Final = "Needs a restart."
NEEDS_RESTART: Final = "needs_restart"
"""Marks an annotation: the key is read once, when the service starts, since something is bound or opened by it."""


@cache
def descriptions(model: type[BaseModel]) -> Mapping[str, str]:
    """Those of its keys that have one, inherited keys too. A key that needs a restart says so."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        (made,) = ast.parse(getsource(base)).body
        assert isinstance(made, ast.ClassDef)  # noqa: S101 - for the type
        for field, below in pairwise(made.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[key] = cleandoc(text)
    return {
        key: f"{texts[key]} {RESTART}" if NEEDS_RESTART in field.metadata else texts[key]
        for key, field in model.model_fields.items()
        if key in texts
    }
