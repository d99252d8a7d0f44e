"""Python functions written as JavaScript: the other language of PyTask-CL."""
