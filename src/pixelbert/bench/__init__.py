"""`pixelbert bench`: how fast it is. A claim is a ratio of things timed side by side in one run."""
