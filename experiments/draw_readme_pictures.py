"""Draw the pictures of the README that are no screenshots: what the machines of a cluster do, second by second.

python experiments/draw_readme_pictures.py
"""

from __future__ import annotations

from pathlib import Path

from splitgym.cards import load_card
from splitgym.learn.images import gantt, png
from splitgym.learn.watch import watch
from splitgym.policies import make_policy

CARD, POLICY, SEED = "Quickstart", "splitwise", 0
WINDOW_S = (100.0, 120.0)
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "gantt.png"


def main() -> None:
    """Simulate one test seed and draw a stretch of it."""
    card = load_card(CARD)
    warmup = card.defaults.warmup_policy
    run = watch(
        card.scenario(SEED),
        make_policy(POLICY),
        warmup_policy=None if warmup is None else make_policy(warmup, card.folder),
    )
    title = f"{CARD} under {POLICY}: what each machine does (test seed {SEED})"
    picture, width, height = png(gantt(run, title, window_s=WINDOW_S))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_bytes(picture)
    print(f"{PICTURE.name}: {width} x {height} pixels, {len(picture) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
