"""Decode a task's split and score it."""
