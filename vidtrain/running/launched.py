"""The command that `vidtrain launch` starts elsewhere: composed and looked through here."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from vidtrain import build
from vidtrain.command import composing, sweeping
from vidtrain.config import RANKED, SCHEMAS
from vidtrain.config.launch import LaunchConfig
from vidtrain.config.train import TrainConfig
from vidtrain.data.plan import check_batch
from vidtrain.errors import UsageError, did_you_mean
from vidtrain.report.terminal import counted

ALONE = {"benchmark", "repro"}  # which start processes of their own
HINT = "vidtrain launch ENGINE key=value ... -- train key=value ..."


@dataclass
class Command:
    """A vidtrain command that is composed here and run elsewhere.

    Attributes:
        stage: Name of the stage.
        words: Its overrides.
        name: Of the run, or else the stage's.
        folder: That it writes to, as far as it has one.
        composed: Its settings.
        sweep: Set by `composing`.
        began: Likewise.
        failures: What went wrong.
    """

    stage: str
    words: list[str]
    name: str = ""
    folder: Path = Path()
    composed: Any = None
    sweep: str | None = None
    began: float = field(default_factory=time.time)
    failures: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Calls it by what it says itself, or its stage, as long as nothing is composed."""
        named = [word.removeprefix("name=") for word in self.words if word.startswith("name=")]
        self.name = named[-1] if named and self.stage == "train" else f"vidtrain-{self.stage}"

    def compose(self) -> None:
        """Composes it as the stage would.

        Raises:
            UsageError: It would not run.
            InputError: It goes by a run that is not here.
        """
        sources = HydraConfig.get().runtime.config_sources
        conf = Path(next(source.path for source in sources if source.provider == "main"))
        GlobalHydra.instance().clear()  # of the composition of the stage `launch`
        composing.run_hydra(self.stage, self.words, self, conf=conf)
        if self.failures:
            raise self.failures[0]

    def __call__(self, cfg: Any) -> None:
        """Takes name and folder from the composed config."""
        try:
            self.composed = composing.to_objects(cfg)
            self.folder = Path(str(cfg.get("run") or HydraConfig.get().run.dir))
            if self.stage == "train":
                self.name = str(cfg.get("name") or self.name)
        except Exception as error:  # Hydra would add its own lines to the message
            self.failures.append(error)
        finally:
            composing.leave_no_empty_folder(cfg)


def check_command(config: LaunchConfig) -> None:
    """Refuses what cannot be started.

    Raises:
        UsageError: The message names it.
    """
    if not config.command:
        raise UsageError(f"what is to be started? {HINT}")
    stage, words = config.command[0], config.command[1:]
    known = set(SCHEMAS) - {"launch"}
    if stage not in known:
        hint = did_you_mean(stage, known, cutoff=0.5) or f"it is one of {', '.join(sorted(known))}"
        raise UsageError(f"{stage!r} after -- is not a stage; {hint}")
    if stage in ALONE:
        raise UsageError(f"vidtrain {stage} starts processes of its own; run it as it is")
    shown = ({"-h", "--help"} | sweeping.SHOWING) & set(words)
    if shown:
        raise UsageError(f"{shown.pop()} shows something and runs nothing: vidtrain {stage} ...")
    if {"-m", "--multirun"} & set(words):
        raise UsageError("a sweep submits its own jobs: vidtrain train -m hydra/launcher=slurm ...")
    if stage not in RANKED:
        for key, value in (("nodes", config.nodes), ("processes_per_node",
                           config.processes_per_node or "1")):  # fmt: skip
            if str(value) != "1":
                raise UsageError(f"{key}={value}: vidtrain {stage} is one process; leave it out")


def check_training(config: TrainConfig, *, nodes: tuple[int, int], processes: int) -> None:
    """Refuses settings of a training that every process would refuse.

    Args:
        config: The training.
        nodes: Least and largest number of machines.
        processes: Of each machine.

    Raises:
        UsageError: A value is out of range, or the batch does not divide at a number of machines.
    """
    build.check_loop(config)
    loop = config.train
    for count in range(nodes[0], nodes[1] + 1):
        try:
            accumulate = 1 if loop.accumulate == "auto" else loop.accumulate
            if loop.micro_batch is not None:
                accumulate = build.accumulation(
                    loop, loop.micro_batch, world_size=count * processes
                )
            check_batch(loop.batch_size, accumulate=accumulate,
                        views=config.data.views_per_decode,
                        world_size=count * processes)  # fmt: skip
        except UsageError as error:
            each = counted(processes, "process", "processes")
            raise UsageError(f"{error} (with {counted(count, 'machine')} of {each})") from None
