"""Tables that README and pages show are those that the published results give today."""

import pytest
from shown_tables import METHODS, with_its_tables


@pytest.mark.parametrize("document", METHODS)
def test_a_page_shows_the_tables_of_the_published_results(document):
    said, today = with_its_tables(document)
    assert said == today, "write them anew: python tests/shown_tables.py"
