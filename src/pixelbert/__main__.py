"""`python -m pixelbert`, for launchers such as torchrun and accelerate."""

from pixelbert.cli import main

main()
