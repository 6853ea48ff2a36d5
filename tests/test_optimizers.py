"""Steps of each optimizer by hand, fast kernels beside the plain loop, exact restoring."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPO
from torch import nn

from vidtrain.targets import component
from vidtrain.training.clipping import clip_gradients
from vidtrain.training.parameters import parameter_groups

NAMES = sorted(path.stem for path in (REPO / "conf" / "optimizer").glob("*.yaml"))
WEIGHTS, GRADS = [1.0, -2.0, 0.5], [0.5, 0.25, -1.0]


def node(name: str, **settings: Any) -> dict[str, Any]:
    return yaml.safe_load((REPO / f"conf/optimizer/{name}.yaml").read_text()) | settings


def make(name: str, params: Any, **settings: Any) -> torch.optim.Optimizer:
    return component(node(name, **settings), "optimizer", params)


def small_net() -> nn.Sequential:
    """Kernels of several shapes, with the channels innermost, norms and biases."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(),
        nn.Conv3d(8, 8, (1, 3, 3), groups=8, bias=False), nn.Conv3d(8, 4, 1),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    for part in model:
        if isinstance(part, nn.Conv3d):
            part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return model


def backward(model: nn.Module, step: int) -> None:
    """Gradients of two micro-batches, a function of the step alone."""
    rng = torch.Generator().manual_seed(step)
    for _ in range(2):
        clips = torch.randn(2, 3, 4, 8, 8, generator=rng)
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        loss = nn.functional.cross_entropy(model(clips), torch.tensor([step % 3, 1]))
        loss.backward()


def by_hand(name: str, steps: int = 2) -> list[float]:
    """The same gradient several times, written out number by number in double precision."""
    lr, decay = 0.1, 0.04
    w, m, v = list(WEIGHTS), [0.0] * 3, [0.0] * 3
    momentum_product = 1.0
    for t in range(1, steps + 1):
        update = [0.0] * 3
        mu, mu_next = (0.9 * (1 - 0.5 * 0.96 ** (k * 0.004)) for k in (t, t + 1))
        momentum_product *= mu
        for i, g in enumerate(GRADS):
            if name == "sgd":
                g += decay * w[i]
                m[i] = g if t == 1 else 0.9 * m[i] + g
                update[i] = g + 0.9 * m[i]
            elif name == "lion":
                update[i] = math.copysign(1, 0.9 * m[i] + 0.1 * g) + decay * w[i]
                m[i] = 0.99 * m[i] + 0.01 * g
            else:
                g += decay * w[i] if name == "adam" else 0.0
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g**2
                mean = m[i] / (1 - 0.9**t)
                if name == "nadamw":
                    mean = mu_next * m[i] / (1 - momentum_product * mu_next)
                    mean += (1 - mu) * g / (1 - momentum_product)
                eps = 1e-6 if name == "lamb" else 1e-8
                update[i] = mean / (math.sqrt(v[i] / (1 - 0.999**t)) + eps)
                update[i] += decay * w[i] if name != "adam" else 0.0
        trust = math.hypot(*w) / math.hypot(*update) if name == "lamb" else 1.0
        w = [weight - lr * trust * change for weight, change in zip(w, update, strict=True)]
    return w


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_steps_by_hand(name: str, steps: int) -> None:
    weight = nn.Parameter(torch.tensor(WEIGHTS))
    optimizer = make(name, [weight], lr=0.1, weight_decay=0.04)
    for _ in range(steps):
        weight.grad = torch.tensor(GRADS)
        optimizer.step()
    assert weight.tolist() == pytest.approx(by_hand(name, steps), rel=2e-6)


def test_the_first_step_in_round_numbers() -> None:
    # By hand without the helper above: the weight 1.0 with gradient 0.5, rate 0.1, decay 0.04.
    first = {
        "sgd": 1 - 0.1 * 1.9 * (0.5 + 0.04),  # Nesterov: g + 0.9 g
        "lion": 1 - 0.1 * (1 + 0.04),
        "adamw": 1 - 0.1 * 0.04 - 0.1,
        "adam": 0.9,
    }
    for name, expected in first.items():
        weight = nn.Parameter(torch.tensor([1.0]))
        weight.grad = torch.tensor([0.5])
        make(name, [weight], lr=0.1, weight_decay=0.04).step()
        assert weight.item() == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("name", NAMES)
def test_fast_kernels_follow_the_plain_loop(name: str) -> None:
    # torch's fused kernels for the CPU read memory in order and do not look at strides.
    fast, plain = small_net(), small_net()
    off = {"fused": False} if "fused" in node(name) else {}
    optimizers = [make(name, fast.parameters(), lr=1e-3),
                  make(name, plain.parameters(), lr=1e-3, foreach=False, **off)]  # fmt: skip
    for step in range(3):
        for model, optimizer in zip((fast, plain), optimizers, strict=True):
            backward(model, step)
            clip_gradients(model.parameters(), norm=0.5)
            for parameter in model.parameters():
                assert parameter.grad is not None and laid_out_alike(parameter, parameter.grad)
            optimizer.step()
            optimizer.zero_grad()
    start = small_net()
    for one, other, before in zip(
        fast.parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-4, atol=2e-6)
        assert not torch.equal(one, before)


def laid_out_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(a == b for size, a, b in strides if size > 1)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_goes_on_exactly_where_it_stood(
    name: str, scaled: bool, tmp_path: Path
) -> None:
    def build(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.amp.GradScaler]:
        groups = parameter_groups(model, no_decay_norm_bias=True)
        return make(name, groups), torch.amp.GradScaler("cpu", enabled=scaled)

    def step_once(
        model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, step: int
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / (1 + step)
        backward(model, step)
        if scaled:
            scaler.scale(torch.ones(()))  # makes the scale
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad *= scaler.get_scale()
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    whole = small_net()
    optimizer, scaler = build(whole)
    for step in range(5):
        if step == 2:
            torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict(),
                        "scaler": scaler.state_dict()}, tmp_path / "state")  # fmt: skip
        step_once(whole, optimizer, scaler, step)
    resumed = small_net()
    optimizer, scaler = build(resumed)
    state = torch.load(tmp_path / "state", weights_only=True)
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    for step in range(2, 5):
        step_once(resumed, optimizer, scaler, step)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_an_infinite_gradient_is_left_out_by_the_scaler(name: str) -> None:
    weight = nn.Parameter(torch.tensor(WEIGHTS))
    optimizer, scaler = make(name, [weight]), torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (1.0, math.inf, 1.0):
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_(optimizer)
        before, state = weight.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        left_out = math.isinf(factor)
        assert torch.equal(weight, before) == left_out
        if left_out:
            after = optimizer.state_dict()["state"]
            assert all(torch.equal(torch.as_tensor(tensor), torch.as_tensor(after[0][key]))
                       for key, tensor in state.get(0, {}).items())  # fmt: skip
    assert scaler.get_scale() == 4.0
