"""Soft prompts, the prompt pool, and who owns which prompt."""
