"""The networks: machines are treated alike, padding is not seen, untrained policies are near uniform."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from splitgym.export.actions import choose
from splitgym.learn.inference import NumpyNetwork
from splitgym.learn.network import Shape, make_network

MACHINE_FEATURES, CONTEXT = 7, (4, 5, 3)
HEADS = [("machine", "machine"), ("machine",), ("role",), ("plain",), ("machine", "machine", "role")]


def observation(num_machines: int, batch: int, seed: int = 0, padding: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    present = torch.ones(batch, num_machines + padding)
    present[:, num_machines:] = 0.0
    parts = {
        key: torch.rand(batch, size, generator=rng)
        for key, size in zip(("request", "cluster", "decision_kind"), CONTEXT, strict=True)
    }
    machines = torch.rand(batch, num_machines, MACHINE_FEATURES, generator=rng)
    padded = torch.full((batch, padding, MACHINE_FEATURES), 0.7)
    return {"machines": torch.cat([machines, padded], dim=1), "present": present, **parts}


def network(name: str, heads: tuple, num_machines: int = 5, large: bool = True):  # type: ignore[no-untyped-def,type-arg]
    torch.manual_seed(1)
    shape = Shape(MACHINE_FEATURES, sum(CONTEXT), num_machines, heads, plain_size=13 if "plain" in heads else 0)
    net = make_network(name, shape)
    if large:  # weights large enough for differences to show
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def permuted(scores: torch.Tensor, head: str, order: torch.Tensor) -> torch.Tensor:
    if head == "machine":
        return scores[:, order]
    if head == "role":
        return torch.cat([scores[:, :1], scores[:, 1:].unflatten(1, (-1, 3))[:, order].flatten(1)], dim=1)
    return scores


@pytest.mark.parametrize("heads", HEADS)
def test_permuting_machines_permutes_scores_and_nothing_else(heads: tuple[str, ...]) -> None:
    net = network("equivariant", heads)
    seen = observation(5, batch=3)
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = seen | {"machines": seen["machines"][:, order], "present": seen["present"][:, order]}
    sizes = [net.shape.head_size(head) for head in heads]
    before, after = net.scores(seen).split(sizes, dim=1), net.scores(moved).split(sizes, dim=1)
    for head, left, right in zip(heads, before, after, strict=True):
        # 1e-5: float32 sums of 64 terms in another order
        torch.testing.assert_close(permuted(left, head, order), right, rtol=0, atol=1e-5)
        if head != "plain":
            assert (left - right).abs().max() > 1e-2
    torch.testing.assert_close(net.value(seen), net.value(moved), rtol=0, atol=1e-5)


@pytest.mark.parametrize("heads", HEADS[:2])
def test_padding_changes_no_score(heads: tuple[str, ...]) -> None:
    net = network("equivariant", heads)
    plain, padded = observation(5, 2), observation(5, 2, padding=3)
    net.shape = net.shape.__class__(MACHINE_FEATURES, sum(CONTEXT), 8, heads)  # type: ignore[arg-type]
    scores = net.scores(padded).unflatten(1, (len(heads), 8))[:, :, :5].flatten(1)
    torch.testing.assert_close(scores, net.scores(plain), rtol=0, atol=1e-5)
    torch.testing.assert_close(net.value(padded), net.value(plain), rtol=0, atol=1e-5)


def test_equal_machines_get_equal_scores() -> None:
    net = network("equivariant", ("machine",))
    seen = observation(5, 2)
    seen["machines"][:] = seen["machines"][:, :1]
    scores = net.scores(seen)
    torch.testing.assert_close(scores, scores[:, :1].expand_as(scores), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["equivariant", "mlp"])
@pytest.mark.parametrize("heads", HEADS)
def test_untrained_policy_is_near_uniform(name: str, heads: tuple[str, ...]) -> None:
    net = network(name, heads, large=False)
    scores = net.scores(observation(5, batch=50))
    assert scores.shape == (50, net.shape.num_scores)
    assert scores.abs().max() < 0.1  # logits: no choice more than 1.2 times as likely as another


@pytest.mark.parametrize("name", ["equivariant", "mlp"])
@pytest.mark.parametrize("heads", HEADS)
def test_numpy_scores_are_torch_scores(name: str, heads: tuple[str, ...]) -> None:
    net = network(name, heads)
    quick = NumpyNetwork(name, {key: value.numpy() for key, value in net.state_dict().items()}, heads)
    seen = observation(5, batch=20, seed=3)
    scores = net.scores(seen).detach().numpy()
    for row in range(20):
        alone = quick.scores({key: value[row].numpy() for key, value in seen.items()})
        np.testing.assert_allclose(alone, scores[row], rtol=0, atol=2e-5)  # float32, other summation order


def test_weights_of_the_equivariant_network_fit_any_number_of_machines() -> None:
    weights = network("equivariant", ("machine",), num_machines=5).state_dict()
    network("equivariant", ("machine",), num_machines=40).load_state_dict(weights)
    with pytest.raises(RuntimeError):
        network("mlp", ("machine",), num_machines=40).load_state_dict(network("mlp", ("machine",)).state_dict())


def test_choice_obeys_the_mask_and_the_odds() -> None:
    scores = np.array([0.0, 5.0, np.log(3.0), 0.0], np.float32)
    mask = np.array([True, False, True, False])
    assert choose(scores, mask, None) == 2
    grid = (np.arange(1000) + 0.5) / 1000
    drawn = np.array([choose(scores, mask, uniform) for uniform in grid])
    assert set(drawn) == {0, 2}
    assert (drawn == 2).mean() == pytest.approx(0.75, abs=2e-3)  # the grid's spacing, twice
    assert choose(scores, np.zeros(4, np.bool_), 0.3) == 0
