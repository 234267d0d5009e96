"""Data: the prepared form on disk, the sources that it is made from, images, and the network's input."""
