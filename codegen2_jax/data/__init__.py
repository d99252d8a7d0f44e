"""Vocabularies, sources, objectives, caches and loaders; numpy only, no JAX."""
