"""PPO on a cluster's routing, from scratch in one file: read it from top to bottom, change what you like.

    python experiments/train_ppo.py --card Quickstart --steps 131072 --seed 0 --out runs/ppo-from-scratch
    tensorboard --logdir runs

It needs the public API alone. `splitgym train` is the same idea with Stable-Baselines3, checkpoints and resuming.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter

from splitgym.learn import compare


@dataclass
class Args:
    """What can be set on the command line, as ``--num-envs 16``."""

    card: str = "Quickstart"  # a shipped card's name, or a card's path
    seed: int = 0  # of the network, the draws and the scenarios
    steps: int = 131_072  # decisions in all
    out: str = "runs/ppo-from-scratch"  # where TensorBoard is to look
    num_envs: int = 16  # environments side by side
    num_steps: int = 128  # decisions of each between two updates
    epochs: int = 10  # passes over the decisions of an update
    minibatch: int = 256  # decisions in a gradient step
    learning_rate: float = 1e-3  # falls to 0 in a straight line
    gamma: float = 0.995  # discount per decision
    gae_lambda: float = 0.95  # of generalised advantage estimation
    clip: float = 0.2  # of the probability ratio
    reward_scale: float = 0.02  # keeps the values near 1
    width: int = 64  # of the network
    eval_seeds: int = 10  # validation seeds at the end


class Scheduler(nn.Module):
    """Scores every machine with the same weights, so that it does not matter in which order the machines come."""

    def __init__(self, machine_features: int, context_features: int, width: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(machine_features + context_features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.score = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 2))
        self.value = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))
        nn.init.orthogonal_(self.score[-1].weight, 0.01)  # type: ignore[arg-type]  # a near uniform start

    def forward(self, machines: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Machines (B, M, F) and context (B, C) to logits (B, 2, M), prompt and token machine, and values (B,)."""
        beside = context.unsqueeze(1).expand(-1, machines.shape[1], -1)
        hidden = self.encode(torch.cat([machines, beside], dim=-1))
        pooled = torch.cat([hidden.mean(dim=1), hidden.amax(dim=1)], dim=-1)
        around = pooled.unsqueeze(1).expand(-1, machines.shape[1], -1)
        return self.score(torch.cat([hidden, around], dim=-1)).transpose(1, 2), self.value(pooled).squeeze(-1)


Observations = tuple[Tensor, Tensor]  # machines (B, M, F), context (B, C)


def stack(observations: list[dict[str, Any]]) -> Observations:
    """The environments' dictionaries as two tensors."""
    context = [np.concatenate([o["request"], o["cluster"], o["decision_kind"]]) for o in observations]
    return torch.from_numpy(np.stack([o["machines"] for o in observations])), torch.from_numpy(np.stack(context))


def masks_of(environments: list[gymnasium.Env[Any, Any]]) -> Tensor:
    """(B, 2, M): where prompt and token phase may be sent."""
    flat = np.stack([environment.get_wrapper_attr("action_masks")() for environment in environments])
    return torch.from_numpy(flat).reshape(len(environments), 2, -1)


def choices(logits: Tensor, masks: Tensor) -> Categorical:
    """One distribution over machines for each of the two choices."""
    return Categorical(logits=logits.masked_fill(~masks, -1e9))


def main(args: Args) -> None:
    """Train, then compare with heuristics on validation seeds."""
    torch.set_num_threads(1)  # left to itself torch takes every core, and results depend on the machine
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    def make(split: str) -> gymnasium.Env[Any, Any]:
        return gymnasium.make(
            "splitgym:splitgym/Cluster-v0", card=args.card, kind="routing", split=split, gamma=args.gamma
        )

    environments = [make("train") for _ in range(args.num_envs)]
    observed = [e.reset(seed=int(rng.integers(2**32)))[0] for e in environments]
    machines, context = stack(observed)
    network = Scheduler(machines.shape[-1], context.shape[-1], args.width)
    optimiser = torch.optim.Adam(network.parameters(), lr=args.learning_rate, eps=1e-5)
    writer = SummaryWriter(args.out)
    num_updates = -(-args.steps // (args.num_steps * args.num_envs))

    for update in track(range(num_updates), description=f"{args.card}, seed {args.seed}"):
        optimiser.param_groups[0]["lr"] = args.learning_rate * (1 - update / num_updates)

        # --- Play: num_steps decisions in every environment --------------------------------------------------
        shape = (args.num_steps, args.num_envs)
        kept_machines, kept_context = torch.zeros(*shape, *machines.shape[1:]), torch.zeros(*shape, context.shape[1])
        kept_masks = torch.zeros(*shape, 2, machines.shape[1], dtype=torch.bool)
        actions, log_probs = torch.zeros(*shape, 2, dtype=torch.long), torch.zeros(shape)
        values, rewards, ended = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
        slowdowns: list[float] = []
        for step in range(args.num_steps):
            masks = masks_of(environments)
            with torch.no_grad():
                logits, values[step] = network(machines, context)
                policy = choices(logits, masks)
                actions[step] = policy.sample()  # type: ignore[no-untyped-call]
                log_probs[step] = policy.log_prob(actions[step]).sum(dim=1)  # type: ignore[no-untyped-call]
            kept_machines[step], kept_context[step], kept_masks[step] = machines, context, masks
            for index, environment in enumerate(environments):
                observed[index], reward, terminated, truncated, info = environment.step(actions[step, index].numpy())
                rewards[step, index] = args.reward_scale * float(reward)
                if terminated or truncated:
                    ended[step, index] = 1.0
                    slowdowns.append(info["scorecard"]["slowdown"])
                    if truncated:  # the cluster would go on: add what its last state is worth
                        with torch.no_grad():
                            rewards[step, index] += args.gamma * network(*stack([observed[index]]))[1][0]
                    observed[index], _ = environment.reset()
            machines, context = stack(observed)

        # --- Judge: advantages, backwards in time ------------------------------------------------------------
        advantages = torch.zeros(shape)
        with torch.no_grad():
            following, carried = network(machines, context)[1], torch.zeros(args.num_envs)
        for step in reversed(range(args.num_steps)):
            goes_on = 1.0 - ended[step]
            surprise = rewards[step] + args.gamma * following * goes_on - values[step]
            carried = surprise + args.gamma * args.gae_lambda * goes_on * carried
            advantages[step], following = carried, values[step]
        returns = advantages + values

        # --- Learn: several passes over what was played ------------------------------------------------------
        played = [kept_machines, kept_context, kept_masks, actions, log_probs, advantages, returns]
        flat = [part.flatten(0, 1) for part in played]
        for _ in range(args.epochs):
            for batch in torch.randperm(args.num_steps * args.num_envs).split(args.minibatch):  # type: ignore[no-untyped-call]
                seen, around, allowed, chosen, old_log_prob, advantage, target = (part[batch] for part in flat)
                logits, value = network(seen, around)
                log_prob = choices(logits, allowed).log_prob(chosen).sum(dim=1)  # type: ignore[no-untyped-call]
                ratio = (log_prob - old_log_prob).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
                value_loss = 0.5 * (value - target).square().mean()
                optimiser.zero_grad()
                (policy_loss + value_loss).backward()
                optimiser.step()

        decisions = (update + 1) * args.num_steps * args.num_envs
        writer.add_scalar("rollout/reward", rewards.mean() / args.reward_scale, decisions)
        writer.add_scalar("train/value_loss", value_loss.item(), decisions)
        if slowdowns:
            writer.add_scalar("rollout/slowdown", np.mean(slowdowns), decisions)

    # --- Compare: the same validation seeds for the network and for heuristics -------------------------------
    environment = make("val")
    scores = []
    for seed in track(range(args.eval_seeds), description="validation"):
        observation, info = environment.reset(seed=seed)
        truncated = terminated = False
        while not (truncated or terminated):
            with torch.no_grad():
                logits, _ = network(*stack([observation]))
            best = logits.masked_fill(~masks_of([environment]), -1e9)[0].argmax(dim=1)
            observation, _, terminated, truncated, info = environment.step(best.numpy())
        scores.append(info["scorecard"]["slowdown"])
    writer.add_scalar("eval/slowdown", np.mean(scores), num_updates * args.num_steps * args.num_envs)
    writer.close()
    comparison = compare(args.card, ["random", "splitwise", "lmetric"], seeds=args.eval_seeds, split="val")
    print(f"mean slowdown on {args.eval_seeds} validation seeds: this network {np.mean(scores):.3f}", end="")
    for name, by_rate in comparison.scores["slowdown"].items():
        print(f", {name} {by_rate.mean():.3f}", end="")
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Args):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, help=f"default {field.default}")
    began = time.perf_counter()
    main(Args(**vars(parser.parse_args())))
    print(f"{time.perf_counter() - began:.0f} s")
