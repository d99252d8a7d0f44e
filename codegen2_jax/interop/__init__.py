"""Weights in and out of foreign formats."""
