"""The command line: a stage name leads to its root YAML, Hydra composes it, its function runs.

Nothing heavy is imported before a stage runs, so that `vidtrain --help` answers at once.
Exit codes: 0 done, 1 failed, 2 wrong command line or config, 75 stopped by a signal with the state
saved, 128 + signal when interrupted otherwise.
"""

import importlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vidtrain
from vidtrain import interrupt, words
from vidtrain.errors import InputError, Interrupted, UsageError, did_you_mean

FIRST_STAGES = ("train", "eval", "export", "stats", "check", "index", "prepare")
# A bare word after these stages is the value of this key: `vidtrain models 'x3d*'`.
BARE_WORD = {"models": "pattern", "benchmark": "what", "launch": "engine"}
# Bare words after these stages are run folders.
BARE_FOLDERS = ("plot", "repro")
# Flags of a stage that are short for a setting.
FLAGS = {
    "models": {"--json": "json=true", "--detail": "detail=true"},
    "doctor": {"--json": "json=true"},
    "launch": {"--dry-run": "dry_run=true"},
}
# What follows `--` after this stage is the command of another.
LAUNCH = "launch"

USAGE = """vidtrain {version}: training and evaluation for video understanding

usage: vidtrain STAGE [key=value ...]

stages:
{stages}

  vidtrain train                                        the embedded data, in minutes on a CPU
  vidtrain train model=slowfast_r50 data=folder data.root=/data/mine
  torchrun --nproc-per-node=8 -m vidtrain train ...     the same command on many GPUs
  vidtrain launch slurm nodes=2 ... -- train ...        and on a cluster
  vidtrain eval run=runs/NAME eval.num_clips=10 eval.num_crops=3
  vidtrain export run=runs/NAME format=onnx

  vidtrain STAGE --help      what a stage does, its examples, choices and settings
  vidtrain STAGE --cfg job   the config as it would run
"""


class _Stop(BaseException):
    """Carries an interruption past Hydra, which collects ordinary exceptions of a sweep's runs."""


def main() -> None:
    """Entry point of the `vidtrain` command."""
    # Read when torch loads: its threads sleep while idle, and leave the cores to the loader.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    interrupt.leave_at_once(75 if {*sys.argv[1:2]} & {*interrupt.RESUMED, LAUNCH} else 0)
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Runs one command line and returns its exit code; errors are printed, not raised."""
    try:
        return _dispatch(argv)
    except UsageError as error:
        _tell_torchrun(error)
        return _complain(str(error), 2)
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except InputError as error:
        _tell_torchrun(error)
        return _complain(str(error), 1)
    except Interrupted as error:
        return _complain(str(error), error.code)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Exception as error:  # a bug, ours or a library's: the traceback is what helps
        _tell_torchrun(error)
        traceback.print_exc()
        return _complain("failed, see above", 1)


def _tell_torchrun(error: Exception) -> None:
    """Leaves an error where torchrun looks for it, so that its report has rank and traceback."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        handler = get_error_handler()
        handler.initialize()
        handler.record_exception(error)


def conf_dir() -> Path:
    """Returns the folder of the shipped YAML files: inside the wheel, or beside the package."""
    inside = Path(__file__).resolve().parent / "conf"
    return inside if inside.is_dir() else inside.parents[1] / "conf"


def stages() -> dict[str, str]:
    """Returns each stage's name with the first comment line of its root YAML."""
    found = {path.stem: _comment(path)[0] for path in conf_dir().glob("*.yaml")}
    order = [*FIRST_STAGES, *sorted(found.keys() - set(FIRST_STAGES))]
    return {name: found[name] for name in order if name in found}


def _dispatch(argv: list[str]) -> int:
    known = stages()
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = "\n".join(f"  {name:10} {text}" for name, text in known.items())
        print(USAGE.format(version=vidtrain.__version__, stages=lines), end="")
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"vidtrain {vidtrain.__version__}")
        return 0
    stage, rest, command = argv[0], argv[1:], None
    if stage == LAUNCH and "--" in rest:
        end = rest.index("--")
        rest, command = rest[:end], rest[end + 1 :]
    if stage not in known:
        hint = did_you_mean(stage, known, cutoff=0.5) or f"the stages are {', '.join(known)}"
        if "=" in stage:
            hint = f"a stage comes first: vidtrain train {stage}"
        raise UsageError(f"{stage!r} is not a stage; {hint}")
    if "-h" in rest or "--help" in rest:
        print(_stage_help(stage, rest), end="")
        return 0
    rest = _overrides(stage, rest)
    if command is not None:
        command[1:] = _overrides(command[0], command[1:]) if command else []
        rest.append(f"command=[{','.join(map(words.quoted, command))}]")
    _run_stage(stage, rest)
    return 0


def _overrides(stage: str, given: list[str]) -> list[str]:
    """Returns the words of a command line as Hydra takes them."""
    rest = [FLAGS.get(stage, {}).get(word, word) for word in given]
    if stage in BARE_FOLDERS:
        return words.join_folders(rest)
    key = BARE_WORD.get(stage)
    if key is None:
        return rest
    return [
        f"{key}={words.quoted(word)}"
        if word[:1] not in "-+~" and "=" not in word and last[:1] != "-"
        else word
        for last, word in zip(["", *rest], rest, strict=False)
    ]


@dataclass
class Call:
    """What Hydra calls for each run: here or, sent there by a launcher, in another process.

    Attributes:
        stage: Name of the stage.
        argv: The command line as it is recorded.
        sweep: Folder of the sweep; None: there is one run.
        began: When this command began.
        pid: The process that it began in.
        failures: What went wrong in the one run.
    """

    stage: str
    argv: list[str]
    sweep: str | None = None
    began: float = field(default_factory=time.time)
    pid: int = field(default_factory=os.getpid)
    failures: list[Exception] = field(default_factory=list)

    def __call__(self, config: Any) -> Any:
        """Runs the stage; in a sweep notes in the run's folder how it ended.

        Returns:
            What the stage returns. In a sweep None where it failed and, in another process than the
            sweep's, `sweeps.INTERRUPTED` where a signal stopped it.
        """
        from vidtrain.command import composing

        if self.sweep is not None:
            return self._in_sweep(config)
        try:
            function = self._function()
            if self.stage != LAUNCH:  # which takes over itself when it has looked through all
                interrupt.started()
            return function(composing.to_objects(config))
        except Interrupted as error:
            raise _Stop(error) from error
        except Exception as error:  # Hydra would add its own lines to the message
            self.failures.append(error)
            composing.leave_no_empty_folder(config)
            return None

    def _function(self) -> Callable[[Any], Any]:
        module = importlib.import_module(f"vidtrain.stages.{self.stage}")
        function: Callable[[Any], Any] = getattr(module, self.stage)
        return function

    def _in_sweep(self, config: Any) -> Any:
        from vidtrain.command import composing, sweeping, sweeps

        interrupt.started()
        here = os.getpid() == self.pid
        if not here and sweeping.stopping(str(self.sweep), self.began):
            return sweeps.INTERRUPTED
        sys.argv = self.argv
        run = sweeping.begin(self.began)
        try:
            objects = composing.to_objects(config)
            run.record.metric = sweeping.compared_by(objects)
            value = self._function()(objects)
            run.end("done")
            return value
        except Interrupted as error:
            run.end(sweeps.INTERRUPTED, str(error))
            if here:
                raise _Stop(error) from error  # ends the sweep
            _complain(str(error), error.code)
            return sweeps.INTERRUPTED
        except KeyboardInterrupt:
            run.end(sweeps.INTERRUPTED, "interrupted")
            raise
        except Exception as error:  # the other runs go on
            if not isinstance(error, InputError):
                traceback.print_exc()
            run.end("failed", str(error) or type(error).__name__)
            _complain(f"run {run.folder.name} of the sweep failed: {error}", 1)
            return None
        finally:
            sweeping.update(self.stage, str(self.sweep))


def _run_stage(stage: str, overrides: list[str]) -> None:
    from vidtrain.command import composing, sweeping  # import Hydra: not for --help

    call = Call(stage, [f"vidtrain {stage}", *overrides])
    try:
        composing.run_hydra(stage, overrides, call, conf=conf_dir())
    except _Stop as stop:
        raise stop.args[0] from None
    finally:
        failed, interrupted = sweeping.end(stage, call.sweep, call.began) if call.sweep else (0, 0)
    if call.failures:
        raise call.failures[-1]
    if interrupted:
        raise Interrupted(
            signal.SIGTERM, f"{interrupted} run(s) of the sweep were stopped by a signal; the "
            "same command goes on from there", saved=True,
        )  # fmt: skip
    if failed:
        raise InputError(f"{failed} run(s) of the sweep in {call.sweep} failed, see the table")


def _stage_help(stage: str, argv: list[str]) -> str:
    root = conf_dir() / f"{stage}.yaml"
    comment = "\n".join(_comment(root))
    text = [f"vidtrain {stage}: {comment}\n"]
    folders = [conf_dir(), *(Path(p) for p in words.config_dirs(argv))]
    body = root.read_text("utf-8")
    groups = [
        g.name
        for g in sorted(conf_dir().iterdir())
        if g.is_dir() and g.name != "hydra" and re.search(rf"^[^#]*\b{g.name}:", body, re.M)
    ]
    if "model:" in body:
        groups.insert(0, "clip_sampler")
    for group in groups:
        names = sorted({p.stem for f in folders for p in (f / group).glob("*.yaml")})
        text.append(f"  {group}=  {' '.join(names)}")
    sweep = f"  vidtrain {stage} -m KEY=A,B    one run per value\n" if stage == "train" else ""
    text.append(
        f"\n  vidtrain {stage} --cfg job     all settings and their values\n{sweep}"
        "  --config-dir DIR              adds your own model/, data/ ... YAML files\n"
        "  --hydra-help                  Hydra's own flags\n"
    )
    return "\n".join(text)


def _comment(path: Path) -> list[str]:
    lines = path.read_text("utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line[1:].removeprefix(" ") for line in lines[:end]] or [""]


def _complain(text: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"rank {rank}: "
    # The line's end in the same write: other processes speak at the same time.
    print(f"vidtrain: {who}{text}\n", end="", file=sys.stderr, flush=True)
    return code
