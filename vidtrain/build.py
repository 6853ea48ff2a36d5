"""Where config becomes a training: batches, task, model, optimizer, schedule, average.

What a YAML names with `_target_` is called by `component` (see `targets`), and nowhere else. The
data's part is in `build_data`.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vidtrain import randomness
from vidtrain.build_data import check_range, check_views
from vidtrain.config.model import FinetuneConfig, ModelConfig
from vidtrain.config.parallel import ParallelConfig
from vidtrain.config.train import LoopConfig, TrainConfig
from vidtrain.data.order import draw_weights
from vidtrain.data.plan import Plan, check_batch
from vidtrain.data.video import VideoList
from vidtrain.distributed import World
from vidtrain.errors import UsageError, did_you_mean
from vidtrain.models import anatomy, clip_size, memory
from vidtrain.parallel import shards
from vidtrain.parallel.replicas import replicate
from vidtrain.targets import component, locate
from vidtrain.training.parameters import lr_factor, parameter_groups
from vidtrain.training.timeline import Timeline

OF_THE_OTHER = {
    "ddp": ("reshard", "gather"),
    "fsdp": ("compress", "bucket_mb", "static_graph", "find_unused"),
}
CLASSIFICATION = {"_target_": "vidtrain.tasks.classification.Classification"}


def task_class(node: dict[str, Any] | None) -> Any:
    """Returns what a task's node names, not built; without a node, plain classification."""
    return locate((node or CLASSIFICATION)["_target_"], "task")


def task(node: dict[str, Any] | None, listed: VideoList) -> Any:
    """Returns the task; without a node, plain classification.

    Raises:
        UsageError: Videos have several classes, and the task takes one.
    """
    counts = Counter(label for video in listed.videos for label in video.all_labels)
    num_classes = len(listed.class_names)
    built = component(
        node or CLASSIFICATION, "task", num_classes=num_classes,
        class_counts=tuple(counts[label] for label in range(num_classes)),
    )  # fmt: skip
    if listed.multi_label and not built.multi_label:
        raise UsageError(
            "the data gives a video several classes, and the task tells one: use task=multilabel; "
            "or, where the data set labels segments, as Charades does, data.source.segments=true"
        )
    return built


def check_metric(name: str | None, built: Any) -> None:
    """Refuses a save.metric that validations of the task do not have.

    Raises:
        UsageError: There is no such figure.
    """
    if name is not None and name not in built.metrics:
        hint = did_you_mean(name, built.metrics) or f"it is one of {', '.join(built.metrics)}"
        raise UsageError(f"save.metric={name} is no figure of this task's validation; {hint}")


def check_loop(config: TrainConfig) -> None:
    """Refuses numbers that make no sense, before any work is done.

    Raises:
        UsageError: A value is out of range.
    """
    loop, counts = config.train, ("epochs", "max_steps", "batch_size", "lr_batch",
                                  "log_every_steps", "patience")  # fmt: skip
    check_range("train", loop, **dict.fromkeys(counts, (1, None)), clip_grad_norm=(1e-12, None),
                clip_grad_agc=(1e-12, None), precise_bn=(0, None),
                skip_nonfinite=(0, None))  # fmt: skip
    if loop.accumulate != "auto" and not (type(loop.accumulate) is int and loop.accumulate >= 1):
        raise UsageError(f"train.accumulate={loop.accumulate} must be at least 1, or auto")
    if loop.clip_grad_norm is not None and loop.clip_grad_agc is not None:
        raise UsageError(
            f"train.clip_grad_norm={loop.clip_grad_norm} and train.clip_grad_agc="
            f"{loop.clip_grad_agc} are two ways to clip; set one of them to null"
        )
    check_views("validate", config.validate)
    check_range("save", config.save, keep_last=(1, None), keep_best=(1, None))
    check_range("data", config.data, class_balance=(0, 1), views_per_decode=(1, None))
    check_parallel(config)
    if config.seed < 0:
        raise UsageError(f"seed={config.seed} must be at least 0")


def accumulation(loop: LoopConfig, micro: int, *, world_size: int) -> int:
    """Returns the micro-batches per step that train.micro_batch leads to.

    Raises:
        UsageError: They do not make up the batch, or train.accumulate says otherwise.
    """
    share = micro * world_size
    if micro < 1 or loop.batch_size % share:
        most = loop.batch_size // micro if micro > 0 and loop.batch_size % micro == 0 else 0
        fits = [str(n) for n in range(1, most + 1) if most % n == 0]
        raise UsageError(
            f"train.batch_size={loop.batch_size} is no multiple of train.micro_batch={micro} x "
            f"{world_size} processes; "
            + (f"with it, use {', '.join(fits)} processes" if fits else
               "train.micro_batch must divide train.batch_size")
        )  # fmt: skip
    found = loop.batch_size // share
    if loop.accumulate not in (1, "auto", found):
        raise UsageError(
            f"train.micro_batch={micro} means {found} micro-batches per step, and "
            f"train.accumulate={loop.accumulate} says otherwise; leave one of them out"
        )
    return found


def check_parallel(config: TrainConfig) -> None:
    """Refuses settings of processes that make no sense, or that the chosen kind does not have.

    Raises:
        UsageError: A value is out of range, or would change nothing.
    """
    given, usual = config.parallel, ParallelConfig()
    if given.kind not in OF_THE_OTHER:
        raise UsageError(f"parallel.kind={given.kind} must be one of {', '.join(OF_THE_OTHER)}")
    for key in OF_THE_OTHER[given.kind]:
        if getattr(given, key) != getattr(usual, key):
            raise UsageError(
                f"parallel.{key}={getattr(given, key)} means nothing to parallel={given.kind}; "
                "leave it out"
            )
    check_range("parallel", given, timeout_seconds=(1, None), bucket_mb=(1e-3, None))
    for key in ("compress", "gather"):
        value = getattr(given, key)
        if value not in (None, "bf16"):
            raise UsageError(f"parallel.{key}={value} must be null or bf16")
        if value is not None and config.repro == "strict":
            raise UsageError(f"parallel.{key}={value} rounds what travels; repro=strict does not")
    if given.gather == "bf16" and config.precision.dtype != "bf16":
        raise UsageError("parallel.gather=bf16 lets layers compute in bf16; set precision=bf16 too")
    if given.static_graph and config.train.accumulate != 1:
        raise UsageError(
            f"parallel.static_graph=true fails in torch with train.accumulate="
            f"{config.train.accumulate}; leave it out, or take one micro-batch per step"
        )
    if given.kind == "fsdp":
        for key, value, wanted in (
            ("model.channels_last=true", config.model.channels_last, False),
            ("precision=fp16", config.precision.dtype == "fp16", False),
            ("train.sync_bn=true", config.train.sync_bn, False),
            ("train.clip_grad_agc", config.train.clip_grad_agc, None),
        ):
            if value != wanted:
                raise UsageError(f"{key} is not known to be right with parallel=fsdp; leave it "
                                 "out, or use parallel=ddp")  # fmt: skip


def sharded(config: TrainConfig, network: nn.Module, world: World) -> None:
    """Leaves each process its part of the weights, in place, where parallel=fsdp asks for it."""
    if config.parallel.kind == "fsdp" and world.size > 1:
        blocks = [path for layer in anatomy.layers(network) for path in layer.blocks]
        gather = torch.bfloat16 if config.parallel.gather == "bf16" else None
        shards.shard(network, blocks, world, reshard=config.parallel.reshard, gather=gather)


def replicated(config: TrainConfig, network: nn.Module, world: World) -> nn.Module:
    """Returns the network as it is called in training: wrapped for DDP, or the same."""
    given = config.parallel
    if given.kind == "fsdp":
        return network
    return replicate(
        network, world, bucket_mb=given.bucket_mb, compress=given.compress == "bf16",
        static_graph=given.static_graph, find_unused=given.find_unused,
    )  # fmt: skip


def plan(config: TrainConfig, listed: VideoList, *, world_size: int) -> Plan:
    """Returns the arithmetic of batches.

    Raises:
        UsageError: The global batch does not divide, or no step fits into an epoch.
    """
    loop, views = config.train, config.data.views_per_decode
    assert isinstance(loop.accumulate, int), "settled before"
    check_batch(loop.batch_size, accumulate=loop.accumulate, views=views, world_size=world_size)
    num_videos = len(listed.videos)
    if num_videos * views < loop.batch_size:
        raise UsageError(
            f"train.batch_size={loop.batch_size} is more than the {num_videos} videos of the "
            f"training split{f' x {views} views' * (views > 1)}; use "
            f"train.batch_size={num_videos * views} or less"
        )
    inputs = config.model.input
    shapes = None
    if config.multigrid is not None:
        shapes = component(config.multigrid, "multigrid", num_frames=inputs.num_frames,
                           crop_size=inputs.crop_size)  # fmt: skip
    balance = config.data.class_balance
    return Plan(
        num_videos=num_videos,
        batch_size=loop.batch_size,
        accumulate=loop.accumulate,
        epochs=loop.epochs,
        world_size=world_size,
        views_per_decode=views,
        weights=draw_weights(listed, balance) if balance else None,
        shapes=shapes,
    )


def model(config: ModelConfig, *, num_classes: int, seed: int) -> nn.Module:
    """Returns the network with weights drawn from the seed, on the CPU.

    Raises:
        UsageError: Its settings are wrong, or it does not take the clips that are cut for it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(seed, randomness.INIT))
        network = component(config.build, "model.build", num_classes=num_classes)
    crops = {f"model.input.{key}": getattr(config.input, key)
             for key in ("crop_size", "eval_crop_size")}  # fmt: skip
    clip_size.check_crops(network, crops)
    return network


def fast(config: ModelConfig, network: nn.Module) -> nn.Module:
    """Sets the options for memory and speed on a network that is to run, not to be exported."""
    return memory.apply(network, channels_last=config.channels_last,
                        checkpointing=config.checkpointing, compile=config.compile)  # fmt: skip


def finetune(config: FinetuneConfig, network: nn.Module) -> dict[str, float]:
    """Freezes what is not to be trained; returns factors on the learning rate by parameter name.

    Raises:
        UsageError: A value out of range, or a setting that changes nothing on this network.
    """
    check_range("finetune", config, layer_decay=(1e-9, 1 - 1e-9), head_lr=(1e-9, None))
    wanted = str(config.train_layers)
    if wanted not in ("all", "head") and not wanted.isdecimal():
        raise UsageError(f"finetune.train_layers={wanted} must be all, head, or a number of layers")
    if wanted != "all":
        anatomy.freeze(network, train_layers=0 if wanted == "head" else int(wanted))
    if config.freeze_norm:
        anatomy.freeze_norms(network)
    if config.layer_decay is None and config.head_lr == 1:
        return {}
    decay = 1.0 if config.layer_decay is None else config.layer_decay
    return anatomy.learning_rates(network, layer_decay=decay, head_lr=config.head_lr)


def optimizer(
    node: dict[str, Any], network: nn.Module, loop: LoopConfig, *, lr_scales: dict[str, float]
) -> torch.optim.Optimizer:
    """Returns the optimizer; each of its groups has its base rate, and its share in `lr_scale`."""
    groups = parameter_groups(
        network, no_decay_norm_bias=loop.no_decay_norm_bias, lr_scales=lr_scales
    )
    built = component(node, "optimizer", groups)
    if shards.is_sharded(network) and isinstance(built, torch.optim.SGD):
        for group in built.param_groups:  # torch has no fused kernel for parts of weights
            group["fused"], group["foreach"] = None, True
    factor = lr_factor(loop.lr_rule, loop.batch_size, loop.lr_batch)
    for group in built.param_groups:
        group["base_lr"] = group["lr"] * factor * group["lr_scale"]
    return built


def unclipped(loop: LoopConfig, network: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that adaptive clipping leaves alone: the classifier's."""
    if loop.clip_grad_agc is None:
        return []
    return [network.get_parameter(name) for name in anatomy.head(network)]


def schedule(node: dict[str, Any], timeline: Timeline) -> Callable[[int], float]:
    """Returns the factor on the base learning rate, by optimizer step."""
    return component(node, "schedule", timeline=timeline)
