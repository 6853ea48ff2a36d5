"""Options for memory and speed on the zoo: each serves every model, or is refused with a reason."""

import copy

import pytest
import torch
from test_memory_options import OFF, step
from test_zoo import node_of, small_size
from torch import nn

from vidtrain.errors import UsageError
from vidtrain.models import memory
from vidtrain.targets import component

# One model for each builder and each kind of block; others differ from it in depth, width or clip.
FAMILIES = (
    "c2d_r50", "c3d_small", "csn_r101", "hiera_base", "i3d_inceptionv1", "i3d_inceptionv3",
    "i3d_nl5_resnet50", "i3d_r50", "i3d_resnet50", "ipcsn_r101", "mc3_18", "mvit_base_16x4",
    "mvit_v2_s", "r2plus1d_18", "r2plus1d_r50", "r3d_18", "s3d", "slow_r50", "slowfast_r50",
    "swin3d_t", "timesformer_base", "tsm_resnet50", "tsn_inception_v1", "tsn_inception_v3",
    "tsn_resnet18", "tsn_resnet50", "tsn_timm", "tsn_vgg16", "uniformer_s", "videomae_s",
    "vivit_base", "vjepa2_vitl", "x3d_xs",
)  # fmt: skip
# A plain chain of convolutions: what goes into each has to be kept.
CHAINS = {"c3d_small", "tsn_vgg16"}
# Their one convolution cuts the clip into patches; all else works on tokens.
TOKENS = {"hiera_base", "swin3d_t", "timesformer_base", "videomae_s", "vivit_base", "vjepa2_vitl"}
# Layer norm in their blocks, whose computation may be repeated at will.
NO_BATCH_NORM = TOKENS | {"mvit_base_16x4", "mvit_v2_s", "tsn_timm"}
FAST = {"c3d_small", "i3d_inceptionv1", "tsn_inception_v1", "tsn_resnet18", "videomae_s", "x3d_xs"}
EACH = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def small(name: str, *, drop: float) -> tuple[nn.Module, torch.Tensor]:
    """A network in training mode whose every weight matters, and three small clips, in float64.

    A fresh residual branch or classifier may start at zero, so that nothing flows back through it.
    In float32, batch norm over so few pixels makes much of the last digits.
    """
    frames, pixels = small_size(name)
    node = node_of(name)["build"]
    sizes = {"num_frames": frames, "crop_size": pixels, "dropout": drop, "drop_path": drop}
    node |= {key: value for key, value in sizes.items() if key in node}
    if name == "vjepa2_vitl":
        node["version"] = "s"  # the same network, a fifteenth of the weights
    torch.manual_seed(0)
    net = component(node, "model.build", num_classes=5).train()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return net.double(), torch.randn(3, 3, frames, pixels, pixels, dtype=torch.float64)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found["loss"], expected["loss"])
    whole, other = (torch.cat([value.flatten() for key, value in state.items() if ".grad" in key])
                    for state in (expected, found))  # fmt: skip
    assert whole.count_nonzero() > 0.2 * whole.numel()  # one pixel reads the middle of a 3x3 kernel
    assert (whole - other).norm() < 1e-6 * whole.norm()


@pytest.mark.parametrize("name", EACH)
def test_checkpointing_changes_no_bit_or_is_refused(name: str) -> None:
    plain, clips = small(name, drop=0.3)
    lean = copy.deepcopy(plain)
    if name in CHAINS:
        with pytest.raises(UsageError, match="has no blocks of several layers"):
            memory.apply(lean, **{**OFF, "checkpointing": True})
        return
    memory.apply(lean, **{**OFF, "checkpointing": True})
    assert [*lean.state_dict()] == [*plain.state_dict()]
    (expected, before), (found, after) = step(plain, clips[:2]), step(lean, clips[:2])
    close(found, expected)
    assert not [key for key, value in expected.items() if not value.equal(found[key])]
    assert after < 0.7 * before


@pytest.mark.parametrize("name", EACH)
def test_channels_last_gives_the_same_or_is_refused(name: str) -> None:
    plain, clips = small(name, drop=0.0)
    fast = copy.deepcopy(plain)
    if name in TOKENS:
        with pytest.raises(UsageError, match="has 1 convolutions and works on tokens"):
            memory.apply(fast, **{**OFF, "channels_last": True})
        return
    memory.apply(fast, **{**OFF, "channels_last": True})
    assert [*fast.state_dict()] == [*plain.state_dict()]
    convolutions = [part for part in fast.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)]
    orders = [part.weight.stride(1) for part in convolutions if part.weight[0, 0].numel() > 1]
    if "slowfast" not in name:  # whose slow pathway picks frames; its first convolution reorders
        convolutions[0].register_forward_pre_hook(lambda _, args: orders.append(args[0].stride(1)))
    close(step(fast, clips[:2])[0], step(plain, clips[:2])[0])
    assert {*orders} == {1}
    plain.eval()
    fast.eval()
    with torch.inference_mode():
        torch.testing.assert_close(fast(clips), plain(clips))


def same_when_compiled(plain: nn.Module, fast: nn.Module, clips: torch.Tensor) -> None:
    """A step on two clips, then an evaluation of three: the last batch has another size."""
    assert [*fast.state_dict()] == [*plain.state_dict()]
    close(step(fast, clips[:2])[0], step(plain, clips[:2])[0])
    plain.eval()
    fast.eval()
    with torch.inference_mode():
        torch.testing.assert_close(fast(clips), plain(clips))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_network_is_one_graph_for_torch_compile(name: str) -> None:
    torch.compiler.reset()
    plain, clips = small(name, drop=0.3)
    fast = copy.deepcopy(plain)
    fast.compile(backend="aot_eager", fullgraph=True)  # all of torch.compile but its kernels
    same_when_compiled(plain, fast, clips)


@pytest.mark.parametrize("name", sorted({*FAMILIES} - NO_BATCH_NORM - CHAINS))
def test_checkpointing_and_compile_are_refused_for_batch_norm(name: str) -> None:
    with torch.device("meta"):
        net = component(node_of(name)["build"], "model.build", num_classes=5)
    with pytest.raises(UsageError, match="batch norm, whose statistics"):
        memory.apply(net, channels_last=False, checkpointing=True, compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NO_BATCH_NORM))
def test_checkpointing_and_compile_go_together_without_batch_norm(name: str) -> None:
    torch.compiler.reset()
    plain, clips = small(name, drop=0.0)
    lean = memory.apply(copy.deepcopy(plain), channels_last=False, checkpointing=True, compile=True)
    lean.compile(backend="aot_eager", fullgraph=True)
    same_when_compiled(plain, lean, clips)


@pytest.mark.slow
def test_kernels_of_the_compiler_give_the_same() -> None:
    torch.compiler.reset()
    plain, clips = small("videomae_s", drop=0.0)
    fast = memory.apply(copy.deepcopy(plain), **{**OFF, "compile": True})
    same_when_compiled(plain, fast, clips)
