"""CSV text as all tables are written: exact, quoted where it has to be, six decimals."""

from __future__ import annotations

import csv
import io

import numpy as np

from softtok.storage.files import csv_text


def test_floats_have_six_decimals_and_none_is_empty() -> None:
    text = csv_text(["name", "n", "value", "other"], [["a", 3, 1 / 3, None], ["b", 0, np.float64(-2), ""]])
    assert text == "name,n,value,other\na,3,0.333333,\nb,0,-2.000000,\n"


def test_any_text_comes_back() -> None:
    cells = ['comma, and "quotes"', "two\nlines", "ä ± −1", ""]
    assert list(csv.reader(io.StringIO(csv_text(cells, [cells])))) == [cells, cells]
