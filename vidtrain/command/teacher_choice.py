"""`model@teacher=NAME` on the command line: a second model, without the clip sampler it brings."""

from pathlib import Path

import yaml
from hydra.core.config_store import ConfigStore

from vidtrain.errors import InputError, UsageError, did_you_mean

CHOICE = "model@teacher="


def choose_teacher(overrides: list[str], folders: list[Path]) -> list[str]:
    """Puts the model of `model@teacher=NAME` where the config has it, as a choice of its own.

    A model's YAML names the clip sampler of its family. The teacher sees the student's clips, and
    Hydra refuses two samplers, so the teacher's is left out.

    Args:
        overrides: The command line after the stage.
        folders: Those that hold model/NAME.yaml; a later one wins.

    Returns:
        The overrides as Hydra takes them.

    Raises:
        UsageError: There is no such model.
        InputError: Its YAML cannot be read.
    """
    return [
        _stored(word.lstrip("+").removeprefix(CHOICE), folders)
        if word.lstrip("+").startswith(CHOICE)
        else word
        for word in overrides
    ]


def _stored(name: str, folders: list[Path]) -> str:
    models = {file.stem: file for folder in folders for file in folder.glob("model/*.yaml")}
    if name not in models:
        hint = did_you_mean(name, models) or f"it must be one of {', '.join(sorted(models))}"
        raise UsageError(f"{CHOICE}{name} is not a choice; {hint}")
    try:
        node = yaml.safe_load(models[name].read_text("utf-8"))
        node.pop("defaults", None)
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise InputError(f"{models[name]} cannot be read: {error}") from error
    ConfigStore.instance().store(group="teacher", name=name, node=node, package="teacher")
    return f"+teacher={name}"
