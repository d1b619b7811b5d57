"""What only the notebooks need: check cells, scales, the leaderboard."""

from .checks import attempt, check, graded
from .leaderboard import append_leaderboard
from .scales import SCALES, Scale, check_room, needs

__all__ = [
    "SCALES", "Scale", "append_leaderboard", "attempt", "check", "check_room", "graded", "needs",
]  # fmt: skip
