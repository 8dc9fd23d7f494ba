"""The ledger's pages, made from its rows: `python -m ledger.page` writes them into docs/ledger."""

import re
from pathlib import Path

import jax

from ledger import BOOK, CHAPTERS
from ledger.book import Check, Row

PAGES = Path(__file__).parents[2] / "docs" / "ledger"


def anchor(id: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", id.lower().replace("§", "section-")).strip("-")


def number(check: Check) -> str:
    if check.high - check.low < 1:
        digits = "0" if check.measured == 0 else f"{check.measured:.0e}"
        return f"{check.measured:.2f}" if check.low >= 1 else digits
    return f"{check.measured:.2g}"


def verdict(checks: list[Check]) -> str:
    return "holds" if all(check.holds for check in checks) else "**fails**"


def table(checks: list[Check]) -> str:
    lines = ["| what is checked | on | measured | required | |", "|---|---|---:|---:|---|"]
    lines += [
        f"| {c.what} | {c.problem} | {number(c)} | {c.required} | {verdict([c])} |" for c in checks
    ]
    return "\n".join(lines)


def section(row: Row, checks: list[Check]) -> str:
    return "\n\n".join(
        [
            f"({anchor(row.id)})=\n## {row.id}",
            f"$$ {row.latex} $$",
            row.says,
            table(checks),
            f"```{{literalinclude}} ../../tests/ledger/{row.chapter}.py\n"
            f":pyobject: {row.checks.__name__}\n```",
        ]
    )


def worst(checks: list[Check]) -> str:
    """The largest error, or the first order, of a row."""
    errors = [check for check in checks if check.required.startswith("≤")]
    orders = [check for check in checks if "±" in check.required]
    parts = [f"error {number(max(errors, key=lambda c: c.measured))}"] if errors else []
    parts += [f"order {number(orders[0])}"] if orders else []
    rest = len(checks) - len(errors) - len(orders)
    parts += [f"{rest} more"] if rest else []
    return ", ".join(parts)


def overview(results: dict[str, list[Check]]) -> str:
    lines = [
        "# The ledger",
        "Every equation of the papers, and what makes it true on numbers. These pages are written "
        "by the tests (`make ledger`), and a test fails when they are not what it would write.",
        "The losses: least squares on diabetes, logistic regression on breast cancer, and a tanh "
        "network on iris, each a third of the data for the base model and a third for each of two "
        "tasks, trained to a gradient at rounding error. An *error* is ‖left − right‖/‖right‖, or "
        "where the right side is zero relative to what is in balance there, as the row's code "
        "says; an *order* is the exponent with which an approximation improves when the distance "
        "is halved, with the required one beside it. What is printed wrongly must fail by a large "
        "margin.",
        f"{len(results)} ids, {sum(map(len, results.values()))} checks.",
    ]
    for chapter, title in CHAPTERS.items():
        rows = [row for row in BOOK.values() if row.chapter == chapter]
        body = ["| id | what it says | measured | |", "|---|---|---|---|"]
        for row in rows:
            first = re.split(r"(?<=[.]) ", " ".join(row.says.split()))[0].rstrip(".")
            link = f"[{row.id}]({chapter}.md#{anchor(row.id)})"
            checks = results[row.id]
            body.append(f"| {link} | {first} | {worst(checks)} | {verdict(checks)} |")
        lines += [f"## {title}", "\n".join(body)]
    contents = "\n".join(CHAPTERS)
    lines.append(f"```{{toctree}}\n:hidden:\n\n{contents}\n```")
    return "\n\n".join(lines) + "\n"


def pages(results: dict[str, list[Check]]) -> dict[str, str]:
    """File name → text, for the overview and each chapter."""
    texts = {"index.md": overview(results)}
    for chapter, title in CHAPTERS.items():
        rows = [row for row in BOOK.values() if row.chapter == chapter]
        sections = [section(row, results[row.id]) for row in rows]
        texts[f"{chapter}.md"] = "\n\n".join([f"# {title}", *sections]) + "\n"
    return texts


def without_numbers(text: str) -> str:
    """What must not change from machine to machine: all but measured digits."""
    digits = r"-?[0-9][0-9.e+-]*"
    text = re.sub(rf"\| {digits} \|", "| · |", text)
    return re.sub(rf"(error|order) {digits}", r"\1 ·", text)


def unmet(text: str) -> list[str]:
    """Rows of a page that say `holds` of a number that does not."""
    rows = re.findall(r"\| (-?[0-9][0-9.e+-]*) \| ([^|]+) \| holds \|", text)
    return [
        f"{measured}, {required}"
        for measured, required in rows
        if not is_met(float(measured), required)
    ]


def is_met(measured: float, required: str) -> bool:
    first, _, rest = required.partition(" ")
    if first == "≤":
        return measured <= float(rest)
    if first in ("<", ">"):
        return (measured < float(rest)) == (first == "<")
    if rest.startswith("±"):
        return abs(measured - float(first)) <= float(rest[2:]) + 0.005
    return measured == float(first)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    PAGES.mkdir(exist_ok=True)
    results = {id: list(row.checks()) for id, row in BOOK.items()}
    for name, text in pages(results).items():
        (PAGES / name).write_text(text)
        print(f"docs/ledger/{name}")


if __name__ == "__main__":
    main()
