"""UniFormer, our own network: published names, sizes and cost, and what its parts compute."""

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vidtrain.errors import UsageError
from vidtrain.models.uniformer import GlobalBlock, LocalBlock, PatchEmbed, uniformer

# MMAction2 configs/recognition/uniformer/README.md; 32 frames: Sense-X/UniFormer, 1036 G / 4 clips.
PUBLISHED = [("s", 16, "21.4", 41.8), ("b", 16, "49.8", 96.7), ("b", 32, "49.8", 259)]
CONV = ("weight", "bias")
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
LOCAL = {"pos_embed": CONV, "norm1": NORM, "conv1": CONV, "conv2": CONV, "attn": CONV,
         "norm2": NORM, "mlp.fc1": CONV, "mlp.fc2": CONV}  # fmt: skip
GLOBAL = {"pos_embed": CONV, "norm1": CONV, "attn.qkv": CONV, "attn.proj": CONV, "norm2": CONV,
          "mlp.fc1": CONV, "mlp.fc2": CONV}  # fmt: skip


@pytest.fixture
def meta():
    with torch.device("meta"):
        yield


def published_names(depths):
    """Names in the published files: Sense-X/UniFormer, slowfast/models/uniformer.py."""
    parts = {"norm": NORM, "head": CONV}
    for stage, depth in enumerate(depths, start=1):
        parts |= {f"patch_embed{stage}.norm": CONV, f"patch_embed{stage}.proj": CONV}
        block = LOCAL if stage < 3 else GLOBAL
        for index in range(depth):
            parts |= {f"blocks{stage}.{index}.{part}": keys for part, keys in block.items()}
    return {f"{part}.{key}" for part, keys in parts.items() for key in keys}


def randomised(module):
    """Gives every weight a part in the result."""
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 0.6)
    return module.eval()


@pytest.mark.parametrize(("version", "num_frames", "mparams", "gflops"), PUBLISHED)
@pytest.mark.usefixtures("meta")
def test_size_and_cost_are_the_published_ones(version, num_frames, mparams, gflops):
    net = uniformer(400, version=version).eval()
    assert f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f}" == mparams
    with FlopCounterMode(display=False) as counter:
        assert net(torch.empty(1, 3, num_frames, 224, 224)).shape == (1, 400)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, rel=0.005)


@pytest.mark.usefixtures("meta")
def test_names_are_the_published_ones():
    assert uniformer(7).state_dict().keys() == published_names((3, 4, 8, 3))
    assert uniformer(7, version="b").state_dict().keys() == published_names((5, 8, 20, 7))


@torch.no_grad()
def test_attention_is_over_the_whole_clip_in_heads_of_64():
    block = randomised(GlobalBlock(128, drop_path=0.0))
    features = torch.randn(2, 128, 2, 3, 3)
    positioned = features + block.pos_embed(features)
    tokens = positioned.flatten(2).transpose(1, 2)
    found = functional.layer_norm(tokens, [128], block.norm1.weight, block.norm1.bias, eps=1e-6)
    query, key, value = functional.linear(found, block.attn.qkv.weight, block.attn.qkv.bias).split(
        128, dim=2
    )
    heads = [
        torch.softmax(q @ k.mT / 8, dim=2) @ v
        for q, k, v in zip(query.split(64, 2), key.split(64, 2), value.split(64, 2), strict=True)
    ]
    tokens = tokens + block.attn.proj(torch.cat(heads, 2))
    found = functional.layer_norm(tokens, [128], block.norm2.weight, block.norm2.bias, eps=1e-6)
    tokens = tokens + block.mlp.fc2(functional.gelu(block.mlp.fc1(found)))
    expected = tokens.mT.unflatten(2, (2, 3, 3))
    torch.testing.assert_close(block(features), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_neighbourhoods_are_of_five_frames_and_pixels():
    block = randomised(LocalBlock(8, drop_path=0.0))
    nn.init.zeros_(block.pos_embed.weight)
    features = torch.zeros(1, 8, 9, 9, 9)
    touched = features.clone()
    touched[0, 0, 4, 4, 4] = 1.0
    changed = (block(touched) - block(features)).abs().sum((0, 1)) > 1e-6
    expected = torch.zeros(9, 9, 9, dtype=torch.bool)
    expected[2:7, 2:7, 2:7] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_patches_are_normalised_over_channels():
    embed = PatchEmbed((3, 16), kernel=(3, 4, 4), stride=2)
    found = embed(torch.randn(2, 3, 5, 10, 9))
    assert found.shape == (2, 16, 3, 2, 2)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 3, 2, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found.var(1, correction=0), torch.ones(2, 3, 2, 2), rtol=0, atol=1e-2
    )


def test_takes_any_clip_and_learns_in_every_layer():
    torch.manual_seed(0)
    net = uniformer(5, drop_path=0.0)
    with torch.no_grad():
        for shape in ((1, 3, 1, 32, 32), (3, 3, 5, 40, 64)):
            assert net.eval()(torch.randn(shape)).shape == (shape[0], 5)
    logits = net.train()(torch.randn(2, 3, 4, 64, 64))
    functional.cross_entropy(logits, torch.tensor([0, 4])).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.usefixtures("meta")
def test_rates_arrive():
    net: Any = uniformer(7, drop_path=0.15, dropout=0.25)
    skipped = [part.drop_prob for part in net.modules() if isinstance(part, DropPath)]
    assert skipped == sorted(skipped)
    assert [skipped[0], skipped[-1]] == pytest.approx([0, 0.15])
    assert net.drop.p == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": "l"}, "version=l does not exist: choose from s, b"),
        ({"drop_path": -0.1}, "drop_path=-0.1 is no rate"),
        ({"dropout": 2.0}, "dropout=2.0 is no rate"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        uniformer(7, **arguments)
