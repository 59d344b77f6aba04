"""Tables of rows that one test goes through: a pure check of hundreds of rows costs less than hundreds of tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from itertools import product
from typing import Any

import pytest
from _pytest.mark import ParameterSet

_ROWS = "_rows_of_the_test"


def rows(names: str | Iterable[str], values: Iterable[Any], ids: Any = None) -> Callable[[Any], Any]:
    """Like `pytest.mark.parametrize`, but in one test, which fails with each row that fails, by name.

    For functions without fixtures, which all rows would share. Several of them are a product.
    """
    listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    table = list(_table(listed, values, ids if ids is None or callable(ids) else list(ids)))
    assert table, "a table without rows checks nothing"

    def decorated(check: Any) -> Any:
        inner = getattr(check, _ROWS, None)
        tables, body = ([table, *inner[0]], inner[1]) if inner is not None else ([table], check)

        @wraps(body)
        def test() -> None:
            failures = []
            for row in product(*tables):
                arguments = {name: value for _, part in row for name, value in part.items()}
                try:
                    body(**arguments)
                except (Exception, pytest.fail.Exception) as failure:  # noqa: BLE001 - raised with the others
                    failure.add_note("row: " + " ".join(label for label, _ in row))
                    failures.append(failure)
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} rows fail", failures)

        test.__signature__ = inspect.Signature()  # type: ignore[attr-defined]
        setattr(test, _ROWS, (tables, body))
        return test

    return decorated


def _table(names: list[str], values: Iterable[Any], ids: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, value in enumerate(values):
        row = ParameterSet.extract_from(value, force_tuple=len(names) == 1)
        assert not row.marks, "marks are a test's own"
        named = ids(value) if callable(ids) else ids[number] if ids is not None else row.id
        label = str(named) if named is not None else repr(row.values)
        yield label[:200], dict(zip(names, row.values, strict=True))
