"""python -m sdnet"""

from .cli import main

main()
