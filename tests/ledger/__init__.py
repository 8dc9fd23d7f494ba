"""The equations of the three papers, each with what makes it true on numbers.

`book` holds them in order; importing the four chapters fills it.
"""

from ledger import fp, gm, gma, misprints
from ledger.book import BOOK, CHAPTERS

__all__ = ["BOOK", "CHAPTERS", "fp", "gm", "gma", "misprints"]
