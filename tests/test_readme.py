"""The README's map, commands and links are true; `python -m tests.test_readme` writes the map from the packages."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.test_architecture import floor_of

REPOSITORY = Path(__file__).parent.parent
README = REPOSITORY / "README.md"
BLOCK = re.compile(r"(?<=<!-- tree -->\n```text\n).*?(?=```\n)", re.DOTALL)
FOLDERS = ("jobs", "benchmarks", "deploy", "docs", "results", "tests")
"""Top-level folders beside steelray/."""


def folders() -> set[str]:
    """Return every folder with files of the project in it, the files not yet committed included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    files = [Path(line) for line in listed.splitlines() if (REPOSITORY / line).is_file()]
    return {str(parent) for file in files for parent in file.parents}


def map_lines() -> Iterator[str]:
    """Yield one line per package of steelray/, from the ground up, then one line of the other top-level folders."""
    packages = [name.removeprefix("steelray/") for name in folders() if re.fullmatch(r"steelray/\w+", name)]
    for package in sorted(packages, key=lambda name: (floor_of(name) or 0, name)):
        source = (REPOSITORY / "steelray" / package / "__init__.py").read_text()
        first = (ast.get_docstring(ast.parse(source)) or "").split(".\n")[0]
        yield f"steelray/{package + '/':16} {first.rstrip('.')}"
    folders_in_words = " ".join(f"{folder}/" for folder in FOLDERS)
    yield f"{folders_in_words}  jobs are thin entry points; tests mirror the packages"


def package_map() -> str:
    return "\n".join(map_lines()) + "\n"


def test_the_map_is_true() -> None:
    found = BLOCK.search(README.read_text())
    assert found is not None
    assert found.group() == package_map(), "run `make readme`"


def test_every_folder_is_on_the_map() -> None:
    top_level = {name for name in folders() if "/" not in name and not name.startswith(".")}
    assert top_level == {"steelray", *FOLDERS}


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 160
    assert len(list(map_lines())) <= 12


def test_every_command_of_the_readme_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    text = README.read_text()
    targets = set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for job in set(re.findall(r"jobs/(?:configs/)?[a-z_]+\.(?:py|yaml)", text)):
        assert (REPOSITORY / job).is_file(), job


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in [README, *sorted((REPOSITORY / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_figure_of_the_documents_is_shown_in_one() -> None:
    documents = [README, *(REPOSITORY / "docs").glob("*.md")]
    shown = {Path(name).name for page in documents for name in re.findall(r"figures/[\w.]+", page.read_text())}
    assert {path.name for path in (REPOSITORY / "docs" / "figures").iterdir()} <= shown


if __name__ == "__main__":
    README.write_text(BLOCK.sub(lambda _: package_map(), README.read_text()))
