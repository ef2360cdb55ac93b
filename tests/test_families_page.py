"""The page of families is what the code says, and every kind of folder that converts stands in it."""

from docs.families import PAGE, ROWS, page
from jaxssl.convert.huggingface import SUPPORTED


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text() == page(), "docs/families.md is stale: say python -m docs.families"


def test_every_model_type_stands_in_a_row():
    assert {kind for family in ROWS for kind in family.model_types} == set(SUPPORTED["model_type"])
