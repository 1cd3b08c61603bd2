"""`make tools`: have every tool of the Kubernetes path at hand."""

from scripts import tools
from scripts.console import main, say

main(lambda: say(f"tools are in {tools.ensure(*tools.TOOLS)}"))
