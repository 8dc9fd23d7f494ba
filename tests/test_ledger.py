"""Every equation of the papers, on numbers. The rows are in `ledger/`, one test for each id."""

import functools

import pytest
from ledger import BOOK
from ledger.page import PAGES, pages, unmet, without_numbers

EXPECTED = {
    *(f"GM-{i}" for i in range(1, 11)),
    *(f"GMA-{i}" for i in range(1, 22)),
    *(f"FP-{i}" for i in range(1, 15)),
    *(f"Misprint {i}" for i in range(1, 12)),
    *("GM-§3", "GMA-§1.4", "GMA-§1.5", "GMA-§1.6", "GM-Fig. 2", "FP-Alg. 1"),
}


@functools.cache
def checks_of(id):
    return list(BOOK[id].checks())


def test_no_equation_is_missing():
    assert set(BOOK) == EXPECTED


@pytest.mark.parametrize("id", BOOK)
def test_equation(id):
    assert BOOK[id].says
    checks = checks_of(id)
    assert checks
    failing = [str(check) for check in checks if not check.holds]
    assert not failing, "\n".join(failing)


@pytest.mark.slow
def test_the_pages_are_what_the_tests_would_write():
    for name, text in pages({id: checks_of(id) for id in BOOK}).items():
        written = (PAGES / name).read_text()
        assert not unmet(written), name
        assert without_numbers(written) == without_numbers(text), f"run `make ledger` for {name}"


def test_a_page_that_says_holds_of_a_wrong_number_is_found():
    assert unmet("| x | y | 3e-9 | ≤ 1e-10 | holds |") == ["3e-9, ≤ 1e-10"]
    assert unmet("| x | y | 1.80 | 2 ± 0.1 | holds |")
    assert unmet("| x | y | 0.001 | > 0.01 | holds |")
    assert not unmet("| x | y | 2.08 | 2 ± 0.1 | holds |\n| x | y | 4e-12 | ≤ 1e-10 | holds |")
