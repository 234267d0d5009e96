"""The demonstration: train a small Pixel-BERT in minutes, measure it, and leave a page to look at.

python -m pixelbert.demo --output runs/demo
"""
