"""The web app: a page and an HTTP API over one trained model, on the person's own machine by default.

browser -> guard (hosts, sizes, time) -> app (routes) -> batching (one thread that owns the model)
"""
