"""`python -m mmguard`."""

from mmguard.cli import main

main()
