"""Models that the package carries, in Hugging Face's layout; `init_from` names a folder of this directory."""
