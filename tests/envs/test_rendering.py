import re

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from splitgym.envs import ClusterEnv
from tests.envs.play import sampler


def stepped(mini, mode, steps=40):
    env = ClusterEnv(mini, kind="joint", render_mode=mode)
    env.reset(seed=1)
    act = sampler(0, env)
    for _ in range(steps):
        env.step(act(env.view))
    return env


def test_text_has_a_line_for_each_machine(mini):
    env = stepped(mini, "ansi")
    text = env.render()
    head, _, *lines = text.rstrip("\n").split("\n")
    assert head.startswith("Mini · joint") and f"t = {env._episode.engine.now_s:.2f} s" in head
    states = env._episode.engine.state()
    assert len(lines) == 4
    for line, state in zip(lines, states, strict=True):
        assert f"{state.role} " in line and state.lifecycle in line
        assert re.search(rf"\b{state.running_prompts}p \+ {state.decodes}d\b", line)
        assert line.endswith(f"{state.kv_used_tokens / state.kv_capacity_tokens:.1%}")
    assert max(len(line) for line in lines) <= 110


def test_image_shows_the_cluster(mini):
    pytest.importorskip("matplotlib")
    env = stepped(mini, "rgb_array")
    image = env.render()
    assert image.dtype == np.uint8 and image.shape == (640, 1000, 3)
    prompt_blue = np.array([0x2A, 0x6F, 0xBB])
    assert (np.abs(image.astype(int) - prompt_blue).sum(axis=-1) < 12).sum() > 500
    env.step(env.action_space.sample())
    assert not np.array_equal(image, env.render())


def test_image_does_not_touch_pyplot(mini):
    plt = pytest.importorskip("matplotlib.pyplot")
    stepped(mini, "rgb_array", steps=2).render()
    assert plt.get_fignums() == []


def test_the_picture_of_the_end_is_the_state_at_the_horizon(mini):
    env = ClusterEnv(mini, kind="repurposing", render_mode="ansi")
    env.reset(seed=1)
    over = False
    while not over:
        *_, over, _ = env.step(0)
    assert "t = 35.00 s" in env.render()


def test_render_needs_a_mode_and_a_reset(mini):
    env = ClusterEnv(mini)
    env.reset(seed=1)
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert env.render() is None
    with pytest.raises(ResetNeeded):
        ClusterEnv(mini, render_mode="ansi").render()


def test_made_environments_render():
    pytest.importorskip("matplotlib")
    env = gymnasium.make("splitgym/Toy-Routing-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (640, 1000, 3)
