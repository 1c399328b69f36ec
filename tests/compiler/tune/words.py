"""Random texts of the tiny models' words."""

import random

from tests.conftest import WORDS


def random_texts(count: int, seed: int = 0, most: int = 20) -> list[str]:
    """Different ones, of 3 to ``most`` words."""
    draw = random.Random(seed)
    made = {" ".join(draw.choices(WORDS[4:], k=draw.randint(3, most))) for _ in range(2 * count)}
    return sorted(made)[:count]
