"""The network: configuration, CNN trunk, pixel and word embeddings, encoder, heads, weight import."""
