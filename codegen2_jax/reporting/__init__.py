"""A report of finished runs: tables, figures and one HTML page, drawn from scores.json and metrics.jsonl alone."""
