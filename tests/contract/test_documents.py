"""The documents: their links and pictures exist, the pipelines' READMEs have one shape, the PDF."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=PROJECT, capture_output=True, text=True, check=True,
).stdout.splitlines()  # fmt: skip
DOCUMENTS = [PROJECT / name for name in LISTED if (PROJECT / name).exists()]
PIPELINES = sorted(file.parent for file in PROJECT.glob("pipelines/*/requirements.txt"))
# The titles that each pipeline's README has, in this order, its own ones between them.
SHAPE = [
    "En une commande",
    "Pas à pas",
    "Ce qui est garanti",
    "Réglages",
    "Tests",
    "Dépannage",
    "English",
]
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's titles, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(PROJECT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(without_code(document.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        assert file.is_relative_to(PROJECT), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("folder", PIPELINES, ids=lambda folder: folder.name)
def test_a_pipeline_s_readme_has_the_shape_of_its_siblings(folder: Path) -> None:
    text = without_code((folder / "README.md").read_text())
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert [title for title in titles if title in SHAPE] == SHAPE
    assert text.startswith("# ")
    assert "([English below](#english))" in text
    assert f"({folder.name}/README.md)" in (folder.parent / "README.md").read_text()


def plain(text: str) -> str:
    """Return a text with ordinary spaces in its numbers."""
    return re.sub("[\u00a0\u202f]", " ", text)


def test_rates_that_are_quoted_are_the_benches_() -> None:
    """What benches/report.py does not write itself."""
    benches = plain((PROJECT / "benches/README.md").read_text())
    paragraphs = plain((PROJECT / "connect/README.md").read_text()).split("\n\n")
    quoted = [text for text in paragraphs if re.search(r"par seconde|mesures/s", text)]
    rates = [rate for text in quoted for rate in re.findall(r"(?<!\d )\b\d{2,3} \d{3}\b", text)]
    assert len(rates) > 1
    assert [rate for rate in rates if rate not in benches] == []


def test_there_are_documents() -> None:
    """Else the test above would say nothing."""
    names = {str(file.relative_to(PROJECT)) for file in DOCUMENTS}
    assert {"README.md", "RAPPORT.md", "pipelines/README.md", "tests/faults/README.md"} <= names


@pytest.mark.slow
def test_the_report_becomes_a_pdf() -> None:
    subprocess.run([sys.executable, "docs/pdf.py"], cwd=PROJECT, check=True)
    pages = (PROJECT / "RAPPORT.pdf").read_bytes()
    assert pages.startswith(b"%PDF")
    assert len(pages) > 100_000  # with its pictures
