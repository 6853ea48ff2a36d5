"""Every YAML composes, satisfies the schema, and binds to the function it names."""

import inspect
from pathlib import Path
from typing import Any

import hydra
import pytest
from conftest import REPO

from vidtrain import cli, targets
from vidtrain.command.composing import register_schemas, to_objects
from vidtrain.config import SCHEMAS, TrainConfig

CONF = REPO / "conf"
CHOICES = sorted(p for p in CONF.glob("*/*.yaml"))
BASE = ["run_dir=-", "data.root=/nowhere"]


def compose(stage: str, *overrides: str) -> Any:
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return to_objects(hydra.compose(stage, overrides=list(overrides)))


def test_stages_are_yaml_files_functions_and_schemas() -> None:
    names = {p.stem for p in CONF.glob("*.yaml")}
    modules = {p.stem for p in (REPO / "vidtrain" / "stages").glob("*.py")} - {"__init__"}
    assert names == modules == set(SCHEMAS) == set(cli.stages())
    assert all(len(text) > 20 for text in cli.stages().values())


@pytest.mark.parametrize("path", CHOICES, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_choice_composes_and_binds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    overrides = [f"{path.parent.name}={path.stem}"]
    if path.parent.name == "clip_sampler":
        overrides.append("model=slow_r50")
    config: TrainConfig = compose("train", *BASE, *overrides)
    inputs = config.model.input
    spec = {"clip_frames": 1, "sampling_rate": 1, "target_fps": None}
    bind(config.data.source, "root", split="train", class_names=None)
    bind(config.clip_sampler.train, **spec)
    bind(config.clip_sampler.eval, **spec, num_clips=1)
    bind(config.model.build, num_classes=2)
    bind(config.optimizer, [])
    bind(config.schedule, timeline=None)
    bind(config.task, num_classes=2, class_counts=None)
    if config.average is not None:
        bind(config.average, None, timeline=None)
    if config.mix is not None:
        targets.component(config.mix, "mix")
    assert inputs.crop_size <= min(inputs.short_side)
    assert inputs.eval_crop_size <= inputs.eval_short_side
    first = path.read_text().splitlines()
    assert any(line.startswith("# ") and "@package" not in line for line in first[:2]), path


def bind(node: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    target = targets.locate(node["_target_"], "node")
    settings = {key: value for key, value in node.items() if key != "_target_"}
    inspect.signature(target).bind(*args, **settings, **kwargs)


def test_choice_names_agree_with_their_files() -> None:
    for group in ("data", "model"):
        for path in (CONF / group).glob("*.yaml"):
            config = compose("train", *BASE, f"{group}={path.stem}")
            assert getattr(config, group).name == path.stem
