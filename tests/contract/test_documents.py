"""The documents: their links and pictures exist, every command is tested, the READMEs' shape."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.documents import ON_OWN_SERVERS, ON_SHARED_SERVERS, TESTED_ELSEWHERE, blocks, commands

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


# README and the pages that it leads to


def test_readme_is_short_and_leads_to_each_page_once() -> None:
    readme = (PROJECT / "README.md").read_text()
    assert len(readme.splitlines()) <= 250
    pages = {name for name in LISTED if re.fullmatch(r"docs/.*|extensions/.*/README\.md", name)}
    targets = [target for target in LINK.findall(without_code(readme)) if target in pages]
    assert sorted(targets) == sorted(pages)


def test_an_extension_s_readme_ends_in_english() -> None:
    for file in PROJECT.glob("extensions/*/README.md"):
        assert re.search(r"\n\*English: [^*]+\*\n$", file.read_text()), file


def test_every_document_with_commands_is_tested() -> None:
    found = {f"docs/{file.name}" for file in PROJECT.glob("docs/*.md")}
    found |= {f"extensions/{f.parent.name}/README.md" for f in PROJECT.glob("extensions/*/*.md")}
    assert {"README.md", *found} == {*ON_SHARED_SERVERS, *ON_OWN_SERVERS}
    for document in (*ON_SHARED_SERVERS, *ON_OWN_SERVERS):
        assert {kind for kind, _ in blocks(document)} <= {"bash", "text", "ini"}, document
    for test in ON_OWN_SERVERS.values():
        assert "tests.documents" in (PROJECT / test).read_text()


def test_a_command_that_is_not_run_is_tested_elsewhere() -> None:
    shown = [command for document in ON_SHARED_SERVERS for command in commands(document)]
    for command, (test, words) in TESTED_ELSEWHERE.items():
        assert shown.count(command) == 1, command
        assert words in (PROJECT / test).read_text(), command


@pytest.mark.parametrize("document", [*ON_SHARED_SERVERS, *ON_OWN_SERVERS])
def test_a_document_names_only_targets_and_modules_that_are_there(document: str) -> None:
    """Those in the text too, which no test runs."""
    text = (PROJECT / document).read_text()
    targets = re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (PROJECT / "Makefile").read_text(), re.M)
    known = {name for line in targets for name in line.split()}
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= known
    for module in set(re.findall(r"python -m ([a-z_.]+[a-z_])", text)):
        path = PROJECT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_rates_stand_in_the_benches_only() -> None:
    """The benches write them there and into the report; quoted elsewhere, they would grow old."""
    for document in (*ON_SHARED_SERVERS, *ON_OWN_SERVERS):
        text = (PROJECT / document).read_text()
        rates = re.findall(r"\d[\d\s]*(?:mesures|documents|messages)(?:/s| par seconde)", text)
        assert rates == [], document


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
    count = max(map(int, re.findall(rb"/Count (\d+)", pages)))
    assert 2 <= count <= 3  # pages
