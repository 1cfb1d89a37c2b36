"""For mkdocs: links that leave docs/ lead to files of the repository, which the site does not have; there they become the file's name."""

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^()\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def named(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        if "://" in target or target.startswith("#") or path.startswith("docs/"):
            return link[0]
        return text if path.rstrip("/") == text.strip("`") else f"{text} (`{path}` in the repository)"

    return LINK.sub(named, markdown)
