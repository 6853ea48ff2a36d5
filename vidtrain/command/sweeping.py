"""A sweep between the command line and Hydra: where its runs go, how each began and ended."""

import json
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from vidtrain import targets
from vidtrain.command import sweeps
from vidtrain.config import TrainConfig
from vidtrain.errors import Interrupted, UsageError
from vidtrain.words import config_dirs

# Flags with which Hydra shows something and runs nothing.
SHOWING = {"--cfg", "-c", "--info", "-i", "--hydra-help"}


def settings(
    stage: str, flags: list[str], words: list[str], conf: Path
) -> tuple[str | None, list[str], bool]:
    """Returns where the runs of a sweep go, and how.

    Each run's folder is named by what is swept over, and nothing else. All runs are in one folder,
    whatever it is that they differ by.

    Returns:
        The sweep's folder, None where this is no sweep; settings to be added to the others; whether
        a launcher has the runs done by other processes.
    """
    if not {"-m", "--multirun"} & set(flags) or SHOWING & set(flags):
        return None, [], False
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a sweep (-m) runs on one process; start torchrun once for each value")
    parsed = OverridesParser.create().parse_overrides(words)
    swept = {o.key_or_group for o in parsed if o.is_sweep_override()}
    fixed = {o.key_or_group: str(o.input_line) for o in parsed if not o.is_sweep_override()}
    keys = sorted(key for key in fixed.keys() - swept if not key.startswith("hydra"))
    added = [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(keys)}]"]
    groups = sorted(swept & {"model", "data"})
    if groups and "name" not in fixed.keys() | swept:  # the name is made of theirs
        fixed["name"] = f"name=sweep-{'-'.join(groups)}"
    folders = [f"file://{Path(folder).resolve()}" for folder in config_dirs(flags)]
    paths = [] if "hydra.searchpath" in fixed else [f"hydra.searchpath={json.dumps(folders)}"]
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        cfg = hydra.compose(stage, [*fixed.values(), *paths], return_hydra_config=True)
        if stage == "train" and cfg.train.dry_run:
            raise UsageError(
                "train.dry_run=true tries one training, and a sweep (-m) has several; try each by "
                "itself, without -m"
            )
        folder = str(cfg.hydra.sweep.dir)
        elsewhere = not str(cfg.hydra.launcher._target_).endswith(".BasicLauncher")
    return folder, [*added, f"hydra.sweep.dir={json.dumps(folder)}"], elsewhere


@contextmanager
def stoppable(folder: str | None, began: float, *, elsewhere: bool) -> Iterator[None]:
    """Passes Ctrl-C and SIGTERM on to the runs of a sweep in other processes of this machine.

    They save their state and end; runs that have not begun do not begin. A second Ctrl-C ends all
    of it at once. Runs in this process see to signals themselves.

    Raises:
        Interrupted: At the end, if the sweep was stopped so.

    Args:
        folder: Of the sweep; None: there is none.
        began: When this start of it began.
        elsewhere: Whether its runs are in other processes.
    """
    if folder is None or not elsewhere:
        yield
        return
    sweep, told = Path(folder), False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal told
        if told and signum == signal.SIGINT:
            raise KeyboardInterrupt
        told = True
        sweep.mkdir(parents=True, exist_ok=True)
        (sweep / sweeps.STOPPING).write_text(repr(began), "utf-8")
        for record in (row.record for row in sweeps.rows(sweep)):
            if (record.began, record.state, record.host) == (began, "running", platform.node()):
                with suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        (sweep / sweeps.STOPPING).unlink(missing_ok=True)
    if told:
        raise Interrupted(
            signal.SIGTERM, "the sweep is stopped; the same command goes on from there", saved=True
        )


def stopping(folder: str, began: float) -> bool:
    """Returns whether a start of a sweep was told to end."""
    try:
        return (Path(folder) / sweeps.STOPPING).read_text("utf-8") == repr(began)
    except OSError:
        return False


def begin(began: float) -> sweeps.Running:
    """Opens the record of the run that Hydra is at."""
    job = HydraConfig.get().job
    fixed = set(job.config.override_dirname.exclude_keys)
    parsed = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    swept = {o.key_or_group: str(o.input_line).split("=", 1)[-1] for o in parsed
             if o.key_or_group not in fixed}  # fmt: skip
    folder = Path(HydraConfig.get().runtime.output_dir)
    return sweeps.Running(folder, sweeps.Record(swept, int(job.num), began))


def compared_by(config: Any) -> str | None:
    """Returns the figure that runs of a sweep are compared by, if the stage trains."""
    if not isinstance(config, TrainConfig):
        return None
    if config.save.metric:
        return config.save.metric
    node = config.task if isinstance(config.task, dict) else {}
    return getattr(targets.locate(str(node.get("_target_")), "task"), "metric", None)


def update(stage: str, folder: str) -> list[sweeps.Row]:
    """Writes the table anew, so that it is there while the sweep runs; returns its rows."""
    found = sweeps.rows(Path(folder))
    if found and stage == "train":
        sweeps.write_table(Path(folder), found)
    return found


def end(stage: str, folder: str, began: float) -> tuple[int, int]:
    """Writes and prints the table of a sweep.

    Args:
        stage: Name of the stage; train alone has a table.
        folder: Of the sweep.
        began: When this start of it began.

    Returns:
        How many runs of this start failed, and how many a signal stopped.
    """
    found = update(stage, folder)
    if found and stage == "train":
        print(f"\n{sweeps.shown(found)}\n\nthis table: {folder}/{sweeps.MARKDOWN}, "
              f"{folder}/{sweeps.CSV}", flush=True)  # fmt: skip
    states = [row.record.state for row in found if row.record.began == began]
    return states.count("failed"), states.count(sweeps.INTERRUPTED)
