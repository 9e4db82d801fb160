"""The rows of a check as a page of tables, and the list of what went wrong."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FIELDS = ("part", "table", "what", "where")  # which are no columns


def read_rows(path: Path) -> list[Row]:
    """The rows so far; a line that is not whole is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def problems(rows: Iterable[Row]) -> list[str]:
    """What failed, was wrong or was not reached, a line each."""
    found = []
    for row in rows:
        name = f"{row['part']}: {row['what']}"
        if "failed" in row:
            found.append(f"{name}: {row['failed']}")
        elif row.get("right") is False:
            found.append(f"{name}: the error is {row['error']}, at most {row['at_most']} is right")
        elif "skipped" in row:
            found.append(f"{name}: {row['skipped']}")
    return found


def is_wrong(rows: Iterable[Row]) -> bool:
    """Whether anything failed or is wrong; a part that no time was left for is neither."""
    return any("failed" in row or row.get("right") is False for row in rows)


def page(rows: Sequence[Row], introductions: dict[str, str], command: str) -> str:
    """The page: card, problems, then the tables of each part."""
    cards = [row for row in rows if row["table"] == "card"]
    title = cards[0]["what"] if cards else "no card"
    right = [row["right"] for row in rows if "right" in row]
    parts = [f"# {title}", f"Measured by `{command}` in one run. {sum(right)} of {len(right)} comparisons are right."]
    if cards:
        parts.append(", ".join(f"{key} {value}" for key, value in cards[0].items() if key not in FIELDS) + ".")
    if wrong := problems(rows):
        parts.append("## Wrong, failed or not reached\n\n" + "\n".join(f"* {escaped(line)}" for line in wrong))
    for name, introduction in introductions.items():
        own = [row for row in rows if row["part"] == name and row["table"] not in ("card", "ends")]
        shown = [row for row in own if "failed" not in row or len(row.keys() - {*FIELDS, "failed"})]
        if shown:
            parts.append(f"## {name.replace('_', ' ')}\n\n{introduction}")
            parts += tables_of(shown)
    ends = [row for row in rows if row["table"] == "ends"]
    parts.append("## Time\n\n" + table([{**row, "what": row["part"]} for row in ends]))
    return "\n\n".join(parts) + "\n"


def tables_of(rows: Sequence[Row]) -> list[str]:
    """A table for each kind of row, in the order in which they begin."""
    kinds = dict.fromkeys(row["table"] for row in rows)
    return [table([row for row in rows if row["table"] == kind], kind) for kind in kinds]


def table(rows: Sequence[Row], title: str = "") -> str:
    """Rows of one kind as Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in FIELDS))
    lines = [[title, *(column.replace("_per_s", "/s").replace("_", " ") for column in columns)]]
    lines += [["---"] * len(lines[0])]
    lines += [[escaped(row["what"]), *(cell(row.get(column)) for column in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else escaped(str(value))


def escaped(text: str) -> str:
    """Text of errors and kernels, which Markdown would read as its own."""
    return re.sub(r"([|<>*_`\[\]])", r"\\\1", " ".join(text.split()))


def file_stem(card: str) -> str:
    """The name of a card as that of a file: nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-") or "card"
