"""Words of the command line in the grammar of Hydra."""

import os
import re
from collections.abc import Collection


def quoted(word: str) -> str:
    """Returns a word as Hydra's grammar has it in quotes, nothing in it interpolated."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", word.replace("${", r"\${"))
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def listed(words: list[str], lists: Collection[str], texts: Collection[str]) -> list[str]:
    """Returns settings as Hydra takes them that were written as a shell would take them.

    Args:
        words: Of the command line.
        lists: Settings that hold a list of texts: `key=text` and `key=[text,text]` will do.
        texts: Settings that hold a text, in which a comma is nothing else.
    """

    def one(word: str) -> str:
        key, _, value = word.partition("=")
        if not value or value[0] in "'\"" or (key not in lists and key not in texts):
            return word
        if key in texts:
            return f"{key}={quoted(value)}" if set(value) & set(",=[]{}()") else word
        inside = value[1:-1] if value[0] == "[" and value[-1] == "]" else None
        if inside is None:
            return word if value == "null" else f"{key}=[{quoted(value)}]"
        if set(inside) & set("'\"[") or not inside:
            return word
        return f"{key}=[{','.join(quoted(part.strip()) for part in inside.split(','))}]"

    return [one(word) for word in words]


def config_dirs(words: list[str]) -> list[str]:
    """Returns the folders of a user's own YAML files that a command line names."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    after = [value for flag, value in pairs if flag in ("--config-dir", "-cd")]
    joined = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    return after + joined


def join_folders(words: list[str]) -> list[str]:
    """Returns the words with all bare ones joined to `folders=[...]`.

    Runs of a sweep have names like optimizer.lr=0.1: what exists, or has a slash before its first
    equals sign, is a folder.
    """
    before = ["", *words]
    bare = [
        word
        for last, word in zip(before, words, strict=False)
        if word[:1] not in "-+~"
        and ("=" not in word or "/" in word.partition("=")[0] or os.path.exists(word))
        and last not in ("--config-dir", "--cfg")
    ]
    joined = ",".join(map(quoted, bare))
    return [word for word in words if word not in bare] + [f"folders=[{joined}]"] * bool(bare)
