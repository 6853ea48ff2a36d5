"""Options for memory and speed: the same numbers, less memory, a word where they cannot help."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO, loaded, vidtrain
from omegaconf import OmegaConf
from test_distributed import losses
from torch import nn

from vidtrain.errors import UsageError
from vidtrain.models import memory
from vidtrain.models.c3d import c3d
from vidtrain.models.tsn import tsn
from vidtrain.targets import component
from vidtrain.training.averaging import ema
from vidtrain.training.timeline import Timeline

# One model of each family, frames and pixels of a clip that is small for it.
FAMILIES = {
    "c2d_r50": (4, 32), "csn_r101": (4, 32), "hiera_base": (4, 64), "i3d_inceptionv1": (8, 64),
    "i3d_r50": (4, 32), "mvit_base_16x4": (4, 32), "mvit_v2_s": (4, 32), "r2plus1d_18": (4, 32),
    "r2plus1d_r50": (4, 32), "s3d": (16, 64), "slow_r50": (4, 32), "slowfast_r50": (4, 32),
    "swin3d_t": (4, 32), "timesformer_base": (2, 32), "tsm_resnet50": (4, 32),
    "tsn_resnet50": (2, 32), "uniformer_s": (4, 64), "videomae_s": (4, 32), "vivit_base": (4, 32),
    "x3d_xs": (4, 32),
}  # fmt: skip
# Their one convolution cuts the clip into patches; all else works on tokens.
TOKENS = {"hiera_base", "swin3d_t", "timesformer_base", "videomae_s", "vivit_base"}
FAST = {"x3d_xs", "videomae_s"}
OFF = {"channels_last": False, "checkpointing": False, "compile": False}
EACH = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def small(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model in training mode, its dropout on, and two small clips."""
    tree = OmegaConf.create({"model": OmegaConf.load(REPO / "conf" / "model" / f"{name}.yaml")})
    plain: Any = OmegaConf.to_container(tree, resolve=True)
    node, (frames, pixels) = plain["model"]["build"], FAMILIES[name]
    sizes = {"num_frames": frames, "crop_size": pixels, "dropout": 0.3}
    node |= {key: value for key, value in sizes.items() if key in node}
    torch.manual_seed(0)
    net = component(node, "model.build", num_classes=5).train()
    return net, torch.randn(2, 3, frames, pixels, pixels)


def step(net: nn.Module, clips: torch.Tensor) -> tuple[dict[str, torch.Tensor], int]:
    """Loss, gradients and buffers of one pass from one seed, and the bytes kept for backward."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(net(clips), torch.tensor([1, 3]))
    for parameter in net.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    loss.backward()
    found = {"loss": loss.detach(), **dict(net.named_buffers())}
    found |= {f"{k}.grad": p.grad for k, p in net.named_parameters() if p.grad is not None}
    return found, sum(kept.values())


@pytest.mark.parametrize("name", EACH)
def test_checkpointing_changes_no_bit_and_keeps_less(name: str) -> None:
    plain, clips = small(name)
    keys = [*plain.state_dict()]
    lean = memory.apply(copy.deepcopy(plain), **{**OFF, "checkpointing": True})
    assert [*lean.state_dict()] == keys
    (expected, before), (found, after) = step(plain, clips), step(lean, clips)
    assert len(expected) == len(found) > len(keys)
    for key, value in expected.items():
        assert value.equal(found[key]), key
    print(f"{name}: {before / 1e6:.1f} -> {after / 1e6:.1f} MB kept for the backward pass")
    assert after < 0.7 * before  # a stem is no block: I3D-InceptionV1 keeps most
    averaged = ema(lean, timeline=Timeline((10,), 2), decay=0.9).module
    with torch.inference_mode():
        assert averaged(clips).equal(plain.eval()(clips))


@pytest.mark.parametrize("name", EACH)
def test_channels_last_gives_the_same_or_is_refused(name: str) -> None:
    plain, clips = small(name)
    fast = copy.deepcopy(plain)
    if name in TOKENS:
        with pytest.raises(UsageError, match="works on tokens"):
            memory.apply(fast, **{**OFF, "channels_last": True})
        return
    memory.apply(fast, **{**OFF, "channels_last": True})
    assert [*fast.state_dict()] == [*plain.state_dict()]
    weights = [p for p in fast.parameters() if p.ndim == 5 and min(p.shape[:3]) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in weights)
    orders: list[bool] = []
    first = next(part for part in fast.modules() if isinstance(part, nn.Conv2d | nn.Conv3d))
    handle = first.register_forward_hook(lambda part, args, out: orders.append(out.stride(1) == 1))
    with torch.no_grad():
        copy.deepcopy(fast)(clips)
    handle.remove()
    assert orders == [True]
    # In float64: on two clips, batch norm in training makes much of the last digits.
    expected, found = (step(net.double(), clips.double())[0] for net in (plain, fast))
    torch.testing.assert_close(found["loss"], expected["loss"])
    whole, other = (torch.cat([value.flatten() for key, value in state.items() if ".grad" in key])
                    for state in (expected, found))  # fmt: skip
    assert (whole - other).norm() < 1e-6 * whole.norm()


def test_a_plain_chain_has_nothing_to_compute_again() -> None:
    with pytest.raises(UsageError, match=r"model.checkpointing=true: .* no blocks"):
        memory.apply(c3d(num_classes=2), **{**OFF, "checkpointing": True})


def test_statistics_count_a_batch_once_and_frozen_ones_not_at_all() -> None:
    torch.manual_seed(0)
    net = tsn(5, backbone="resnet18", dropout=0.0).train()
    memory.apply(net, **{**OFF, "checkpointing": True})
    norm = net.get_submodule("backbone.layer2.0.bn1")
    frozen = net.get_submodule("backbone.layer1.0.bn1").eval()
    net(torch.randn(2, 3, 2, 32, 32)).sum().backward()
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(frozen, nn.BatchNorm2d)
    assert norm.num_batches_tracked == 1 and norm.momentum == 0.1
    assert frozen.num_batches_tracked == 0


def test_checkpointing_and_compile_do_not_go_with_batch_norm() -> None:
    with pytest.raises(UsageError, match="batch norm, whose statistics"):
        memory.apply(tsn(5, backbone="resnet18"), channels_last=False, checkpointing=True,
                     compile=True)  # fmt: skip


@pytest.mark.slow
def test_a_missing_compiler_is_said_before_any_work(
    small_run: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    done = vidtrain("train", *small_run, "model.compile=true", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "model.compile=true: torch.compile does not work here on cpu" in done.stderr
    assert "install what it asks for" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_compiled_run_is_evaluated_and_exported(cli: Callable[..., int], small_run: Any) -> None:
    small_run = (
        *small_run,
        "average=ema",
        "average.decay=0.9",
        "model.build.dropout=0.0",
        "train.max_steps=7",
    )
    options = ("model.compile=true", "model.channels_last=true")
    assert cli("train", *small_run, *options) == 0
    assert cli("train", *small_run, "name=plain") == 0
    one, two = loaded("runs/small"), loaded("runs/plain")
    assert one["model"].keys() == two["model"].keys()
    assert one["average"].keys() == two["average"].keys()
    assert losses(Path("runs/small")) == pytest.approx(losses(Path("runs/plain")), rel=0.01)
    assert cli("eval", "run=runs/small") == 0
    assert cli("export", "run=runs/small", "format=torch_export", "num_videos=2") == 0


def compiled_c3d() -> nn.Module:
    return c3d(num_classes=5, width=4)


def compiled_tsn() -> nn.Module:
    return tsn(5, backbone="resnet18", dropout=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("build", [compiled_c3d, compiled_tsn])
def test_compiled_networks_train_and_evaluate_as_plain_ones_do(
    build: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    plain, clips = build().train(), torch.randn(2, 3, 4, 32, 32)
    fast = memory.apply(copy.deepcopy(plain), channels_last=True, checkpointing=False, compile=True)
    assert [*fast.state_dict()] == [*plain.state_dict()]
    expected, found = step(plain, clips)[0], step(fast, clips)[0]
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=key)
    plain.eval()
    fast.eval()
    with torch.inference_mode():
        for batch in (2, 1):
            torch.testing.assert_close(
                fast(clips[:batch]), plain(clips[:batch]), rtol=1e-4, atol=1e-5
            )
