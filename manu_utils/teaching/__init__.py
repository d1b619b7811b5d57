"""What only the notebooks need: check cells, scales, the leaderboard."""

from .checks import attempt, check, check_for, graded
from .leaderboard import append_leaderboard
from .scales import SCALES, Scale, check_room, needs, settings
from .tables import selectivity

__all__ = [
    "SCALES", "Scale", "append_leaderboard", "attempt", "check", "check_for", "check_room",
    "graded", "needs", "selectivity", "settings",
]  # fmt: skip
