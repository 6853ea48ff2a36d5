"""Between the command line and Hydra: schemas, a run's recorded config, errors a person can use."""

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
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from vidtrain import sweeping
from vidtrain.config import SCHEMAS, RunConfig
from vidtrain.errors import InputError, UsageError, did_you_mean
from vidtrain.teacher_choice import choose_teacher

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
    if issubclass(SCHEMAS[stage], RunConfig) and "--hydra-help" not in overrides:
        overrides = _record_run(stage, overrides)
    if stage == "train":
        pairs = zip(overrides, [*overrides[1:], ""], strict=True)
        own = [Path(value) for flag, value in pairs if flag in ("--config-dir", "-cd")]
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
        raise InputError(
            f"cannot make the run folder {error.filename}: {error.strerror}; "
            "give a folder that can be written with runs="
        ) from error
    finally:
        sys.argv = before


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
        there = sorted(p.parent for p in Path("runs").glob("*/config.yaml"))
        hint = f"; here are {', '.join(map(str, there))}" if there else ""
        raise UsageError(
            f"vidtrain {stage} needs a run folder: run=FOLDER{hint}; or, for weights as they were "
            "published, model=NAME model.weights=published data=NAME"
        )
    file = Path(folder.strip("'\"")) / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"run={folder} is not a run folder: there is no {file}") from None
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


def explain(error: Exception, stage: str, overrides: list[str], conf: Path) -> str:
    """Returns one sentence for a person: what is wrong, and the nearest valid names."""
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
        return f"{group}={name} is not a choice; {_nearest(name, options)}"
    for link in chain:
        if isinstance(link, ValidationError) and link.full_key:
            return _explain_value(link, overrides)
    key = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'",
                    text)  # fmt: skip
    if key:
        return (
            f"{key[1]} is not a setting of vidtrain {stage}; {_nearest(key[1], _keys(stage, conf))}"
        )
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} does not parse: {str(error).splitlines()[0]}"
    said = next((str(link).strip() for link in chain if str(link).strip()), type(error).__name__)
    return f"{said.splitlines()[0]} (see vidtrain {stage} --help)"


def _explain_value(error: ValidationError, overrides: list[str]) -> str:
    key = str(error.full_key)
    given = next((o for o in overrides if o.lstrip("+").startswith(f"{key}=")), None)
    hint = getattr(error, "ref_type", None) or getattr(error, "type_hint", None)
    reason = str(error.msg or error).splitlines()[0]
    wanted = {"Integer": "int", "Float": "float"}
    found = re.search(r"Value '(.*)' of type '(\w+)' could not be converted to (\w+)", reason)
    if found:
        return f"{key}={found[1]!r}: expected {wanted.get(found[3], found[3])}, got {found[2]}"
    flag = re.search(r"Value '(.*)' is not a valid bool \(type (\w+)\)", reason)
    if flag:
        return f"{key}={flag[1]!r}: expected bool (true or false), got {flag[2]}"
    return f"{given or key}: {reason}" + (f" (expected {hint})" if hint else "")


def _keys(stage: str, conf: Path) -> list[str]:
    """Returns every key and group that the stage knows with its default choices."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        cfg = hydra.compose(stage)
    groups = [p.name for p in conf.iterdir() if p.is_dir()]
    return sorted({*groups, *_leaves(OmegaConf.to_container(cfg, resolve=False), "")})


def _leaves(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, dict) or not node:
        return [prefix]
    dotted = f"{prefix}." if prefix else ""
    return [leaf for key, child in node.items() for leaf in _leaves(child, f"{dotted}{key}")]


def _nearest(word: str, names: list[str]) -> str:
    near = did_you_mean(word, names)
    if near:
        return near
    elsewhere = [name for name in names if name.split(".")[-1] == word.split(".")[-1]][:3]
    if elsewhere:  # a right last part at a wrong place
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"it must be one of {', '.join(names[:40])}"
