"""Between the command line and Hydra: schemas, and what a later stage takes from a run."""

import contextlib
import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any, Protocol

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.command import sweeping
from vidtrain.command.explaining import explain
from vidtrain.command.run_folders import here_are
from vidtrain.command.teacher_choice import choose_teacher
from vidtrain.config import RANKED, SCHEMAS, RunConfig
from vidtrain.errors import InputError, NotHere, UsageError
from vidtrain.words import config_dirs, listed, quoted

FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp",
                    "--package", "-p", "--cfg", "-c", "--info", "-i")  # fmt: skip
# Settings that hold one path each, and the characters that Hydra would take for its own grammar.
PATHS = ("run", "runs", "checkpoint", "output", "files", "sums", "task.teacher", "data.root",
         "data.classes", "data.index", "data.prepared", "data.quarantine")  # fmt: skip
# An address may hold these; with a comma in it, several weights are swept over.
QUOTED = {
    **dict.fromkeys(PATHS, "=#,()[]{}~&"),
    "model.weights": "=#()[]{}~&",
    "teacher.weights": "=#()[]{}~&",
}
LISTS_OF_LAUNCH = ("options", "setup", "env", "volumes")
TEXTS_OF_LAUNCH = ("partition", "account", "name", "namespace", "image", "endpoint", "job_id")
# What a later stage takes over from the config of the run it starts from.
RECORDED = ("data", "clip_sampler", "model", "precision", "eval", "task")


class Call(Protocol):
    """What Hydra calls.

    Attributes:
        sweep: Folder of the sweep; None: there is one run.
        began: When the command began.
    """

    sweep: str | None
    began: float

    def __call__(self, config: DictConfig, /) -> Any:
        """Runs the stage."""


def run_hydra(stage: str, overrides: list[str], call: Call, *, conf: Path) -> None:
    """Composes a stage's config with Hydra and hands it over.

    Args:
        stage: Name of the root YAML.
        overrides: The rest of the command line, Hydra's flags included.
        call: What to do with the config; called once per run of a sweep, whose folder it is told.
        conf: Folder of the shipped YAML files.

    Raises:
        UsageError: A choice, key, value or type is wrong; the message names the nearest valid ones.
        InputError: The run folder cannot be made.
    """
    register_schemas()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and stage not in (*RANKED, "launch"):
        raise UsageError(
            f"vidtrain {stage} is one process, and WORLD_SIZE={world}: run it without torchrun"
        )
    if stage == "launch":
        overrides = _of_launch(overrides)
    if issubclass(SCHEMAS[stage], RunConfig) and "--hydra-help" not in overrides:
        overrides = _record_run(stage, overrides)
    if stage == "train":
        own = map(Path, config_dirs(overrides))
        overrides = choose_teacher(overrides, [conf, *own])
    before = sys.argv
    flags, settings = _in_order(overrides)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us, and we say them in one sentence
    entry = hydra.main(config_path=str(conf), config_name=stage, version_base="1.3")
    try:
        call.sweep, added, elsewhere = sweeping.settings(stage, flags, settings, conf)
        sys.argv = [f"vidtrain {stage}", *flags, *settings, *added]
        with sweeping.stoppable(call.sweep, call.began, elsewhere=elsewhere):
            entry(call)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(explain(error, stage, overrides, conf)) from error
    except OSError as error:
        raise NotHere(
            f"cannot make the run folder {error.filename}: {error.strerror}; "
            "give a folder that can be written with runs="
        ) from error
    finally:
        sys.argv = before


def _of_launch(overrides: list[str]) -> list[str]:
    """Returns the overrides of `vidtrain launch` with its lists and texts as Hydra takes them.

    Raises:
        UsageError: It is not the place to launch from, or no `--` separates the command.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("vidtrain launch starts the processes itself: run it without torchrun")
    known = {f"engine={quoted(stage)}": stage for stage in SCHEMAS}
    inside = next((word for word in overrides[1:] if word in known), None)
    if inside is not None and not any(word.startswith("command=") for word in overrides):
        raise UsageError(f"put -- before {known[inside]}: vidtrain launch ENGINE key=value ... -- "
                         f"{known[inside]} key=value ...")  # fmt: skip
    return listed(overrides, LISTS_OF_LAUNCH, TEXTS_OF_LAUNCH)


def register_schemas() -> None:
    """Makes the dataclasses known to Hydra as `STAGE_schema`."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    store.store(name="recorded_run", node={})


def to_objects(cfg: DictConfig) -> Any:
    """Returns the dataclasses of a composed config; open nodes become plain dicts and lists.

    Raises:
        UsageError: A mandatory value is missing.
    """
    added = sorted(_added(cfg, OmegaConf.get_type(cfg)))
    if added:
        raise UsageError(f"{', '.join(added)} is not a setting (see --help and --cfg job)")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given: add {missing[0]}=VALUE")
    return OmegaConf.to_object(cfg)


def _in_order(words: list[str]) -> tuple[list[str], list[str]]:
    """Returns Hydra's flags and the settings apart: its parser wants all settings in one block.

    Paths are quoted, since Hydra's grammar gives a meaning to `=`, `,` and brackets in them.
    """
    flags: list[str] = []
    settings: list[str] = []
    for word in words:
        follows = bool(flags) and flags[-1] in FLAGS_WITH_VALUE
        if word.startswith("--") or re.fullmatch(r"-[a-z]+", word) or follows:
            flags.append(word)
            continue
        key, equals, value = word.partition("=")
        if set(value) & set(QUOTED.get(key, "")) and value[:1] not in "'\"":
            word = f"{key}{equals}'{value}'"
        settings.append(word)
    return flags, settings


def leave_no_empty_folder(cfg: DictConfig) -> None:
    """Takes back the run folder that Hydra made, if the run failed before it wrote anything."""
    named = cfg.get("run_dir") or cfg.get("run")
    if named is None:
        return
    folder = Path(named)
    with contextlib.suppress(OSError):  # not empty: it stays
        folder.rmdir()
        if folder.resolve().parent == Path("runs").resolve():  # what a person named is left alone
            folder.parent.rmdir()


def _added(cfg: DictConfig, schema: Any, prefix: str = "") -> list[str]:
    """Returns the keys that `+key=value` added beside a dataclass's fields."""
    if not dataclasses.is_dataclass(schema):
        return []
    known = {field.name for field in dataclasses.fields(schema)}
    found = [f"{prefix}{key!s}" for key in cfg if str(key) not in known]
    for key in known:
        child = cfg._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            found += _added(child, OmegaConf.get_type(child), f"{prefix}{key}.")
    return found


def _record_run(stage: str, overrides: list[str]) -> list[str]:
    """Puts the nodes of the run's config under this stage's, so that overrides still win.

    Returns:
        The overrides as Hydra takes them. Where a model and its weights are named in place of a
        run, the folder that results go to is added.
    """
    values = dict(o.split("=", 1) for o in overrides if "=" in o and not o.startswith("-"))
    folder = values.get("run")
    if {"model", "model.weights", "data"} <= values.keys() and "checkpoint" not in values:
        return [*overrides, *_folder_of_weights(values), "checkpoint=weights"]
    if "model.weights" in values:
        raise UsageError(
            f"model.weights is what a training starts from, and vidtrain {stage} run=FOLDER takes "
            "the run's own; leave it out, or give model=, model.weights= and data= without run="
        )
    if folder is None:
        raise UsageError(
            f"vidtrain {stage} needs a run folder: run=FOLDER{here_are()}; or, for weights "
            "as they were published, model=NAME model.weights=published data=NAME"
        )
    folder = folder.strip("'\"")
    file = Path(folder) / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError:
        raise NotHere(
            f"run={folder} is not a run folder: there is no {file}{here_are(folder)}"
        ) from None
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict) or not all(
        isinstance(config.get(k), dict) for k in RECORDED if k != "task"
    ):
        raise InputError(f"{file} is not the config of a run: it lacks one of {RECORDED}")
    nodes = {key: config.get(key) for key in RECORDED if key not in values}
    # The one setting that names a file to write to; a run folder may come from somebody else.
    (nodes.get("data") or {}).pop("index", None)
    if "${" in yaml.safe_dump(nodes):
        raise InputError(f"{file} holds an interpolation (${{...}}); a run's config has none")
    ConfigStore.instance().store(name="recorded_run", node=nodes)
    # A model's YAML brings a clip sampler, which can be overridden; a run's config is plain values.
    adds = "+clip_sampler=" if "model" not in values else "clip_sampler="
    return [re.sub(r"^clip_sampler=", adds, override) for override in overrides]


def _folder_of_weights(values: dict[str, str]) -> list[str]:
    """Returns the override for the folder that results of weights without a run go to."""
    if "run" not in values:
        weights = re.sub(r"[^\w.]+", "-", values["model.weights"]).strip("-")[-60:]
        return [f"run=runs/{Path(values['model']).name}-{values['data']}-{weights}"]
    if (Path(values["run"].strip("'\"")) / "config.yaml").exists():
        raise UsageError(
            f"run={values['run']} is the folder of a run, whose results would be overwritten; "
            "leave it out, or name a new folder for what comes of model.weights"
        )
    return []
