"""List the models: what they take and how big they are."""

import fnmatch
import json
from typing import Any

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from rich.console import Console
from rich.table import Table

from vidtrain import build
from vidtrain.composing import to_objects
from vidtrain.config import ModelConfig, ModelsConfig
from vidtrain.errors import UsageError, did_you_mean


def models(config: ModelsConfig) -> None:
    """Prints a table, or JSON, of the models whose names match; users' own YAML files included.

    Raises:
        UsageError: No model matches.
    """
    pattern = config.pattern if set("*?[") & set(config.pattern) else f"*{config.pattern}*"
    loader = GlobalHydra.instance().config_loader()
    names = loader.get_group_options("model", results_filter=ObjectType.CONFIG)
    matching = fnmatch.filter(names, pattern)
    if not matching:
        hint = did_you_mean(config.pattern, names) or f"there are {', '.join(names)}"
        raise UsageError(f"no model matches {config.pattern!r}; {hint}")
    rows = [_row(name) for name in matching]
    if config.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(
        "model", "family", "clip (frames x rate)", "train crop", "eval crop", "Mparams (400)"
    )
    for row in rows:
        table.add_row(
            row["name"], row["family"], f"{row['num_frames']} x {row['sampling_rate']}",
            f"{row['crop_size']}", f"{row['eval_crop_size']}", f"{row['params_M']:.2f}",
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    console.print("use one with: vidtrain train model=NAME")


def _row(name: str) -> dict[str, Any]:
    """Returns what is told of one model; its parameters are counted, for 400 classes."""
    cfg = hydra.compose("train", overrides=[f"model={name}", "run_dir=-"])
    found: ModelConfig = to_objects(cfg).model
    try:
        with torch.device("meta"):  # no memory, no time; but not every network can be built so
            network = build.model(found, num_classes=400, seed=0)
    except (RuntimeError, NotImplementedError):
        network = build.model(found, num_classes=400, seed=0)
    inputs = found.input
    return {
        "name": name,
        "family": found.family,
        "num_frames": inputs.num_frames,
        "sampling_rate": inputs.sampling_rate,
        "crop_size": inputs.crop_size,
        "eval_crop_size": inputs.eval_crop_size,
        "mean": list(inputs.mean),
        "std": list(inputs.std),
        "params_M": sum(p.numel() for p in network.parameters()) / 1e6,
    }
