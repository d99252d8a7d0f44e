"""A stream of tasks learned one after another: stages, scores, diagnostics."""
