#!/usr/bin/env python3
"""Make RAPPORT.pdf of RAPPORT.md with its pictures: Pandoc turns it into Typst, Typst into pages.

make report
"""

import re
import sys
from pathlib import Path

import pypandoc
import typst

PROJECT = Path(__file__).resolve().parent.parent
SOURCE, TARGET = PROJECT / "RAPPORT.md", PROJECT / "RAPPORT.pdf"
LINK_TO_FILE = re.compile(r"(?<!!)\[([^]]+)\]\((?!https?:|#)[^)]+\)")  # dead on paper
STYLE = """
#set page(paper: "a4", margin: (x: 2cm, y: 1.8cm), numbering: "1")
#set text(lang: "fr", font: ("DejaVu Serif", "Libertinus Serif"), size: 9.5pt)
#set par(justify: true)
#set table(stroke: (x, y) => if y > 0 { (top: 0.4pt + gray) }, inset: 4pt)
#show heading: set block(above: 1.4em, below: 0.8em)
#show raw: set text(size: 8.5pt)
#show figure: set block(breakable: true)
#show table: set align(left)
#show table: set par(justify: false)
#show table: set text(size: 7.5pt)
#show table: it => { show "_": "_" + sym.zws; it } // long names may break there
"""


def main() -> int:
    """Write the PDF; return the exit code."""
    text = LINK_TO_FILE.sub(r"\1", SOURCE.read_text(encoding="utf-8"))
    source = PROJECT / ".rapport.typ"  # beside the pictures that it names
    # So many columns that Pandoc leaves the widths of a table's to Typst.
    pages = pypandoc.convert_text(text, "typst", format="gfm", extra_args=["--columns=10000"])
    source.write_text(STYLE + pages, encoding="utf-8")
    try:
        typst.compile(source, output=TARGET, root=PROJECT)
    finally:
        source.unlink()
    sys.stdout.write(f"{TARGET.name} is written\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
