"""Checkpoints of transformers, and of the original repositories, in our networks."""

import pytest
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import nn
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

from vidtrain.models import huggingface
from vidtrain.models.timesformer import timesformer
from vidtrain.models.videomae import videomae
from vidtrain.models.vivit import vivit
from vidtrain.models.vjepa2 import vjepa2
from vidtrain.models.weights.from_huggingface import convert
from vidtrain.models.weights.reading import read_weights

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 5}
LIBRARY = {
    timesformer: (
        TimesformerForVideoClassification,
        TimesformerConfig(**SMALL, intermediate_size=48, num_frames=4, image_size=32),
    ),
    vivit: (
        VivitForVideoClassification,
        VivitConfig(**SMALL, intermediate_size=48, num_frames=4, image_size=32),
    ),
    videomae: (
        VideoMAEForVideoClassification,
        VideoMAEConfig(**SMALL, intermediate_size=48, num_frames=4, image_size=32),
    ),
    vjepa2: (
        VJEPA2ForVideoClassification,
        VJEPA2Config(
            **SMALL, mlp_ratio=2.0, frames_per_clip=4, crop_size=32, pred_num_hidden_layers=1
        ),
    ),
}
BUILDERS = [*LIBRARY]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(huggingface.SIZES, "tiny", (24, 2, 2, 48))


def build(builder):
    return builder(5, version="tiny", num_frames=4, crop_size=32).eval()


def awaken(net):
    """Gives every parameter, biases and position embeddings too, the size of a trained one."""
    torch.manual_seed(0)
    for part in net.modules():
        for name, parameter in part.named_parameters(recurse=False):
            nn.init.normal_(parameter, std=0.3)
            if isinstance(part, nn.LayerNorm) and name == "weight":
                parameter.data += 1
    return net.eval()


def library(builder):
    kind, config = LIBRARY[builder]
    return awaken(kind(config))


def converted_for(own, state) -> dict[str, torch.Tensor]:
    found = convert(state, own)
    assert found is not None
    return found


def renamed(state, *pairs):
    for old, new in pairs:
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    return state


@pytest.mark.parametrize("builder", BUILDERS)
@torch.no_grad()
def test_files_of_transformers_give_its_logits(builder, tmp_path):
    published, net = library(builder), build(builder)
    published.save_pretrained(tmp_path)
    state = read_weights(tmp_path / "model.safetensors")
    converted = converted_for(net.state_dict(), state)
    left = converted.keys() - net.state_dict().keys()
    assert all(key.startswith("vjepa2.predictor.") for key in left)
    net.load_state_dict({key: converted[key] for key in net.state_dict()})
    video = torch.randn(3, 3, 4, 32, 32)
    expected = published(video.transpose(1, 2)).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(net(video), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("builder", BUILDERS)
def test_networks_without_classifier_fill_the_rest(builder, tmp_path):
    published, net = library(builder), build(builder)
    published.base_model.save_pretrained(tmp_path)
    own = net.state_dict()
    converted = converted_for(own, read_weights(tmp_path / "model.safetensors"))
    missing = own.keys() - converted.keys()
    assert missing == {key for key in own if key.startswith(("net.classifier", "net.pooler",
                                                             "net.fc_norm"))}  # fmt: skip


@pytest.mark.parametrize("builder", BUILDERS)
def test_our_own_names_stay_as_they_are(builder):
    own = build(builder).state_dict()
    converted = converted_for(own, own)
    assert converted.keys() == own.keys()
    assert all(converted[key] is own[key] for key in own)


def test_vivit_named_as_in_its_published_file():
    own = awaken(build(vivit)).state_dict()
    old = renamed(
        own,
        ("net.", ""),
        ("vivit.layers.", "vivit.encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    )
    assert "vivit.encoder.layer.1.attention.attention.key.bias" in old
    converted = converted_for(own, old)
    assert converted.keys() == own.keys()
    assert all(converted[key] is own[key] for key in own)


def test_videomae_named_as_in_its_published_file():
    own = awaken(build(videomae)).state_dict()
    old = renamed(
        own, ("net.", ""), ("attention.query.bias", "attention.q_bias"),
        ("attention.value.bias", "attention.v_bias"),
    )  # fmt: skip
    assert "videomae.encoder.layer.1.attention.attention.q_bias" in old
    converted = converted_for(own, old)
    assert converted.keys() == own.keys()
    assert all(converted[key] is own[key] for key in own)


class Block(nn.Module):
    """The layer of timm's first vision transformer, from which the original networks are."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(24, eps=1e-6)
        self.attn = Attention(24, num_heads=2, qkv_bias=True)
        self.norm2 = nn.LayerNorm(24, eps=1e-6)
        self.mlp = Mlp(24, 48)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class OriginalVideoMAE(nn.Module):
    """modeling_finetune.py's names: patches, blocks, mean, norm, head."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, 24, (2, 16, 16), (2, 16, 16))})
        self.blocks = nn.Sequential(Block(), Block())
        self.fc_norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, video, positions):
        tokens = self.patch_embed["proj"](video).flatten(2).transpose(1, 2) + positions
        return self.head(self.fc_norm(self.blocks(tokens).mean(1)))


@pytest.mark.parametrize("prefix", ["", "encoder."])
@torch.no_grad()
def test_videomae_original_gives_the_same_logits(prefix):
    original, net = awaken(OriginalVideoMAE()), build(videomae)
    state = original.state_dict()
    for index in range(2):  # it has no bias of the keys
        query, key, value = state.pop(f"blocks.{index}.attn.qkv.bias").chunk(3)
        key.zero_()
        state |= {f"blocks.{index}.attn.q_bias": query, f"blocks.{index}.attn.v_bias": value}
    in_encoder = ("blocks.", "patch_embed.")
    state = {prefix * k.startswith(in_encoder) + k: tensor for k, tensor in state.items()}
    net.load_state_dict(converted_for(net.state_dict(), state))
    video = torch.randn(2, 3, 4, 32, 32)
    expected = original(video, net.net.videomae.embeddings.position_embeddings)
    torch.testing.assert_close(net(video), expected, rtol=1e-5, atol=1e-5)


def test_timesformer_original_has_a_place_for_everything():
    own = awaken(build(timesformer)).state_dict()
    old = renamed(
        own,
        ("net.timesformer.", "model."),
        ("net.classifier", "model.head"),
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.time_embeddings", "time_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("encoder.layer.", "blocks."),
        ("temporal_attention.attention.qkv", "temporal_attn.qkv"),
        ("temporal_attention.output.dense", "temporal_attn.proj"),
        ("temporal_layernorm", "temporal_norm1"),
        ("temporal_dense", "temporal_fc"),
        ("attention.attention.qkv", "attn.qkv"),
        ("attention.output.dense", "attn.proj"),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("layernorm", "norm"),
    )
    assert {"model.blocks.1.temporal_attn.proj.bias", "model.norm.bias"} <= old.keys()
    converted = converted_for(own, old)
    assert converted.keys() == own.keys()
    assert all(converted[key] is own[key] for key in own)


def test_vjepa2_original_fills_the_encoder(tmp_path):
    own = awaken(build(vjepa2)).state_dict()
    encoder = {k: tensor for k, tensor in own.items() if k.startswith("net.vjepa2.")}
    original = renamed(
        encoder,
        ("net.vjepa2.encoder.", "module.backbone."),
        ("embeddings.patch_embeddings", "patch_embed"),
        ("layer.", "blocks."),
        ("layernorm", "norm"),
        ("attention.", "attn."),
    )
    for index in range(2):
        for kind in ("weight", "bias"):
            start = f"module.backbone.blocks.{index}.attn."
            parts = [original.pop(f"{start}{part}.{kind}") for part in ("query", "key", "value")]
            original[f"{start}qkv.{kind}"] = torch.cat(parts)
    newest = {key: tensor + 1 for key, tensor in original.items()}
    file = tmp_path / "vitl.pt"
    torch.save({"encoder": newest, "target_encoder": original, "epoch": 3}, file)
    converted = converted_for(own, read_weights(file))
    assert converted.keys() == encoder.keys()
    for key, tensor in encoder.items():
        torch.testing.assert_close(converted[key], tensor, rtol=0, atol=0)


def test_names_without_a_place_keep_theirs():
    own = build(videomae).state_dict()
    left = {"decoder.norm.weight": torch.ones(2), "blocks.0.attn.qkv.bias": torch.ones(6)}
    converted = converted_for(own, {"head.bias": torch.ones(5), **left})
    assert converted.keys() == {"net.classifier.bias", *left}


def test_what_is_of_another_origin_is_none():
    own = build(videomae).state_dict()
    assert convert({"s1.pathway0_stem.conv.weight": torch.ones(1)}, own) is None
    assert convert(own, {"blocks.0.attn.qkv.weight": torch.ones(1)}) is None
