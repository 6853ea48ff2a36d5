"""What Hydra refuses, in one sentence for a person: what is wrong, and the nearest valid names."""

import inspect
import re
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from vidtrain.errors import InputError, did_you_mean
from vidtrain.targets import locate
from vidtrain.words import config_dirs

MOST_NAMES = 40  # of a list in a message
ALIKE = 0.75  # of names at another place than the one given; see did_you_mean


def explain(error: Exception, stage: str, overrides: list[str], conf: Path) -> str:
    """Returns one sentence for a person: what is wrong, and the nearest valid names.

    Args:
        error: What Hydra or OmegaConf raised.
        stage: Name of the root YAML.
        overrides: The command line, Hydra's flags included.
        conf: Folder of the shipped YAML files.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    text = "\n".join(str(link) for link in chain)
    choice = re.search(r"Could not find '([^']+)/([^']+)'", text)
    if choice:
        group, name = choice[1], choice[2]
        options = re.findall(r"^\t(.+)$", text.split("Config search path")[0], re.MULTILINE)
        if group.startswith("hydra/"):
            options.append("others after pip install 'vidtrain[sweep]'")
        near = did_you_mean(name, options)
        return f"{group}={name} is not a choice; {near or _one_of(options)}"
    for link in chain:
        if isinstance(link, ValidationError) and link.full_key:
            return _explain_value(link, overrides)
    key = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'",
                    text)  # fmt: skip
    if key:
        return _explain_key(key[1], stage, overrides, conf)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} does not parse: {str(error).splitlines()[0]}"
    said = next((str(link).strip() for link in chain if str(link).strip()), type(error).__name__)
    return f"{said.splitlines()[0]} (see vidtrain {stage} --help)"


def _explain_value(error: ValidationError, overrides: list[str]) -> str:
    key = str(error.full_key)
    given = next((o for o in reversed(overrides) if o.lstrip("+").startswith(f"{key}=")), None)
    hint = getattr(error, "ref_type", None) or getattr(error, "type_hint", None)
    reason = str(error.msg or error).splitlines()[0]
    wanted = {"Integer": "int", "Float": "float"}
    found = re.search(r"Value '(.*)' of type '(\w+)' could not be converted to (\w+)", reason)
    if found:
        return f"{key}={found[1]!r}: expected {wanted.get(found[3], found[3])}, got {found[2]}"
    flag = re.search(r"Value '(.*)' is not a valid bool \(type (\w+)\)", reason)
    if flag:
        return f"{key}={flag[1]!r}: expected bool (true or false), got {flag[2]}"
    if "is not a ListConfig" in reason:
        return f"{key} is a list: write {key}=[{str(given).partition('=')[2]}]"
    return f"{given or key}: {reason}" + (f" (expected {hint})" if hint else "")


def _explain_key(key: str, stage: str, overrides: list[str], conf: Path) -> str:
    """Returns what is said of a key that the composed config does not have."""
    groups, config = _composed(stage, overrides, conf)
    parent, _, last = key.rpartition(".")
    place, found = _deepest(config, parent)
    refused = f"{key} is not a setting of vidtrain {stage}"
    if found is None and place in groups:
        choices = [name for name in groups[place] if name != "none"]
        return f"{refused}: nothing is chosen for {place}; choose {place}={' or '.join(choices)}"
    inside = {name: name for name in _settings(found, f"{place}." * bool(place), groups)}
    target = found.get("_target_") if isinstance(found, dict) else None
    extra = _arguments(target, place)
    if place == parent and last in extra:
        return f"{refused}: {target} takes it, and its YAML does not give it; write +{key}=..."
    there = groups.get(place, []) if place == parent else []
    others = [name for name in there if _has(place, name, last, overrides, conf)]
    if others:
        return f"{refused} as it is; it is one of {place}={' or '.join(others)}"
    inside |= {f"+{place}.{name}": f"{place}.{name}" for name in extra
               if f"{place}.{name}" not in inside}  # fmt: skip
    everywhere = _settings(config, "", groups)
    return f"{refused}; {_nearest(key, inside, everywhere, place)}"


def _has(group: str, name: str, key: str, overrides: list[str], conf: Path) -> bool:
    """Returns whether a choice of a group gives a setting."""
    folders = (conf, *map(Path, config_dirs(overrides)))
    files = [folder / group / f"{name}.yaml" for folder in folders]
    nodes = [OmegaConf.load(file) for file in files if file.is_file()]
    return any(isinstance(node, DictConfig) and key in node for node in nodes)


def _nearest(key: str, inside: dict[str, str], everywhere: list[str], place: str) -> str:
    """Returns a question with the nearest settings: those of the same node come first.

    Args:
        key: What was typed.
        inside: Settings of the deepest node on the way to it: as they are written, and their keys.
        everywhere: All settings.
        place: Key of that node.
    """
    start, last = len(f"{place}." * bool(place)), key.rpartition(".")[2]
    near = _alike(key[start:], {word: name[start:] for word, name in inside.items()}, 0.6)
    if not near:
        parts = {name: name.rpartition(".")[2] for name in everywhere}
        near = [word for word, part in parts.items() if part == last][:3]  # at another place
        whole = {name: name for name in everywhere}
        near = near or _alike(last, parts, ALIKE) or _alike(key, whole, ALIKE)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if place and inside:
        words = [f"{'+' * word.startswith('+')}{name[start:]}" for word, name in inside.items()]
        return f"{place} takes {', '.join(words)}"
    return _one_of([name for name in everywhere if "." not in name], "; see --cfg job for all")


def _alike(word: str, names: dict[str, str], cutoff: float) -> list[str]:
    """Returns up to three of the keys whose values are most like a word."""
    hint = did_you_mean(word, dict.fromkeys(names.values()), cutoff=cutoff)
    close = hint.removeprefix("did you mean ").rstrip("?").split(" or ") if hint else []
    return [next(key for key, name in names.items() if name == each) for each in close]


def _one_of(names: list[str], more: str = "") -> str:
    return f"it must be one of {', '.join(names[:MOST_NAMES])}{more}"


def _composed(stage: str, overrides: list[str], conf: Path) -> tuple[dict[str, list[str]], Any]:
    """Returns the groups with their choices, and the config with the groups that were chosen."""
    own = config_dirs(overrides)
    groups: dict[str, list[str]] = {}
    for folder in (conf, *map(Path, own)):
        for file in sorted(folder.glob("*/*.yaml")):
            groups.setdefault(file.parent.name, []).append(file.stem)
    split = (word.lstrip("+").partition("=") for word in overrides)
    chosen = [f"{key}={value.split(',')[0]}" for key, _, value in split if key in groups]
    places = ",".join(f"'file://{Path(folder).absolute()}'" for folder in own)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        for words in ([*chosen, f"hydra.searchpath=[{places}]"], []):
            try:
                config = hydra.compose(stage, words)
                break
            except (HydraException, OmegaConfBaseException):  # a choice is wrong besides
                continue
    return groups, OmegaConf.to_container(config, resolve=False)


def _deepest(config: Any, key: str) -> tuple[str, Any]:
    """Returns the last node on the way to a key that is there, and its key."""
    place: list[str] = []
    for part in key.split(".") if key else []:
        if not isinstance(config, dict) or part not in config:
            break
        config = config[part]
        place.append(part)
    return ".".join(place), config


def _settings(node: Any, prefix: str, groups: dict[str, list[str]]) -> list[str]:
    """Returns the key of every setting below a node, and at the root the groups."""
    names = [] if prefix else list(groups)
    for key, child in node.items() if isinstance(node, dict) else ():
        if key == "_target_":
            continue
        names.append(f"{prefix}{key}")
        if isinstance(child, dict) and child:
            names[-1:] = _settings(child, f"{prefix}{key}.", groups)
    return list(dict.fromkeys(names))


def _arguments(target: Any, where: str) -> list[str]:
    """Returns what a target takes besides what the program gives it: arguments with defaults."""
    if not isinstance(target, str):
        return []
    try:
        found = inspect.signature(locate(target, where)).parameters.values()
    except (InputError, ValueError, TypeError):
        return []
    given = "class_counts"  # by the program, where there are any
    return [each.name for each in found if each.default is not each.empty and each.name != given]
