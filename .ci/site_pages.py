"""Pages of the documentation site that are made when it is built: README, examples, and the API reference.

MkDocs calls the functions by their names. The public names of each package are in its ``__init__.pyi``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGES = {"envs": ROOT / "envs", "agents": ROOT / "agents", "models": ROOT / "models"}
ENVIRONMENTS = (
    "ChannelMaskEnv",
    "LayerwiseChannelMaskEnv",
    "ChannelMaskVectorEnv",
    "LayerwiseChannelMaskVectorEnv",
    "MaskVecEnv",
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to files of examples/ lead to their page."""
    return re.sub(r"\]\(\.\./examples/([\w.]+)\)", lambda found: f"](examples.md#{anchor(found[1])})", markdown)


def pages() -> dict[str, str]:
    """Return each page's path and text."""
    readme = re.sub(r"\[([^]]*)\]\(LICENSE\)", r"\1", (ROOT / "README.md").read_text()).replace("](docs/", "](")
    made = {
        "index.md": readme,
        **{name: (ROOT / name).read_text() for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")},
        "examples.md": examples(),
        "reference/errors.md": "# Errors and warnings\n\n::: prunegym.errors\n",
    }
    for package, folder in PACKAGES.items():
        names = public(folder / "__init__.pyi", f"prunegym.{package}")
        shown = [path for name, path in names.items() if name not in ENVIRONMENTS]
        made[f"reference/{package}.md"] = reference(f"prunegym.{package}", shown)
        if package == "envs":
            made["reference/environments.md"] = reference("Environments", [names[name] for name in ENVIRONMENTS])
    made["reference/prunegym.md"] = overview(public(ROOT / "src/prunegym/__init__.pyi", "prunegym"))
    return made


def overview(names: dict[str, str]) -> str:
    """Return a page that leads to what is described on others."""
    rows = [f"| `{name}` | [{path}][] |" for name, path in names.items()]
    head = ["# prunegym", "", "What most programs need can be imported from `prunegym` itself.", ""]
    return "\n".join([*head, "| name | described at |", "| --- | --- |", *rows, ""])


def public(stub: Path, package: str) -> dict[str, str]:
    """Return the public names of a package, each with the path of what it names."""
    found = {}
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name: f"{package}.{node.module}.{alias.name}" for alias in node.names}
    return found


def reference(title: str, paths: list[str]) -> str:
    """Return a page that describes objects by their docstrings."""
    return "\n".join([f"# {title}", "", *(f"::: {path}\n" for path in paths)])


def examples() -> str:
    """Return a page with the programs of examples/."""
    parts = ["# Examples", ""]
    for file in sorted((ROOT / "examples").glob("*.*")):
        language = {".py": "python", ".yml": "yaml"}.get(file.suffix)
        if language is not None:
            parts += [
                f"## {file.name} {{ #{anchor(file.name)} }}",
                "",
                f"```{language}",
                file.read_text().rstrip(),
                "```",
                "",
            ]
    return "\n".join(parts)


def anchor(name: str) -> str:
    """Return the anchor of an example."""
    return name.replace(".", "-")
