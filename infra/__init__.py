"""The Pulumi program, and what it is told by the stack files."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The repository."""
