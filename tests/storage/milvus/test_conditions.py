"""Expressions hold values as values, whatever is in them."""

from __future__ import annotations

from uuid import UUID

import pytest

from storage.milvus import conditions
from storage.milvus.collections import collection_name, plain


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", '"plain"'),
        ('a" || true || x == "', '"a\\" || true || x == \\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("two\nlines\t\r", '"two\\nlines\\t\\r"'),
        ("\0\x1b\u2028gone", '"gone"'),
        ("Отрасль", '"Отрасль"'),
        (-5, "-5"),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
    ],
    ids=str,
)
def test_values_are_written_by_type(value: conditions.Value, written: str) -> None:
    assert conditions.literal(value) == written


@pytest.mark.parametrize("value", [True, 1.5, None, b"x"], ids=repr)
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        conditions.literal(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a b", "a == 1 || b", "A", "1a"])
def test_fields_are_names(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        conditions.equal(name, 1)


def test_conditions_keep_together() -> None:
    low = conditions.within("a", 1, 2)
    assert low is not None
    both = conditions.either([low, conditions.one_of("b", ["x", "y"])])
    assert both.expression == '((a >= 1) and (a <= 2)) or (b in ["x", "y"])'
    assert conditions.within("a") is None
    assert conditions.one_of("b", []).expression == "b in []"
    with pytest.raises(ValueError, match="no condition"):
        conditions.every([])


def test_names_and_texts_fit() -> None:
    assert collection_name("project", "text-embedding-3/Large", 3072) == "project__text_embedding_3_large_3072"
    assert plain("я" * 2000).encode() == "я".encode() * 512
    assert plain("a\0b\nc") == "ab\nc"
