"""`python -m ppl_risk`."""

from ppl_risk.cli import main

main()
