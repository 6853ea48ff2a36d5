"""Hydra sweeper on Optuna: `vidtrain train -m hydra/sweeper=optuna optimizer.lr=...`.

The search space is written in Hydra's own grammar: `a=1,2`, `choice(...)`, `range(...)`,
`interval(low,high)`, `tag(log,interval(low,high))`. Trials are asked for and told here, and run by
whichever launcher is chosen. They are kept in a file, with which an interrupted sweep goes on.

The package hydra-optuna-sweeper holds to Optuna 2, whose files fail with SQLAlchemy 2. Hydra looks
for plugins below `hydra_plugins` alone. Optuna is imported when a sweep starts, not before.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional  # noqa: UP035 - OmegaConf reads the annotations below

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vidtrain.command.sweeps import INTERRUPTED
from vidtrain.errors import UsageError

MAX_GRID = 10_000


@dataclass
class OptunaSweeperConf:
    """Settings of `hydra.sweeper`.

    Attributes:
        n_trials: Trials in all, those of earlier starts included; a grid may hold fewer.
        n_jobs: Trials that are handed to the launcher together.
        direction: maximize or minimize; null: minimize if save.metric is loss.
        sampler: tpe, random or grid.
        seed: Seed of the sampler.
        startup_trials: Random trials before tpe begins to learn from them.
        storage: Address of Optuna's data base.
        study_name: Name in it.
        params: Search space besides the command line's: key to override text.
    """

    _target_: str = "hydra_plugins.vidtrain_optuna.OptunaSweeper"
    n_trials: int = 20
    n_jobs: int = 1
    direction: Optional[str] = None  # noqa: UP045
    sampler: str = "tpe"
    seed: int = 0
    startup_trials: int = 10
    storage: str = "sqlite:///${hydra.sweep.dir}/optuna.db"
    study_name: str = "sweep"
    params: Optional[Dict[str, Any]] = None  # noqa: UP006, UP045


ConfigStore.instance().store(group="hydra/sweeper", name="vidtrain_optuna", node=OptunaSweeperConf)


class OptunaSweeper(Sweeper):
    """Asks Optuna for trials, has them run, and tells it what came of them."""

    def __init__(self, **settings: Any) -> None:
        """Takes the settings of `OptunaSweeperConf`."""
        self.settings = OptunaSweeperConf(**settings)
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs trials until there are `n_trials`.

        Raises:
            UsageError: Optuna is not installed, or settings do not fit it or the sweep so far.
        """
        optuna = _optuna()
        assert self.hydra_context is not None and self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        extra = [f"{key}={value}" for key, value in (self.settings.params or {}).items()]
        parsed = {o.get_key_element(): o for o in parser.parse_overrides([*extra, *arguments])}
        fixed = [str(o.input_line) for o in parsed.values() if not o.is_sweep_override()]
        space = {k: _distribution(o) for k, o in parsed.items() if o.is_sweep_override()}
        if not space:
            raise UsageError("hydra/sweeper=optuna needs a setting to sweep over, for example "
                             "'optimizer.lr=tag(log,interval(1e-4,1e-2))'")  # fmt: skip
        self.validate_batch_is_legal([[*fixed, *point] for point in _examples(space)])
        grid = _grid(space) if self.settings.sampler == "grid" else None
        wanted = min(self.settings.n_trials, len(grid)) if grid else self.settings.n_trials
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        study = self._study(optuna, fixed)
        waiting = self._unfinished(optuna, study, space)
        while True:
            done = len(study.get_trials(deepcopy=False))
            batch = waiting[: self.settings.n_jobs]
            waiting = waiting[len(batch) :]
            while len(batch) < self.settings.n_jobs and done < wanted:
                batch.append(self._ask(optuna, study, space, grid, done))
                done += 1
            if not batch or not self._run(optuna, study, batch, fixed):
                return

    def _study(self, optuna: Any, fixed: list[str]) -> Any:
        """Opens the sweep so far, or a new one."""
        settings = self.settings
        assert self.config is not None
        metric = OmegaConf.select(self.config, "save.metric")
        direction = settings.direction or ("minimize" if metric == "loss" else "maximize")
        if direction not in ("minimize", "maximize"):
            raise UsageError(
                f"hydra.sweeper.direction={direction}: it must be minimize, maximize or null"
            )
        study = optuna.create_study(
            study_name=settings.study_name, storage=settings.storage, direction=direction,
            load_if_exists=True,
        )  # fmt: skip
        now = {"settings": sorted(fixed), "direction": direction, "sampler": settings.sampler,
               "seed": settings.seed}  # fmt: skip
        earlier = study.user_attrs.get("vidtrain", now)
        if earlier != now:
            changed = ", ".join(f"{k}: {earlier[k]} then, {now[k]} now" for k in now
                                if earlier[k] != now[k])  # fmt: skip
            raise UsageError(
                f"the sweep in {settings.storage} was begun with other settings ({changed}), so "
                "its trials cannot be compared with new ones; give name=ANOTHER"
            )
        study.set_user_attr("vidtrain", now)
        return study

    def _unfinished(self, optuna: Any, study: Any, space: dict[str, Any]) -> list[Any]:
        """Returns the trials that were running when an earlier start ended: they go on."""
        found = []
        for frozen in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            trial = optuna.trial.Trial(study, frozen._trial_id)
            if trial.params.keys() == space.keys():
                found.append(trial)
            else:  # stopped before all its values were drawn, or with another search space
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return found

    def _ask(
        self, optuna: Any, study: Any, space: dict[str, Any], grid: list[Any] | None, number: int
    ) -> Any:
        """Returns a new trial. Its draw depends on the seed, its number and what was told so far.

        So a sweep that was stopped goes on as it would have.
        """
        from numpy.random import SeedSequence  # Optuna needs it too

        settings = self.settings
        seed = int(SeedSequence([settings.seed, number]).generate_state(1)[0])
        if grid is not None:
            study.enqueue_trial(grid[number], skip_if_exists=True)
        if settings.sampler == "tpe":
            study.sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=settings.startup_trials
            )
        elif settings.sampler in ("random", "grid"):
            study.sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            raise UsageError(
                f"hydra.sweeper.sampler={settings.sampler}: it must be tpe, random or grid"
            )
        try:
            return study.ask(fixed_distributions=space)
        except ValueError as error:
            raise UsageError(
                f"Optuna refuses the search space beside the one that the sweep began with: "
                f"{error}; give name=ANOTHER"
            ) from error

    def _run(self, optuna: Any, study: Any, batch: list[Any], fixed: list[str]) -> bool:
        """Has trials run and tells the study.

        Returns:
            Whether the sweep goes on: not after a signal stopped one of them.
        """
        assert self.launcher is not None
        overrides = [
            [*fixed, *(f"{key}={value}" for key, value in trial.params.items()),
             f"hydra.sweep.subdir=trial_{trial.number:04d}"]
            for trial in batch
        ]  # fmt: skip
        results = self.launcher.launch(overrides, initial_job_idx=batch[0].number)
        values = [_value(result) for result in results]
        for trial, value in zip(batch, values, strict=True):
            if isinstance(value, float):
                study.tell(trial, value)
            elif value != INTERRUPTED:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return INTERRUPTED not in values


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "hydra/sweeper=optuna needs Optuna: pip install 'vidtrain[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _value(result: JobReturn) -> float | str | None:
    """Returns a run's objective, INTERRUPTED, or None where it failed or has no figure."""
    try:
        value = result.return_value
    except Exception:  # of Hydra, before the run's own code began
        return None
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return INTERRUPTED if value == INTERRUPTED else None


def _distribution(override: Override) -> Any:
    """Returns what Optuna draws a setting from.

    Raises:
        UsageError: The sweep is none that it knows.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    given, text = override.value(), override.input_line
    tags = set(getattr(given, "tags", ()))
    if tags - {"log"}:
        raise UsageError(f"{text}: the tags {sorted(tags - {'log'})} mean nothing; log does")
    try:
        if isinstance(given, IntervalSweep):
            assert given.start is not None and given.end is not None
            log = "log" in tags
            if isinstance(given.start, int) and isinstance(given.end, int):
                return IntDistribution(given.start, given.end, log=log)
            return FloatDistribution(given.start, given.end, log=log)
        if tags:
            raise UsageError(f"{text}: log goes with interval(low,high) alone")
        if isinstance(given, RangeSweep) and not given.shuffle:
            values = sorted(given.range())
            if all(isinstance(value, int) for value in values):
                return IntDistribution(values[0], values[-1], step=abs(int(given.step)))
            return FloatDistribution(
                float(values[0]), float(values[-1]), step=abs(float(given.step))
            )
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise UsageError(f"{text}: {error}") from error


def _examples(space: dict[str, Any]) -> list[list[str]]:
    """Returns points of the search space that name every choice once, to be checked at once."""
    lists = [[f"{key}={value}" for value in getattr(where, "choices", [getattr(where, "low", 0)])]
             for key, where in space.items()]  # fmt: skip
    longest = max(map(len, lists))
    return [[values[min(i, len(values) - 1)] for values in lists] for i in range(longest)]


def _grid(space: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns all points of a search space, the last setting varying fastest."""
    axes: list[Sequence[Any]] = []
    for key, where in space.items():
        step = getattr(where, "step", None)
        if hasattr(where, "choices"):
            axes.append(where.choices)
        elif step is None:
            raise UsageError(
                f"hydra.sweeper.sampler=grid: {key} is an interval, which has no end of values; "
                "give range(...) or values"
            )
        else:
            count = round((where.high - where.low) / step) + 1
            axes.append([where.low + index * step for index in range(count)])
    if math.prod(map(len, axes)) > MAX_GRID:
        raise UsageError(f"hydra.sweeper.sampler=grid: more than {MAX_GRID} points")
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]
