"""Words of the command line in the grammar of Hydra."""

import re


def quoted(word: str) -> str:
    """Returns a word as Hydra's grammar has it in quotes, nothing in it interpolated."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", word.replace("${", r"\${"))
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def config_dirs(words: list[str]) -> list[str]:
    """Returns the folders of a user's own YAML files that a command line names."""
    pairs = zip(words, [*words[1:], ""], strict=False)
    after = [value for flag, value in pairs if flag in ("--config-dir", "-cd")]
    joined = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    return after + joined


def join_folders(words: list[str]) -> list[str]:
    """Returns the words with all bare ones joined to `folders=[...]`."""
    before = ["", *words]
    bare = [
        word
        for last, word in zip(before, words, strict=False)
        if word[:1] not in "-+~" and "=" not in word and last not in ("--config-dir", "--cfg")
    ]
    joined = ",".join(map(quoted, bare))
    return [word for word in words if word not in bare] + [f"folders=[{joined}]"] * bool(bare)
