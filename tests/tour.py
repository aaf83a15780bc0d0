"""Brings docs/tour.md up to date: PYTHONPATH=src:tests python tests/tour.py

The order of chapters and rows is written by hand; what a row says is the first line of the module's docstring. A new
module is put after the last row of its folder, a row whose module is gone goes.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "maskperf"
TOUR = ROOT / "docs" / "tour.md"
ROW = re.compile(r"\| \[`(?P<module>\S+\.py)`\]\(\S+\) \| .* \|")


def row_of(module: str) -> str:
    docstring = ast.get_docstring(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))) or ""
    sentence = docstring.partition("\n")[0].removesuffix(".")
    return f"| [`{module}`](../src/maskperf/{module}) | {sentence} |"


def modules() -> set[str]:
    files = (path for path in PACKAGE.rglob("*.py") if path.stat().st_size)
    return {path.relative_to(PACKAGE).as_posix() for path in files}


def updated(text: str) -> str:
    """Return the text of the tour with one row for every module."""
    lines, left = [], modules()
    for line in text.splitlines():
        if (found := ROW.fullmatch(line)) is None:
            lines.append(line)
        elif found["module"] in left:
            left.remove(found["module"])
            lines.append(row_of(found["module"]))
    for module in sorted(left):
        folder = module.rpartition("/")[0]
        rows = [place for place, line in enumerate(lines) if (found := ROW.fullmatch(line))]
        beside = [place for place in rows if ROW.fullmatch(lines[place])["module"].rpartition("/")[0] == folder]
        lines.insert((beside or rows)[-1] + 1, row_of(module))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TOUR.write_text(updated(TOUR.read_text(encoding="utf-8")), encoding="utf-8")
